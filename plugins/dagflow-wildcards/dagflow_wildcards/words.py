"""The words behind a wildcard."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from dagflow import UserError

PACKAGED = Path(str(resources.files("dagflow_wildcards") / "word_lists"))


def read_words(key: str, folder: str = "") -> tuple[str, ...]:
    """The lines of KEY.txt in the folder, or of the packaged list, without blanks and duplicates.

    Raises UserError if there is no such folder or list, or if it holds no words or is not text.
    """
    places = [Path(folder), PACKAGED] if folder else [PACKAGED]
    if folder and not places[0].is_dir():
        raise UserError(f"folder = '{folder}': there is no such folder.")
    files = [file for place in places if (file := place / f"{key}.txt").is_file()]
    if not files:
        raise UserError(_unknown(key, places))
    try:
        lines = files[0].read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"'{files[0]}' cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"'{files[0]}' is not a text file in UTF-8.") from None
    words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise UserError(f"'{files[0]}' is empty: it needs a word or phrase on each line.")
    return words


def _unknown(key: str, places: list[Path]) -> str:
    known = sorted({file.stem for place in places for file in place.glob("*.txt")})
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {{{near[0]}}}?" if near else ""
    where = f"write {places[0] / key}.txt" if len(places) > 1 else f"give a folder with {key}.txt"
    return (
        f"there are no words for the wildcard {{{key}}}.{hint} Known: {', '.join(known)}. "
        f"To add it, {where}."
    )
