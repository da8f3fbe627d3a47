"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
