"""One page of one run or of several: everything inside it, nothing asked of anybody."""

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
    """What is shown of each run by itself."""

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
    """Terms as the page uses them, so that it explains those and no others."""

    def __init__(self) -> None:
        self.used: dict[str, Term] = {}

    def __call__(self, key: str) -> Term:
        """The term of a key; what nobody has explained is called by its key."""
        term = explain(key) or Term(key, "Logged by a plugin; see its documentation.")
        return self.used.setdefault(key, term)


def write(folders: Sequence[Path], output: Path) -> Path:
    """Write the page; the file appears whole or not at all.

    Raises UserError if a folder is no run, or the page has no place to go.
    """
    if output.is_dir():
        raise UserError(f"'{output}' is a folder. Give --output the name of a file.")
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"'{output}': the name of a page ends in .html.")
    text = build(folders)
    with whole(output) as file:
        file.write_text(text, encoding="utf-8")
    return output


def build(folders: Sequence[Path], version: str = "") -> str:
    """The page as HTML. With a `version` it asks its own server for newer ones.

    Raises UserError if a folder is no run or holds files that dagflow did not write so, or there
    are too many for one page.
    """
    if len(folders) > MOST:
        raise UserError(f"{len(folders)} runs are too many for one page: {MOST} at most.")
    runs = read(folders)
    try:
        text = _rendered(runs, version)
    except Exception as error:  # of any kind: what is in a file may be anything
        raise UserError(
            f"no page can be made of {', '.join(map(str, folders))}: {described(error)}. Either a "
            f"file there is not as dagflow wrote it (report.json, *.jsonl), or dagflow is wrong."
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
