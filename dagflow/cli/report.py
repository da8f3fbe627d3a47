"""`dagflow report`."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from dagflow import UserError
from dagflow.cli.console import err, fact
from dagflow.errors import described


def register(app: typer.Typer) -> None:
    app.command()(report)


def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Default: report.html in the run directory; for several, in the current folder.",
            show_default=False,
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Write no file; serve the page and keep it up to date."),
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
) -> None:
    """Make one page of a run, or of several side by side, to look at and to share.

    It shows curves, pictures before and after, numbers and what was run, in one file that loads
    nothing from elsewhere. Runs may still be under way.

    Examples:

      dagflow report runs/jpeg-compressibility-kl-001

      dagflow report runs/one runs/other --output both.html

      dagflow report runs/one --serve
    """
    if serve:
        if output is not None:
            raise UserError("--serve writes no file: leave out --output.")
        _serve(run, host, port, open_it)
        return
    from dagflow.page import build

    alone = run[0] if len(run) == 1 else Path()
    page = build.write(run, output or alone / build.NAME)
    fact("page", page)
    if open_it:
        webbrowser.open(page.resolve().as_uri())


def write_page(folder: Path) -> Path | None:
    """Write the page of a run that has ended well, or print why there is none."""
    from dagflow.page import build

    try:
        return build.write([folder], folder / build.NAME)
    except Exception as error:
        err.print(f"The page of this run could not be made: {described(error)}", markup=False)
        return None


def _serve(folders: list[Path], host: str, port: int, open_it: bool) -> None:
    from dagflow.page import read, serve
    from dagflow.remote import listen

    read.read(folders)  # complain about a folder that is not a run before starting anything
    if not listen.is_loopback(host):
        err.print(
            f"[bold yellow]Warning:[/bold yellow] {host} is not a loopback address: anybody who "
            f"can reach it can see these runs."
        )
    with listen.listen(host, port) as listening:
        url = listen.url_of(listening)
        shown = ", ".join(map(str, folders))
        print(f"dagflow shows {shown} at {url} (Ctrl-C to stop)", flush=True)
        if open_it:
            webbrowser.open(url)
        serve.serve(folders, listening)
