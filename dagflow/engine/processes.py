"""The processes of a run: which one this is, and where they meet.

Between two meetings each process works alone on its own share. At a meeting all learn what the
others found, or that one of them failed. So no process waits for one that has given up, and all
agree on what happened. Gradients are summed once in an optimizer step.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from dagflow.errors import (
    Interrupted,
    NotSaved,
    PluginError,
    ProcessLost,
    RunError,
    UserError,
    described,
)

T = TypeVar("T")
KNOWN = "_dagflow_known"  # set on an exception of this process that all others know about

# The gravest first: all processes raise the gravest failure of a meeting.
KINDS: tuple[type[BaseException], ...] = (
    NotSaved,
    PluginError,
    RunError,
    UserError,
    torch.OutOfMemoryError,
    Interrupted,
)


class Failure(NamedTuple):
    """What a process tells the others about an exception."""

    kind: int  # its place in KINDS
    message: str


class Processes:
    """A single process: it has no meetings."""

    rank = 0
    size = 1
    lockstep = False  # whether a pass of the policy in one process needs a pass in all others

    @property
    def is_main(self) -> bool:
        """Whether this one prints and writes files."""
        return self.rank == 0

    def wait_at_most(self, seconds: float) -> None:
        """Give up on a process that is later for a meeting than this one by more than that."""

    def share(self, work: Callable[[], T]) -> list[T]:
        """What `work` returned in each process, in the order of ranks.

        If it raised in any process, this raises in all: there the original exception, elsewhere
        one of the same kind that names the process.
        """
        return [work()]

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returned here, once all have done it; raises as `share` does."""
        return work()

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returned in the main process; only that one does it."""
        return work()

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; a missing one counts as zero."""

    def passes(self, count: int) -> int:
        """How many passes of the policy a process with `count` batches must make.

        In lockstep it is the largest count of any process; otherwise the process's own.
        """
        return max(self.share(lambda: count)) if self.lockstep else count

    def own(self, count: int) -> range:
        """This process's consecutive places out of `count`; as many as others have, +- 1.

        Those of all ranks, in order, are all places.
        """
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gathered(self, values: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """Rows of all processes, on the device of `values`, in the order of their `places`.

        The default is the order of ranks.
        """
        parts = self.share(lambda: (values.detach().cpu(), places))
        rows = torch.cat([part for part, _ in parts])
        if places is not None:
            order = torch.tensor([place for _, known in parts for place in known or ()])
            rows = rows[order.argsort()] if len(order) else rows
        return rows.to(values.device)


ALONE = Processes()


class Several(Processes):
    """One of several processes, connected by torch.distributed."""

    def __init__(self) -> None:
        """Join the default group; meetings use gloo, gradients the group's own backend."""
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._meeting = _group("gloo")
        self._gradients = _group(distributed.get_backend())

    def wait_at_most(self, seconds: float) -> None:
        self._meeting = _group("gloo", seconds)
        self._gradients = _group(distributed.get_backend(), seconds)

    def share(self, work: Callable[[], T]) -> list[T]:
        error: BaseException | None = None
        said: Any = None
        try:
            said = work()
        except Exception as caught:
            if is_known(caught):
                raise
            error, said = caught, failure(caught)
        everything = self._gather(said)
        failures = [(x.kind, rank) for rank, x in enumerate(everything) if isinstance(x, Failure)]
        if not failures:
            return everything
        kind, rank = min(failures)
        if rank == self.rank and error is not None:
            setattr(error, KNOWN, True)
            raise error
        raise elsewhere(rank, kind, everything[rank].message)

    def together(self, work: Callable[[], T]) -> T:
        found: list[T] = []
        self.share(lambda: found.append(work()))
        return found[0]

    def from_main(self, work: Callable[[], T]) -> T:
        return self.share(lambda: work() if self.is_main else None)[0]  # type: ignore[return-value]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        if not parameters:
            return
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float()
                for p in parameters
            ]
        )
        with _lost():
            distributed.all_reduce(flat, group=self._gradients)
        parts = flat.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def _gather(self, value: Any) -> list[Any]:
        """Gather over the network, in torch's two steps: sizes, then contents."""
        everything: list[Any] = [None] * self.size
        with _lost():
            distributed.all_gather_object(everything, value, group=self._meeting)
        return everything


def _group(backend: str, seconds: float | None = None) -> distributed.ProcessGroup:
    """Another group of all processes; by default with torch's own timeout."""
    timeout = None if seconds is None else timedelta(seconds=seconds)
    group = distributed.new_group(backend=backend, timeout=timeout)
    assert not isinstance(group, int)  # which it is only for processes outside the group
    return group


class _Elsewhere(Exception):
    """Marks an exception that another process raised first; a mixin to its kind."""


def is_known(error: BaseException | None) -> bool:
    """Whether all processes already know about it, from a meeting inside the current one."""
    while error is not None:
        if isinstance(error, _Elsewhere | ProcessLost) or hasattr(error, KNOWN):
            return True
        error = error.__cause__
    return False


def failure(error: BaseException) -> Failure:
    """What the other processes are told about an exception."""
    for kind, known in enumerate(KINDS):
        if isinstance(error, known):
            return Failure(kind, str(error))
    return Failure(KINDS.index(RunError), described(error))


def elsewhere(rank: int, kind: int, message: str) -> BaseException:
    """The same failure as another process sees it."""
    known = KINDS[kind]
    both = type(known.__name__, (_Elsewhere, known), {})
    error: BaseException = both(f"process {rank}: {message}" if message else f"process {rank}")
    return error


@contextmanager
def _lost() -> Iterator[None]:
    """Raise ProcessLost if torch.distributed reports a broken connection."""
    try:
        yield
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ProcessLost("another process of the run has died or does not answer") from error


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that a launcher (torchrun, accelerate, `--num-processes`) started, connected.

    Without a launcher, a single one. Gradients use nccl on GPUs, gloo elsewhere.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        rank, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= count:
            raise UserError(
                f"there is no GPU for process {rank} on this machine, which has {count}."
            )
        torch.cuda.set_device(rank)
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        group = Several()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"the processes cannot connect: {reason}") from error
    try:
        yield group
    finally:
        distributed.destroy_process_group()
