"""Have rewards score images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import Full, Queue

import torch
from torch import Tensor, nn

from dagflow.errors import PluginError, RunError, blaming
from dagflow.profiling import span
from dagflow.types import Prompt, Reward

DIVERGED = (
    "the model draws pictures that are not finite: it has diverged. Resume from an epoch before "
    "that with --resume RUN@EPOCH, or start again with a lower update.learning_rate"
)
Scores = Callable[[], Tensor]  # waits for the scores: float32 (R, B)


class Background:
    """Calls in `concurrency` threads; as many more wait in a queue, with their images.

    After a failure nothing more is called: all waiting and future calls fail with the same error.
    The threads are daemons, unlike an executor's, so that a call that hangs does not keep a run
    from ending.
    """

    def __init__(self, concurrency: int) -> None:
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._jobs: Queue[tuple[Future[Tensor], Callable[[], Tensor]]] = Queue(concurrency)
        self._failure: BaseException | None = None
        for _ in range(concurrency):
            threading.Thread(target=self._work, name="reward", daemon=True).start()

    def submit(self, call: Callable[[], Tensor], timeout: float | None = None) -> Future[Tensor]:
        """The pending result. Returns at once, or as soon as there is room.

        Raises what an earlier call raised, and queue.Full if there is no room in `timeout` seconds.
        """
        if self._failure:
            raise self._failure
        future: Future[Tensor] = Future()
        self._jobs.put((future, call), timeout=timeout)
        return future

    def close(self) -> None:
        """Make no more calls."""
        self._failure = self._failure or RuntimeError("the rewards are closed")

    def _work(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)  # each thread has its own current device
        while True:
            self._call(*self._jobs.get())

    def _call(self, future: Future[Tensor], call: Callable[[], Tensor]) -> None:
        """A separate function, so that no local name keeps the images until the next call."""
        try:
            if self._failure:
                raise self._failure
            future.set_result(call())
        except BaseException as error:
            if not isinstance(error, torch.OutOfMemoryError):  # retried with smaller batches
                self._failure = self._failure or error
            future.set_exception(error)


@dataclass(frozen=True)
class WeightedReward:
    """A reward under its label in the configuration; it counts weight * reward + offset."""

    label: str
    reward: Reward
    weight: float
    offset: float = 0.0
    normalise_epochs: int = 0  # standardised by statistics of that many first epochs; 0: never
    background: Background | None = None  # the threads that call it; None: the caller's
    overlaps: bool = True  # with other work; else the caller waits for those threads
    timeout: float | None = None  # seconds to wait for an answer from those threads


def place(reward: Reward, device: torch.device) -> Reward:
    """Move a reward that is a module to the device, freeze it and put it in eval mode."""
    if isinstance(reward, nn.Module):
        with blaming(f"reward {type(reward).__name__}"):
            reward.to(device).requires_grad_(False).eval()
    return reward


def ask(rewards: Sequence[WeightedReward], images: Tensor, prompts: Sequence[Prompt]) -> Scores:
    """Have R rewards score the images; those that overlap do so while the caller continues.

    The GPU work of the other rewards overlaps too: their scores are read only when waited for.

    images: float32 (B, 3, height, width) in [0, 1]. Returns a function that waits for the scores,
    unweighted. Either function raises PluginError, naming the reward, if it raises, does not answer
    in time, or returns a wrong shape or (naming the prompt too) a value that is not finite; and
    RunError if the cause is that the images are not finite.
    """
    are_finite = images.isfinite().all()  # stays on its device, where nothing waits for it
    later = {
        item.label: _submitted(item, images, prompts)
        for item in rewards
        if item.background and item.overlaps
    }
    done = {}
    for item in rewards:
        if item.label not in later:
            with span("reward"), _unless_diverged(are_finite):
                done[item.label] = (
                    _submitted(item, images, prompts)()
                    if item.background
                    else _ask(item, images, prompts)
                )
    none = torch.zeros(0, len(images), device=images.device)

    def scores() -> Tensor:
        with span("waiting"), _unless_diverged(are_finite):
            answers = {label: _finite(label, values, prompts) for label, values in done.items()}
            answers |= {label: _finite(label, said(), prompts) for label, said in later.items()}
        return torch.stack([answers[item.label] for item in rewards]) if rewards else none

    return scores


@contextmanager
def _unless_diverged(are_finite: Tensor) -> Iterator[None]:
    """Raise RunError instead of PluginError if the pictures are not finite."""
    try:
        yield
    except PluginError as error:
        if not are_finite:
            raise RunError(DIVERGED) from error
        raise


def _submitted(item: WeightedReward, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
    """The pending answer (B,) of a reward with threads."""
    assert item.background
    try:
        future = item.background.submit(partial(_ask, item, images, prompts), item.timeout)
    except Full:
        raise _too_late(item) from None

    def answer() -> Tensor:
        try:
            return future.result(item.timeout)
        except TimeoutError:
            raise _too_late(item) from None

    return answer


def _too_late(item: WeightedReward) -> PluginError:
    return PluginError(
        f"reward '{item.label}' did not answer within {item.timeout:g} seconds (its setting "
        f"timeout)"
    )


def total(rewards: Sequence[WeightedReward], raw: Tensor) -> Tensor:
    """The weighted sum (B,) of raw scores (R, B)."""
    result = torch.zeros_like(raw[0])
    for item, values in zip(rewards, raw, strict=True):
        result += item.weight * values + item.offset
    return result


@torch.no_grad()  # here, because other threads do not inherit it
def _ask(item: WeightedReward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    # A version counter of its own; on a CPU also its own memory, which numpy can change unseen.
    given = images.clone() if images.device.type == "cpu" else images.data
    with blaming(f"reward '{item.label}'", torch.OutOfMemoryError):
        values = item.reward(given, prompts)
    if given._version:
        raise PluginError(f"reward '{item.label}' changed the images in place; work on a copy")
    shaped = isinstance(values, Tensor) and values.shape == (len(images),)
    if not shaped or values.is_sparse or values.is_complex():
        got = _form(values)
        raise PluginError(
            f"reward '{item.label}' returned {got}; expected a tensor of shape ({len(images)},)"
        )
    if values.device.type == "cpu":  # else they are checked when they are read
        _finite(item.label, values, prompts)
    return values.detach().to(images.device, torch.float32, copy=True)


def _form(values: object) -> str:
    if not isinstance(values, Tensor):
        return type(values).__name__
    if values.is_complex():
        return "complex numbers"
    return "a sparse tensor" if values.is_sparse else str(tuple(values.shape))


def require_finite(images: Tensor) -> None:
    """Raise RunError if the pictures (B, 3, height, width) are not finite."""
    if not images.isfinite().all():
        raise RunError(DIVERGED)


def _finite(label: str, values: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The values (B,) of a reward. Raises PluginError if one is not finite."""
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise PluginError(
            f"reward '{label}' returned {float(values[bad])} for the prompt '{prompts[bad].text}'"
        )
    return values
