"""What files can hold, where folders can be, and files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagflow.errors import UserError


def unfinished(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(f".{path.name}.partial")


def is_text(text: str) -> bool:
    """Whether a text is valid UTF-8 (no surrogates, as bad bytes become) and contains no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_text(path: str, value: Any) -> None:
    """Raise UserError for a text that no file could hold, anywhere in the tree at `path`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            require_text(path, key)
            require_text(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            require_text(path, inner)
    elif isinstance(value, str) and not is_text(value):
        raise UserError(f"{f'{path} = ' if path else ''}{value!r}: it is not plain text in UTF-8.")


def require_room(output: Path) -> None:
    """Raise UserError where no folder can be: below a file, or behind a broken link."""
    if output.is_symlink() and not output.exists():
        raise UserError(f"'{output}' is a broken link. Give another --output.")
    above = next((folder for folder in output.absolute().parents if folder.exists()), None)
    if above and not above.is_dir():
        raise UserError(f"'{above}' is a file, so it cannot hold a folder. Give another --output.")


def require_empty(output: Path) -> None:
    """Raise UserError unless the folder is empty, or does not exist and could be made."""
    require_room(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' exists and is not empty. Give another --output.")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside the file to write to, which becomes the file at the end; makes its folder.

    If that fails, nothing of it remains, and an OSError from writing names the file.
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
