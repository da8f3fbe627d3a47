"""Prompts from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dagflow import Prompt, UserError

COLUMNS = ("prompt", "prompts", "text", "caption")


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file, in order; blank ones are left out.

    .txt holds one per line. .csv and .parquet have a column named prompt, prompts, text or caption
    (in any case); the other columns become metadata. .json is a list of texts, or of objects with
    such a key; .jsonl has one of those per line.
    Raises UserError if the file is missing, of another kind, or has no such column.
    """
    file = Path(path).expanduser()
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"'{path}': prompts are read from {', '.join(READERS)} files.")
    try:
        return from_items(f"'{path}'", reader(file))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not in UTF-8: {error}. Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not a {file.suffix} file: {error}.") from None


def from_items(
    source: str, items: Iterable[tuple[int, Any]], columns: Sequence[str] = COLUMNS
) -> list[Prompt]:
    """The prompt of each numbered item: a text, or an object with a text under one of `columns`.

    Blank ones are left out. Raises UserError, naming the source, for an item without a text.
    """
    found = [_prompt(f"{source}, item {number}", item, columns) for number, item in items]
    return [prompt for prompt in found if prompt.text.strip()]


def _prompt(where: str, item: Any, columns: Sequence[str]) -> Prompt:
    if isinstance(item, str):
        return Prompt(item)
    row = item if isinstance(item, dict) else {}
    if None in row:  # csv puts surplus fields there
        raise UserError(f"{where}: more fields than columns. Quote texts that hold commas.")
    key = _column(list(row), columns)
    if key is None or not isinstance(row[key], str):
        raise UserError(f"{where}: no text under any of {', '.join(columns)}.")
    return Prompt(row[key], {name: value for name, value in row.items() if name != key})


def _column(keys: Sequence[Any], columns: Sequence[str]) -> Any:
    """The first of the columns that exists, in any case; an exact match goes first."""
    for column in columns:
        alike = [key for key in keys if str(key).lower() == column.lower()]
        if alike:
            return column if column in alike else alike[0]
    return None


def _read_txt(file: Path) -> Iterator[tuple[int, Any]]:
    return ((number, line.strip()) for number, line in _lines(file))


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines; not `splitlines`, because a prompt may contain a Unicode separator."""
    return enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1)


def _read_csv(file: Path) -> Iterator[tuple[int, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            names = list(reader.fieldnames or ())
            if names.count(column := _column(names, COLUMNS)) > 1:
                raise UserError(f"'{file}' has several columns named {column}.")
            yield from enumerate(reader, 2)
        except csv.Error as error:
            hint = 'A text in "quotes" ends right before a comma, and doubles quotes inside: ""'
            raise UserError(f"'{file}', after line {reader.line_num}: {error}. {hint}.") from None


def _read_json(file: Path) -> Iterator[tuple[int, Any]]:
    items = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(items, list):
        raise UserError(f"'{file}' does not hold a list.")
    return enumerate(items, 1)


def _read_jsonl(file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(file):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{file}', line {number}, is not JSON: {error}.") from None


def _read_parquet(file: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"'{file}': .parquet needs pyarrow. Try: pip install pyarrow") from None
    try:
        return enumerate(parquet.read_table(file).to_pylist(), 1)
    except (ArrowException, OverflowError) as error:  # OverflowError: dates out of Python's range
        raise UserError(f"'{file}' cannot be read: {error}") from None


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
