"""`dagflow compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from dagflow import RunError, UserError
from dagflow.cli import names
from dagflow.cli.console import complain, err, fact, out
from dagflow.cli.launch import INTERRUPTED
from dagflow.cli.options import SettingOption
from dagflow.cli.train import use
from dagflow.plugins import load_plugins
from dagflow.recipe import DEFAULT, read_recipe

if TYPE_CHECKING:
    from dagflow.compare import Contest

COLUMNS = {
    "reward.trained": "reward",
    "diversity.trained": "diversity",
    "distances.trained.total_variation": "TV",
    "distances.trained.energy": "energy distance",
    "temperature.slope": "slope",
    "reward_calls": "reward calls",
}


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    recipe: Annotated[
        str,
        typer.Argument(
            help="The name of a recipe, or a TOML file.",
            autocompletion=names.recipes,
        ),
    ] = DEFAULT,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="May be repeated. Default: kl, db, tb, ddpo.",
            autocompletion=names.objectives,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each objective, seeds from 0.")] = 3,
    reward_budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most images to ask rewards about in training each run; sets its epochs.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="A folder for the runs, the table and the picture.")
    ] = Path("comparison"),
    jobs: Annotated[int, typer.Option(min=1, help="How many runs at a time.")] = 1,
    setting: SettingOption = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OBJECTIVE:KEY.PATH=VALUE",
            help="A setting for one objective's runs, such as ddpo:update.learning_rate=1e-3.",
        ),
    ] = None,
) -> None:
    """Train with several objectives; plot reward against diversity, and in worlds against truth.

    All use the same model, prompts and seeds and, with --reward-budget, the same budget of scored
    images. Run the command again to keep what is done and continue.

    Examples:

      dagflow compare world --objective tb --objective kl --objective ddpo --seeds 2

      dagflow compare tiny --objective kl --objective tb --reward-budget 20000 --jobs 2
    """
    chosen = list(dict.fromkeys(objective or ["kl", "db", "tb", "ddpo"]))
    registry = load_plugins()
    for name in chosen:
        registry.find("objective", name)
    common = list(setting or [])
    if reward_budget is not None:
        common.append(f"reward_budget={reward_budget}")
    tuned = _tuned(tune or [], chosen)
    for name in chosen:
        _check(recipe, name, [*common, *tuned[name]])
    if output.exists() and not output.is_dir():
        raise UserError(f"'{output}' is not a folder. Give another --output.")
    contests = _contests(recipe, chosen, seeds, output, common, tuned)
    if changed := [contest for contest in contests if contest.has_changed]:
        raise UserError(
            f"'{changed[0].folder}' holds a run with other settings. Give another --output, or "
            f"the same settings."
        )
    try:
        done = _run(contests, jobs)
    except KeyboardInterrupt:
        err.print("Interrupted; running trainings save and end. Repeat the command to continue.")
        raise typer.Exit(INTERRUPTED) from None
    if not done:
        raise RunError("every run failed.")
    _present(done, output)
    if len(done) < len(contests):
        raise RunError(
            f"{len(contests) - len(done)} of {len(contests)} runs failed; the others are above. "
            f"Repeat the command to try them again."
        )


def _check(recipe: str, name: str, settings: list[str]) -> None:
    """Raise UserError for settings that no run could have, or that the runs cannot share."""
    from dagflow import config

    tree = read_recipe(recipe)
    use(tree, "objective", name, load_plugins())
    config.override(tree, settings)
    resolved = config.resolve(tree)
    given = {item.partition("=")[0].strip() for item in settings}
    if own := sorted(given & {"seed", "output", "objective.name"}):
        raise UserError(f"the comparison itself sets '{own[0]}': see --help.")
    if not resolved.evaluate.images:
        raise UserError("a comparison needs evaluate.images of 1 or more.")


def _tuned(tune: list[str], chosen: list[str]) -> dict[str, list[str]]:
    """Settings by objective."""
    tuned: dict[str, list[str]] = {name: [] for name in chosen}
    for item in tune:
        name, colon, assignment = item.partition(":")
        if not colon or name not in tuned or "=" not in assignment:
            raise UserError(
                f"--tune {item!r}: expected OBJECTIVE:KEY.PATH=VALUE, with one of "
                f"{', '.join(chosen)}."
            )
        tuned[name].append(assignment)
    return tuned


def _contests(
    recipe: str,
    chosen: list[str],
    seeds: int,
    output: Path,
    common: list[str],
    tuned: dict[str, list[str]],
) -> list[Contest]:
    from dagflow.compare import Contest

    contests, whole = [], json.dumps(read_recipe(recipe), sort_keys=True, default=str)
    for seed in range(seeds):
        for name in chosen:
            folder = output / "runs" / f"{name}-{seed}"
            words = [recipe, "--objective", name, "--seed", str(seed), "--output", str(folder)]
            settings = [word for item in (*common, *tuned[name]) for word in ("-s", item)]
            contests.append(Contest(name, seed, folder, (*words, *settings), (whole, *settings)))
    return contests


def _run(contests: list[Contest], jobs: int) -> list[Contest]:
    """Run all; returns those that ended well, in order."""
    from dagflow.compare import Failed, run_all

    done = set()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bars:
        task = bars.add_task("runs", total=len(contests))
        for ended in run_all(
            contests,
            jobs,
            lambda contest: bars.update(task, description=f"{contest.objective} {contest.seed}"),
        ):
            bars.advance(task)
            if isinstance(ended, Failed):
                contest = ended.contest
                complain("Failed", f"{contest.objective}, seed {contest.seed}: {ended.message}")
            else:
                done.add(ended)
                err.print(f"{len(done)}/{len(contests)}  {ended.objective}, seed {ended.seed}")
    return [contest for contest in contests if contest in done]


def _present(done: list[Contest], output: Path) -> None:
    from dagflow import charts, report
    from dagflow.compare import result

    found = result(done)
    report.write(found, output / "compare.json")
    charts.save(charts.comparison_chart(found), output / "compare.png")
    out.print(_table(found))
    fact("picture", output / "compare.png")
    fact("numbers", output / "compare.json")


def _table(found: dict[str, Any]) -> Table:
    summaries = {name: entry["summary"] for name, entry in found["objectives"].items()}
    shown = [key for key in COLUMNS if any(key in summary for summary in summaries.values())]
    table = Table("objective", *(COLUMNS[key] for key in shown), box=None)
    for name, summary in summaries.items():
        table.add_row(name, *(_cell(summary.get(key)) for key in shown))
    return table


def _cell(numbers: dict[str, float] | None) -> str:
    if numbers is None:
        return "-"
    if not numbers["half_width"]:
        return f"{numbers['mean']:.4g}"
    return f"{numbers['mean']:.4g} +- {numbers['half_width']:.2g} (95 %)"
