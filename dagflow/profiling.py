"""Where a run's time and memory go: named spans of work, and a profile that sums them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dagflow.errors import UserError

OTHER = "other"
STATM = Path("/proc/self/statm")
PAGE, MEGABYTE = 4096, 2**20


@dataclass
class Span:
    """All work under one name, excluding spans with other names inside it."""

    seconds: float = 0.0
    calls: int = 0
    megabytes: float = 0.0  # on CUDA peak device memory, else the process's at a span's ends


class Profile:
    """Sums the spans of the thread that made it, and traces the first of each traced kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spans: dict[str, Span] = {}
        self._thread = threading.get_ident()
        self._names = [OTHER]
        self._tracing = False
        self._traced: set[str] = set()
        self._last = time.perf_counter()

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self._thread:
            yield
            return
        self._boundary()
        self._names.append(name)
        self.spans.setdefault(name, Span()).calls += not self._tracing
        try:
            yield
        finally:
            self._boundary()
            self._names.pop()

    @contextmanager
    def traced(self, name: str) -> Iterator[None]:
        """Write `NAME.json` for the first call, whose time is not counted."""
        if name in self._traced:
            yield
            return
        self._traced.add(name)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints its own log
        import torch.profiler

        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._boundary()
        self._tracing = True
        try:
            with torch.profiler.profile(activities=kinds, profile_memory=True) as trace:
                yield
        finally:
            self._last, self._tracing = time.perf_counter(), False
        self.folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(self.folder / f"{name}.json"))
        self._last = time.perf_counter()

    def write(self) -> None:
        """Write `profile.json`: seconds, calls and peak memory of each span, the longest first."""
        self._boundary()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({name: asdict(span) for name, span in self.longest().items()}, indent=2)
        (self.folder / "profile.json").write_text(text + "\n", encoding="utf-8")

    def longest(self) -> Mapping[str, Span]:
        return dict(sorted(self.spans.items(), key=lambda item: -item[1].seconds))

    def _boundary(self) -> None:
        """Attribute the time since the last boundary to the innermost span."""
        megabytes = _memory()
        now = time.perf_counter()
        if not self._tracing:
            span = self.spans.setdefault(self._names[-1], Span())
            span.seconds += now - self._last
            span.megabytes = max(span.megabytes, megabytes)
        self._last = now


def _memory() -> float:
    """On CUDA the peak since the last call, once the GPU is idle; else the process's usage now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / MEGABYTE
        torch.cuda.reset_peak_memory_stats()
        return peak
    return int(STATM.read_text().split()[1]) * PAGE / MEGABYTE if STATM.exists() else 0.0


_active: Profile | None = None


@contextmanager
def profiled(folder: Path) -> Iterator[Profile]:
    """Inside this context spans are summed; at its end they are written into the folder.

    Nothing is written if the user's input was wrong.
    """
    global _active
    profile = _active = Profile(folder)
    try:
        yield profile
    except UserError:
        _active = None
        raise
    finally:
        if _active is not None:
            profile.write()
        _active = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """Work that the active profile, if any, records under this name."""
    if _active is None:
        yield
    else:
        with _active.inside(name):
            yield


@contextmanager
def traced(name: str) -> Iterator[None]:
    """Work whose first call the active profile, if any, traces in full detail."""
    if _active is None:
        yield
    else:
        with _active.traced(name):
            yield
