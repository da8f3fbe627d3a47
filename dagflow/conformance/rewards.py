"""What every reward must do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from queue import Queue
from threading import Barrier, Thread, current_thread, main_thread
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from dagflow.conformance.contract import Contract, advise
from dagflow.errors import raised
from dagflow.reward_rules import (
    TOLERANCE,
    moved_by_company,
    moved_by_time,
    not_finite,
    room,
    wrong_shape,
)
from dagflow.types import Prompt, Reward

SIDE = 32
THREAD_ROUNDS = 20
ODD_SIZES = ((37, 53), (48, 21))
TEXTS = ("a cat", "a red dog", "an ant on the moon", "three blue whales", "a goose", "pigs")
UNUSUAL_TEXTS = {
    "non-ASCII text": "一只猫 🦊 ñandú — قطة",
    "several lines": "a cat\n\n\tand a dog",
    "10,000 characters": "a very long prompt, " * 500,
}


class RewardContract(Contract):
    """Tests of an installed reward. Set `name`, and `options` if it needs any.

    `metadata` is what each prompt carries; set it if the reward reads some. `tolerance` is how far
    an image's score may depend on the others in its batch, as a share of the spread of scores.
    """

    kind = "reward"
    metadata: ClassVar[Mapping[str, Any]] = {}
    tolerance: ClassVar[float] = TOLERANCE
    _built: ClassVar[dict[type, Reward]] = {}

    def test_returns_one_float_for_each_image(self) -> None:
        scores = self._raw(images(), self.prompts(), "images of 32 x 32 pixels")
        if wrong := wrong_shape(scores, len(TEXTS)):
            advise(f"{self.label} {wrong}")

    def test_scores_are_finite(self) -> None:
        for what, image in plain_images().items():
            scores = self.score(image, self.prompts()[:1], what)
            if wrong := not_finite(scores, what):
                advise(f"{self.label} {wrong}")

    def test_score_does_not_depend_on_the_neighbours(self) -> None:
        measured = moved_by_company(self.score, images(), self.prompts(), self.tolerance)
        if not measured.kept:
            advise(f"{self.label} {measured.advice}")

    def test_order_of_the_batch_is_kept(self) -> None:
        order = [3, 0, 5, 1, 4, 2]
        prompts = self.prompts()
        straight = self.score(images(), prompts, "a batch")
        turned = self.score(images()[order], [prompts[k] for k in order], "a batch in other order")
        if not self._near(turned, straight[order], straight):
            advise(
                f"{self.label}: when the batch is reordered, its scores are not reordered in "
                f"the same way. Return score i for image i with prompt i."
            )

    def test_same_input_same_score(self) -> None:
        measured = moved_by_time(self.score, images(), self.prompts())
        if not measured.kept:
            advise(f"{self.label} {measured.advice}")

    def test_same_score_after_a_restart(self) -> None:
        first = self.score(images(), self.prompts(), "a batch")
        again = _checked(asked(ready(self.build()), images(), self.prompts()))
        if not torch.equal(first, again):
            advise(
                f"{self.label}, built anew, scores the same batch differently. A resumed run would "
                f"use another reward: load weights from a file, or draw them from a seed."
            )

    def test_same_score_from_several_threads(self) -> None:
        self.score(images(), self.prompts(), "a batch")
        reward = self._built[type(self)]
        threads = getattr(reward, "concurrency", None)
        if threads is None:
            pytest.skip(f"{self.label} has no `concurrency`, so it is called from one thread.")
        if type(threads) is not int or threads < 1:
            advise(f"{self.label} has concurrency = {threads!r}. Make it a positive whole number.")
        batches = [images().roll(k, 0) for k in range(threads)]
        one_by_one = [self.score(batch, self.prompts(), "a batch") for batch in batches]
        begin = Barrier(threads)

        def ask(batch: Tensor) -> Tensor:
            begin.wait(60)
            return self.score(batch, self.prompts(), "a batch in another thread")

        with ThreadPoolExecutor(threads) as pool:
            together = list(pool.map(ask, THREAD_ROUNDS * batches))
        if not all(map(torch.equal, THREAD_ROUNDS * one_by_one, together)):
            advise(
                f"{self.label} has concurrency = {threads}, but scores differ when that many calls "
                f"run at once. Keep nothing on self during a call, or remove `concurrency`."
            )

    def test_empty_batch(self) -> None:
        scores = _checked(self._raw(images()[:0], [], "an empty batch"))
        if scores.shape != (0,):
            advise(
                f"{self.label} returned the shape {tuple(scores.shape)} for no images, not (0,). "
                f"Return images.new_zeros(0) if the model cannot take an empty batch."
            )

    def test_batch_of_one(self) -> None:
        scores = _checked(self._raw(images()[:1], self.prompts()[:1], "one image"))
        if scores.shape != (1,):
            advise(
                f"{self.label} returned the shape {tuple(scores.shape)} for one image, not (1,). A "
                f"bare squeeze() drops the batch too: name the dimension, as in squeeze(1)."
            )

    def test_odd_image_sizes(self) -> None:
        for height, width in ODD_SIZES:
            what = f"images of {height} x {width} pixels"
            scores = self.score(images(height, width), self.prompts(), what)
            if not scores.isfinite().all():
                advise(
                    f"{self.label} returned {scores.tolist()} for {what}. Images come in the "
                    f"model's size: resize or pad them to what the reward needs."
                )

    def test_unusual_prompts(self) -> None:
        for what, text in UNUSUAL_TEXTS.items():
            prompt = Prompt(text, self.metadata)
            scores = self.score(images()[:1], [prompt], f"a prompt of {what}")
            if not scores.isfinite().all():
                advise(
                    f"{self.label} returned {scores.tolist()} for a prompt of {what}. Tell the "
                    f"tokenizer truncation=True, and read files as UTF-8."
                )

    def test_inputs_are_not_modified(self) -> None:
        given, prompts = images(), list(self.prompts())
        before = given.clone(), copy.deepcopy(prompts)
        self.score(given, prompts, "a batch")
        if not torch.equal(given, before[0]):
            advise(
                f"{self.label} changed the images that it was given, and the next reward would see "
                f"the change. Avoid in-place operations (mul_, clamp_, images[:] = ...), or clone."
            )
        if prompts != before[1]:
            advise(
                f"{self.label} changed the prompts (or their metadata) that it was given. Copy "
                f"them before you change anything."
            )

    def prompts(self) -> list[Prompt]:
        """As many different prompts as there are test images."""
        return [Prompt(text, dict(self.metadata)) for text in TEXTS]

    def score(self, batch: Tensor, prompts: Sequence[Prompt], what: str) -> Tensor:
        """The scores of a batch, float32 (B,); `what` describes it in failure messages."""
        scores = _checked(self._raw(batch, prompts, what))
        if scores.shape != (len(batch),):
            advise(
                f"{self.label} returned the shape {tuple(scores.shape)} for {what}, not "
                f"({len(batch)},). Return one number for each image."
            )
        return scores

    def _raw(self, batch: Tensor, prompts: Sequence[Prompt], what: str) -> Any:
        cls = type(self)
        if cls not in self._built:
            self._built[cls] = ready(self.build())
        try:
            return asked(self._built[cls], batch, prompts)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            advise(
                f"{self.label} {raised(error)} for {what}. A run would stop here: return a score "
                f"for every possible image and prompt."
            )

    def _near(self, found: Tensor, due: Tensor, scores: Tensor) -> bool:
        return float((found - due).abs().max()) <= room(scores, self.tolerance)


def _checked(scores: Any) -> Tensor:
    if not isinstance(scores, Tensor):
        advise(f"a reward returned {type(scores).__name__}, not a tensor of shape (B,).")
    return scores.float()


@cache
def _jobs() -> Queue[Callable[[], None]]:
    """Calls to make in another thread: a daemon, so that one may hang."""
    jobs: Queue[Callable[[], None]] = Queue()

    def work() -> None:
        while True:
            jobs.get()()

    Thread(target=work, daemon=True).start()
    return jobs


def asked(reward: Reward, batch: Tensor, prompts: Sequence[Prompt]) -> Any:
    """Ask as a run does: it builds a reward in its main thread, and calls it in another."""

    @torch.no_grad()
    def ask() -> Any:
        return reward(batch, prompts)

    if current_thread() is not main_thread():
        return ask()
    answer: Future[Any] = Future()

    def tell() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    _jobs().put(tell)
    return answer.result()


def ready(reward: Reward) -> Reward:
    """A reward as the engine uses it: modules are frozen and in eval mode."""
    if isinstance(reward, nn.Module):
        reward.requires_grad_(False).eval()
    return reward


def images(height: int = SIDE, width: int = SIDE) -> Tensor:
    """Six different images, float32 (6, 3, height, width) in [0, 1]."""
    source = torch.Generator().manual_seed(0)
    noise = torch.rand(3, height, width, generator=source)
    across = torch.linspace(0, 1, width).expand(3, height, width)
    down = torch.linspace(0, 1, height)[:, None].expand(3, height, width)
    red = torch.zeros(3, height, width)
    red[0] = 1
    return torch.stack([noise, across, down, red, across * noise, 1 - red])


def plain_images() -> dict[str, Tensor]:
    """Single images, (1, 3, 32, 32), on some of which norms or deviations are zero."""
    blank = torch.ones(1, 3, SIDE, SIDE)
    return {
        "a black image": 0 * blank,
        "a white image": blank,
        "a grey image": 0.5 * blank,
        "an image of noise": images()[:1],
    }
