"""What a run logs: append-only JSON lines, truncated to a known length on resume, and durations."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dagflow.errors import NotSaved

Record = Mapping[str, float | int | str]


class JsonLines:
    """One file of JSON objects, one per line; no file in a process that does not write."""

    def __init__(
        self, path: Path | None, length: int = 0, tell: Callable[[Record], None] | None = None
    ) -> None:
        """Open the file and truncate it to `length` bytes; `tell` is called with each record."""
        self.path, self._tell = path, tell
        if path:
            with path.open("ab") as file:
                file.truncate(min(length, file.tell()))

    def write(self, record: Record) -> None:
        """Append a record. Raises NotSaved if the disk is full or not writable."""
        if not self.path:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise NotSaved(f"{self.path} cannot be written: {error}") from error
        if self._tell:
            self._tell(record)

    def length(self) -> int:
        """Bytes on the disk."""
        if not self.path:
            return 0
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"{name}_seconds"] = round(now - self._last, 3)
        self._last = now
