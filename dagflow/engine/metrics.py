"""Append-only JSON lines, cut back to a known length when a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class JsonLines:
    """One file of JSON objects, a line each."""

    def __init__(self, path: Path, length: int = 0) -> None:
        """Open the file and forget what stands after `length` bytes."""
        self.path = path
        with path.open("ab") as file:
            file.truncate(min(length, file.tell()))

    def write(self, record: Mapping[str, float | int | str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return os.path.getsize(self.path)
