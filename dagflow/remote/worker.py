"""One thread that builds a reward and then calls it, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import torch
from torch import Tensor

from dagflow import PluginError, Prompt, Reward

Job = tuple[Tensor, Sequence[Prompt], "Future[Tensor]"]


class Worker:
    """Rewards need not be thread-safe, so one thread builds and calls this one.

    The thread is a daemon, unlike those of an executor: a reward that hangs does not keep the
    server from stopping.
    """

    def __init__(self, make: Callable[[], Reward], device: torch.device) -> None:
        self.loaded: Future[None] = Future()
        self._make, self._device = make, device
        self._jobs: SimpleQueue[Job] = SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._work, name="reward", daemon=True).start()

    @property
    def ready(self) -> bool:
        return self.loaded.done() and self.loaded.exception() is None

    def submit(self, images: Tensor, prompts: Sequence[Prompt]) -> Future[Tensor]:
        """The pending scores, float32 (B,) on the CPU; cancel the future to leave the queue.

        images: float32 (B, 3, height, width). The future raises PluginError if the reward raises
        or returns another shape.
        """
        future: Future[Tensor] = Future()
        self._jobs.put((images, prompts, future))
        return future

    def _work(self) -> None:
        try:
            reward = self._make()
        except BaseException as error:  # whoever waits for `loaded` must learn about any failure
            self.loaded.set_exception(error)
            return
        self.loaded.set_result(None)
        while True:
            self._serve(reward, *self._jobs.get())

    def _serve(
        self, reward: Reward, images: Tensor, prompts: Sequence[Prompt], future: Future[Tensor]
    ) -> None:
        """A separate function, so that no local name keeps the images until the next call."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(score(reward, images.to(self._device), prompts))
        except BaseException as error:
            future.set_exception(error)


@torch.no_grad()
def score(reward: Reward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The reward's scores, float32 (B,) on the CPU.

    Raises PluginError if it raises, naming the prompts, or returns another shape.
    """
    try:
        values = reward(images, prompts)
    except BaseException as error:  # some libraries panic with exceptions of their own kind
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"raised {reason} for {_name(prompts)}") from error
    if not isinstance(values, Tensor) or values.shape != (len(images),) or values.is_complex():
        raise PluginError(f"returned {_form(values)}; expected a tensor of shape ({len(images)},)")
    return values.detach().to("cpu", torch.float32)


def _form(values: object) -> str:
    if not isinstance(values, Tensor):
        return type(values).__name__
    return "complex numbers" if values.is_complex() else str(tuple(values.shape))


def _name(prompts: Sequence[Prompt]) -> str:
    if not prompts:
        return "an empty batch"
    first = f"the prompt '{prompts[0].text[:200]}'"
    return first if len(prompts) == 1 else f"{len(prompts)} images, the first of them for {first}"
