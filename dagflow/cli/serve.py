"""`dagflow serve`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer

from dagflow.cli import names
from dagflow.cli.console import err
from dagflow.plugins import load_plugins


def register(app: typer.Typer) -> None:
    app.command()(serve)


def serve(
    name: Annotated[str, typer.Argument(help="A reward.", autocompletion=names.rewards)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY=VALUE", help="An option of the reward."),
    ] = None,
    token_file: Annotated[
        str,
        typer.Option(
            help="A file with the token that clients must send. Default: DAGFLOW_TOKEN's value."
        ),
    ] = "",
    max_images: Annotated[int, typer.Option(min=1, help="Most images in a request.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in a request.")] = 128 * 2**20,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests at once.")] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a request's body to arrive.")
    ] = 30.0,
    exit_with_parent: Annotated[
        bool, typer.Option("--exit-with-parent", help="End when standard input is closed.")
    ] = False,
) -> None:
    """Serve a reward to trainers over HTTP.

    Example: dagflow serve jpeg-compressibility --port 8000 -s quality=80

    Then, elsewhere: dagflow train --reward remote:http://127.0.0.1:8000
    """
    from dagflow import config

    registry = load_plugins()
    options: dict[str, Any] = {}
    config.override(options, setting or [])
    make = registry.maker("reward", name, options)

    from dagflow.engine.scoring import place
    from dagflow.policies.loading import default_device
    from dagflow.remote import listen
    from dagflow.remote.client import read_token
    from dagflow.remote.server import Limits, create_app
    from dagflow.remote.worker import Worker

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if exit_with_parent:
        listen.exit_with_parent()
    token = read_token(token_file)
    if not listen.is_loopback(host):
        _warn(host, token)
    device = default_device()
    told = sys.stdout  # kept, because a plugin may replace it
    worker = Worker(lambda: place(make(), device), device)
    limits = Limits(max_images, max_bytes, max_requests, body_timeout=timeout)
    serves = name + (f" {options}" if options else "")
    with listen.listen(host, port) as listening:
        url = listen.url_of(listening)
        err.print(f"loading {name} for {url} ...", markup=False)
        app = create_app(worker, serves, token, limits)

        def announce() -> None:  # `isolated` waits for this line
            print(f"dagflow serves {name} at {url}", file=told, flush=True)

        try:
            listen.run(app, worker, listening, announce)
        except KeyboardInterrupt:
            raise typer.Exit from None


def _warn(host: str, token: str) -> None:
    who = "whoever has the token" if token else "ANYBODY (there is no token)"
    err.print(
        f"[bold yellow]Warning:[/bold yellow] {host} is not a loopback address: {who} can use "
        f"this server from other machines, and nothing is encrypted."
    )
