"""One self-contained page of one run or several, which loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from dagflow import __version__
from dagflow.errors import UserError, described
from dagflow.files import whole
from dagflow.glossary import Term, explain
from dagflow.page import charts, verdict, walls
from dagflow.page.histogram import histogram
from dagflow.page.plans import STATISTICS
from dagflow.page.plot import shown
from dagflow.page.read import RunData, at, changed_settings, number, read

NAME = "report.html"
TEMPLATES = Path(str(resources.files("dagflow.page") / "templates"))
MOST = charts.BASE  # runs on a page: as many as there are colours for them


@dataclass(frozen=True)
class Panel:
    """What the page shows of each single run."""

    run: RunData
    id: str
    sentences: list[str]
    alarms: list[str]
    figures: list[verdict.Figure]
    settings: list[tuple[str, str]]
    wall: walls.Wall | None
    ranked: list[tuple[str, list[walls.Ranked]]]
    histogram: charts.Chart | None
    truth: tuple[str, int, int] | None


class Glossary:
    """Collects the terms that the page uses, so that it explains exactly those."""

    def __init__(self) -> None:
        self.used: dict[str, Term] = {}

    def __call__(self, key: str) -> Term:
        """The term of a key; an unknown key is its own name."""
        term = explain(key) or Term(key, "Logged by a plugin; see its documentation.")
        return self.used.setdefault(key, term)


def write(folders: Sequence[Path], output: Path) -> Path:
    """Write the page; the file appears whole or not at all.

    Raises UserError if a folder is not a run, or the page cannot be written to `output`.
    """
    if output.is_dir():
        raise UserError(f"'{output}' is a folder. Give --output the name of a file.")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"'{output}': the name of a page must end in .html or .htm.")
    text = build(folders)
    with whole(output) as file:
        file.write_text(text, encoding="utf-8")
    return output


def build(folders: Sequence[Path], version: str = "") -> str:
    """The page as HTML. With a `version` it asks its own server for newer ones.

    Raises UserError if a folder is not a run or holds files that are not as dagflow wrote them, or
    if there are too many folders for one page.
    """
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs are too many for one page: the most is {MOST}.")
    runs = read(folders)
    try:
        text = _rendered(runs, version)
    except Exception as error:  # of any kind: a file may contain anything
        raise UserError(
            f"no page can be made of {', '.join(map(str, folders))}: {described(error)}. Either a "
            f"file there is not as dagflow wrote it (report.json, *.jsonl), or dagflow has a bug."
        ) from error
    return text.encode("utf-8", "backslashreplace").decode()  # a folder's name may be anything


def _rendered(runs: Sequence[RunData], version: str) -> str:
    glossary = Glossary()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "term": glossary,
        "shown": shown,
        "at": at,
        "number": number,
        "statistics": STATISTICS,
        "is_pixel_art": walls.is_pixel_art,
        "duration": verdict.duration,
        "change": verdict.change,
        "diversity": verdict.diversity,
    }
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        panels=[_panel(run, f"run-{k}") for k, run in enumerate(runs)],
        groups=charts.curves(runs),
        title=", ".join(run.name for run in runs),
        version=version,
        dagflow_version=__version__,
        style=_asset("style.css"),
        script=_asset("script.js"),
        glossary=glossary.used,
    )


def _panel(run: RunData, identifier: str) -> Panel:
    return Panel(
        run=run,
        id=identifier,
        sentences=verdict.sentences(run),
        alarms=verdict.alarms(run),
        figures=verdict.figures(run),
        settings=changed_settings(run.config),
        wall=walls.wall(run),
        ranked=walls.ranked(run),
        histogram=histogram(run, f"{identifier}-rewards"),
        truth=walls.picture(run.folder / "samples" / "truth.png"),
    )


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
