"""The well-known baselines: clipped policy gradients, which maximise and do not balance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dagflow import Needs, Transitions
from dagflow.objectives.groups import advantages

LARGEST = 5.0  # advantage


class ClippedPolicyGradient:
    """max(-A r, -A clip(r)) for each transition, with r = p / p_old for one latent value.

    DDPO: Black et al., "Training diffusion models with reinforcement learning", 2023, equation 4
    (IS), with statistics for each prompt. GRPO (`grouped`): Shao et al., 2024, as Liu et al.,
    "Flow-GRPO", 2025, apply it to diffusion: statistics only of the prompt's own images in the
    window, and optionally a penalty on leaving the base model.
    """

    def __init__(self, clip: float, grouped: bool, kl_coefficient: float = 0.0) -> None:
        self.clip, self.grouped, self.kl_coefficient = clip, grouped, kl_coefficient
        self.needs = Needs(
            rewards=True,
            window=True,
            on_policy=True,
            groups=grouped,
            log_p_base=kl_coefficient > 0,
        )

    def __call__(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        advantage = advantages(batch, self.grouped).clamp(-LARGEST, LARGEST)
        ratio = ((batch.log_pf - batch.log_pf_old) / batch.scale).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        metrics = {"advantage_abs": advantage.abs(), "clip_fraction": (ratio != clipped).float()}
        if self.kl_coefficient:
            loss = loss + self.kl_coefficient * self._penalty(batch)
        return batch.scale**2 * loss, metrics

    def _penalty(self, batch: Transitions) -> Tensor:
        """e^d - d - 1 with d = log p_base - log p, on the scale of one latent value.

        For D = 1 this is an unbiased estimate of KL(p || p_base) (Schulman, "Approximating KL
        divergence", 2020). For larger D, d is a mean over the values and the penalty is weaker.
        """
        assert batch.log_p_base is not None
        d = ((batch.log_p_base - batch.log_pf) / batch.scale).clamp(max=LARGEST)
        return d.exp() - d - 1
