"""What files can hold, where folders can be, and files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagflow.errors import UserError


def unfinished(path: Path) -> Path:
    """What a file is called while it is written."""
    return path.with_name(f".{path.name}.partial")


def is_text(text: str) -> bool:
    """Not half of a pair of surrogates, nor what stands for bad bytes, nor with a NUL in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_text(path: str, value: Any) -> None:
    """Raise UserError for a text that no file could hold, anywhere in the tree at a path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            require_text(path, key)
            require_text(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            require_text(path, inner)
    elif isinstance(value, str) and not is_text(value):
        raise UserError(f"{f'{path} = ' if path else ''}{value!r}: this is no plain text in UTF-8.")


def require_room(output: Path) -> None:
    """Raise UserError where no folder can be: below a file, or behind a link to nothing."""
    if output.is_symlink() and not output.exists():
        raise UserError(f"'{output}' is a link that leads nowhere. Give another --output.")
    above = next((folder for folder in output.absolute().parents if folder.exists()), None)
    if above and not above.is_dir():
        raise UserError(f"'{above}' is a file: no folder can be made in it. Give another --output.")


def require_empty(output: Path) -> None:
    """Raise UserError unless the folder is empty, or does not exist and could be made."""
    require_room(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' exists and is not empty. Give another --output.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside the file to write to, which becomes the file at the end; makes its folder.

    Where that fails nothing of it stays, and an OSError of writing names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = unfinished(path)
    try:
        yield beside
        beside.rename(path)
    except OSError as error:
        if error.filename not in (None, str(beside), beside):
            raise  # it is about another file
        raise OSError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)
