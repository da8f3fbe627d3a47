"""A buffer of good trajectories, for objectives that can learn off-policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dagflow.config import Config
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.pictures import upright
from dagflow.engine.processes import ALONE, Processes
from dagflow.engine.rollout import noised
from dagflow.errors import UserError
from dagflow.files import is_text
from dagflow.policies.policy import Policy
from dagflow.types import Prompt, Trajectories


def off_policy(config: Config, kept: bool, given: bool, groups: bool) -> tuple[int, int]:
    """How many of an epoch's trajectories come from the buffer, and from noising images.

    `kept`: whether the buffer holds anything; `given`: whether there are pictures from elsewhere;
    `groups`: whether trajectories of one prompt stay together. The policy samples a whole number
    of groups; the others share the rest.
    """
    settings, replay = config.rollout, config.replay
    every, together = settings.samples_per_epoch, settings.images_per_prompt
    share = replay.share if kept else 0.0
    backward = replay.backward if kept or given else 0.0
    if not share + backward:
        return 0, 0
    sampled = max(1, int(every * (1 - share - backward) + 1e-6) // together)
    others = every - sampled * together
    unit = together if groups else 1
    units = others // unit
    replayed = round(units * share / (share + backward))
    if share and backward and units > 1:
        replayed = min(max(replayed, 1), units - 1)
    return unit * replayed, others - unit * replayed


class Kept(NamedTuple):
    """One trajectory of the buffer."""

    prompt: Prompt
    latents: Tensor  # (T+1, C, H, W) on the CPU; for a given picture only the last state
    reward: float

    @property
    def is_picture(self) -> bool:
        """Whether it was given, not sampled."""
        return len(self.latents) == 1


@dataclass(frozen=True)
class Buffer:
    """The best trajectories so far: at most `per_prompt` of one text and `capacity` in total."""

    capacity: int
    per_prompt: int
    kept: tuple[Kept, ...] = field(default=())  # best first

    def with_more(
        self,
        prompts: Sequence[Prompt],
        rewards: Tensor,
        here: Trajectories,
        processes: Processes = ALONE,
    ) -> Buffer:
        """The buffer after N more trajectories with these prompts and `rewards` (N,).

        Each process has some of them `here`; all processes get those that are kept.
        """
        nothing = torch.empty(0)
        new = [
            Kept(prompt, nothing, reward)
            for prompt, reward in zip(prompts, rewards.tolist(), strict=True)
        ]
        numbers: list[int | None] = [None] * len(self.kept)
        numbers += range(len(new))
        candidates = zip([*self.kept, *new], numbers, strict=True)
        best = sorted(candidates, key=lambda both: -both[0].reward)
        counts: dict[str, int] = {}
        kept: list[tuple[Kept, int | None]] = []
        for item, number in best:
            text = item.prompt.text
            counts[text] = counts.get(text, 0) + 1
            if counts[text] <= self.per_prompt and len(kept) < self.capacity:
                kept.append((item, number))
        wanted = {number for _, number in kept if number is not None}
        latents = _latents(here, wanted, processes)
        whole = [
            item if number is None else item._replace(latents=latents[number])
            for item, number in kept
        ]
        return Buffer(self.capacity, self.per_prompt, tuple(whole))

    def tensors(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """What a checkpoint saves; prompts are indices into the source."""
        places = {id(prompt): k for k, prompt in enumerate(prompts)}
        if not self.kept:
            return {}
        return {
            "latents": torch.stack([item.latents for item in self.kept]),
            "prompts": torch.tensor([places[id(item.prompt)] for item in self.kept]),
            "rewards": torch.tensor([item.reward for item in self.kept], dtype=torch.float64),
        }

    def restored(self, tensors: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> Buffer:
        """A buffer like this one, with the contents that `tensors` returned."""
        if not tensors:
            return self
        rows = zip(
            tensors["prompts"].tolist(),
            tensors["latents"],
            tensors["rewards"].tolist(),
            strict=True,
        )
        kept = tuple(Kept(prompts[k], latents, reward) for k, latents, reward in rows)
        return Buffer(self.capacity, self.per_prompt, kept)


def _latents(here: Trajectories, wanted: set[int], processes: Processes) -> dict[int, Tensor]:
    """Latents of the trajectories with these numbers, whichever process has them."""

    def own() -> dict[int, Tensor]:
        numbers = here.index.tolist()
        return {
            k: here.latents[row].to("cpu", copy=True)
            for row, k in enumerate(numbers)
            if k in wanted
        }

    return {k: latents for part in processes.share(own) for k, latents in part.items()}


def draw(kept: Sequence[Kept], count: int, source: torch.Generator, alike: int = 1) -> list[Kept]:
    """`count` of them, each equally likely, with replacement; `alike` in a row share a text.

    Those of one text are different as long as there are others of that text.
    """
    drawn: list[Kept] = []
    while len(drawn) < count:
        one = kept[int(torch.randint(len(kept), (), generator=source))]
        group = [one]
        if alike > 1:
            others = [x for x in kept if x.prompt.text == one.prompt.text and x is not one]
            order = torch.randperm(len(others), generator=source).tolist()
            group += [others[k] for k in order]
        drawn += (group * alike)[:alike]
    return drawn[:count]


def renoised(path: GaussianPath, kept: list[Kept], source: torch.Generator) -> Tensor:
    """New trajectories (B, T+1, C, H, W) to the same terminal states, drawn backward from q.

    A given picture has no noise. If the path ends before the image itself, its terminal state gets
    the noise of the path's end.
    """
    terminal = torch.stack([_terminal(path, item, source) for item in kept])
    noise = torch.randn(len(kept), path.steps, *terminal.shape[1:], generator=source)
    return noised(path, terminal, noise)


def _terminal(path: GaussianPath, item: Kept, source: torch.Generator) -> Tensor:
    last = item.latents[-1]
    if not (item.is_picture and path.noiseless_end):
        return last
    alpha, sigma = (float(values[-1]) for values in (path.alpha, path.sigma))
    return alpha * last + sigma * torch.randn(last.shape, generator=source)


def given_images(folder: Path, policy: Policy) -> tuple[Kept, ...]:
    """The pictures of a folder as terminal states, with the texts in its metadata.jsonl.

    A line is {"file_name": ..., "text": ...}, as in Hugging Face's image folders. Pictures are
    scaled and cropped to the model's size. Raises UserError if there are none or one is unreadable.
    """
    index = folder / "metadata.jsonl"
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"replay.images = {str(folder)!r}: {index} cannot be read: {error}"
        ) from None
    blank = policy.decode(torch.zeros(1, *policy.latent_shape, device=policy.device))
    height, width = blank.shape[2:]
    found = [
        _given(folder, f"{index}, line {number}", line, policy, (width, height))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"replay.images: {index} names no picture.")
    return tuple(found)


def _given(folder: Path, place: str, line: str, policy: Policy, size: tuple[int, int]) -> Kept:
    try:
        record = json.loads(line)
        name, text = record["file_name"], record["text"]
        with Image.open(folder / name) as picture:
            fitted = ImageOps.fit(upright(picture), size, Image.Resampling.BICUBIC)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f'{place}: {error}. Expected a line {{"file_name": ..., "text": ...}} and its picture.'
        ) from None
    if not is_text(str(text)):
        raise UserError(f"{place}: {text!r} is not plain text in UTF-8.")
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
    latents = policy.encode_images(pixels[None].to(policy.device))
    return Kept(Prompt(str(text)), latents.cpu(), float("nan"))
