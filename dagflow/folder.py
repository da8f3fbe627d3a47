"""The directory of a run: who may write there, its configuration, where it resumes from."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dagflow import config as configuration
from dagflow.config import Config
from dagflow.config_file import dump
from dagflow.engine import checkpoint
from dagflow.errors import UserError
from dagflow.files import require_room, unfinished, whole
from dagflow.policies.policy import Policy
from dagflow.recipe import read_recipe

CONFIG = "config.toml"
RUNS = Path("runs")  # holds the runs that were given no folder
OWNER = ".owner.json"
LOCK = ".lock"


def require_free(folder: Path) -> None:
    """Raise UserError unless a run can begin in this folder: it does not exist or is empty."""
    if (folder / CONFIG).is_file():
        raise UserError(
            f"'{folder}' already holds a run. Resume it with `dagflow train --resume "
            f"{shlex.quote(str(folder))}`, or give another --output."
        )
    require_room(folder)
    passing = {LOCK, OWNER, unfinished(folder / CONFIG).name}  # left by a start that was killed
    if folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - passing):
        raise UserError(f"'{folder}' exists and is not empty. Give another --output.")


@contextmanager
def claimed(stem: str) -> Iterator[Path]:
    """The first free `runs/STEM-NNN`, created at once, so that a concurrent start gets another.

    At the end it is removed if nothing was written.
    """
    there, number = RUNS.exists(), 1
    while True:
        folder = RUNS / f"{stem}-{number:03d}"
        try:
            folder.mkdir(parents=True)
            break
        except FileNotFoundError:
            Path.cwd()  # raises too if that is what is missing
            continue  # another process has just removed RUNS, as below
        except FileExistsError:
            if not RUNS.is_dir():
                raise
            number += 1
    try:
        yield folder
    finally:
        with suppress(OSError):  # there is something in it
            folder.rmdir()
            if not there:
                RUNS.rmdir()


def read_config(folder: Path) -> Config:
    """The configuration of an existing run. Raises UserError if the folder is not a run."""
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"'{folder}' is not a run directory: it has no {CONFIG}.")
    tree = read_recipe(str(file))
    return configuration.resolve({**tree, "output": str(folder)})


def write_config(config: Config, folder: Path) -> None:
    """Write the configuration; the file appears whole or not at all."""
    with whole(folder / CONFIG) as file:
        file.write_text(dump(config), encoding="utf-8")


def choose(
    folder: Path, place: str, policy: Policy, say: Callable[[str], None]
) -> checkpoint.Saved | None:
    """Read the checkpoint to resume from; see `find`. None if there is no checkpoint yet."""
    found = find(folder, place, say)
    return checkpoint.read(found, policy) if found else None


def find(folder: Path, place: str, say: Callable[[str], None]) -> Path | None:
    """A run's newest undamaged checkpoint, or only `place`.

    `place`: a checkpoint's name, the number of an epoch, `latest` or `best`. Damage is reported
    through `say`. None if there is no checkpoint yet. Raises UserError if all are damaged, or the
    one asked for is damaged or missing.
    """
    found = checkpoint.folders(folder / "checkpoints")
    if place:
        found = _placed(folder, found, place)
    first_damage = ""
    for path in reversed(found):
        damage = checkpoint.damage(path)
        if damage is None:
            return path
        first_damage = first_damage or damage
        say(f"DAMAGED: {damage}.")
    if first_damage:
        raise UserError(f"no undamaged checkpoint to resume from: {first_damage}.")
    return None


def whole_checkpoint(folder: Path, place: str, say: Callable[[str], None]) -> Path:
    """As `find`, but raises UserError if there is no checkpoint yet."""
    found = find(folder, place, say)
    if found is None:
        raise UserError(f"the run '{folder}' has no checkpoint yet.")
    return found


def _placed(folder: Path, found: Sequence[Path], place: str) -> list[Path]:
    name = f"epoch-{int(place):04d}" if place.isdecimal() else place
    chosen = [path for path in found if path.name == name]
    if name in (checkpoint.LATEST, checkpoint.BEST):
        chosen = checkpoint.same(folder / "checkpoints" / name, found)
    if not chosen:
        names = ", ".join(path.name for path in found)
        raise UserError(f"'{folder}' has no checkpoint '{name}'. There are: {names}.")
    return chosen


def go_on_from(chosen: Path, say: Callable[[str], None]) -> bool:
    """Set aside newer checkpoints, damaged or unwanted; returns whether the best one stays."""
    checkpoint.sweep(chosen.parent)
    aside = checkpoint.set_aside(chosen.parent, chosen)
    if aside:
        say(f"Resuming from {chosen.name}; set aside: {', '.join(aside)}.")
    return (chosen.parent / checkpoint.BEST).exists()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it until the end.

    The system releases the lock when the process dies, however it dies. Raises UserError, naming
    the owner, if another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{_owner(folder)} is writing to '{folder}'. Wait, or stop it.") from None
    try:
        (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = json.loads((folder / OWNER).read_text())
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
