"""Rewards of intermediate states under the current network (`potential = "current"`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.engine.learner import Learner
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.engine.window import Window, sent
from dagflow.profiling import span


class CurrentPotentials:
    """The rewards of a window's states, each asked once, when the network first passes there.

    They score the decoded x0hat of the text branch. The pass of a micro-batch gives those of the
    states where its transitions begin. The state that ends its last transition began the
    micro-batch processed before it, because micro-batches go backward in time.
    """

    def __init__(
        self,
        learner: Learner,
        window: Window,
        rewards: Sequence[WeightedReward],
        states: Iterable[int],
    ) -> None:
        """`states`: those of each trajectory that have a potential; it is zero at others."""
        self._learner, self._rewards = learner, rewards
        self.window = window.with_potentials(window.potentials.clone())
        self._missing = torch.zeros(window.potentials.shape, dtype=torch.bool)
        self._missing[:, list(states)] = True
        self._asked: list[tuple[Tensor, Tensor, Scores]] = []

    @torch.no_grad()
    def see(self, part: Window, text: Tensor) -> None:
        """Ask about the states where some rows begin; text: the network's output (M, C, H, W)."""
        new = self._missing[part.rows.unbind(1)].nonzero().flatten()
        if not len(new):
            return
        rows = part.rows[new]
        b, i = part.part(rows).places
        policy, trajectories = self._learner.policy, self.window.trajectories
        state = gaussian.state_at(self.window.path, i)
        x0 = policy.predicted_x0(state, trajectories.latents[b, i], text[sent(new, text.device)])
        prompts = [trajectories.prompts[k] for k in rows[:, 0].tolist()]
        with span("decode"):
            images = policy.preview(x0)
        self._asked.append((b, i, ask(self._rewards, images, prompts)))
        self._missing[rows.unbind(1)] = False

    def settle(self) -> None:
        """Wait for all pending scores."""
        for b, i, scores in self._asked:
            self.window.potentials[b, i] = total(self._rewards, scores())
        self._asked.clear()

    @torch.no_grad()
    def complete(self, part: Window) -> None:
        """Pass the states at either end of these rows that have not been passed yet, and settle."""
        rows = torch.cat([part.rows, part.rows + torch.tensor([0, 1])]).unique(dim=0)
        rows = rows[self._missing[rows.unbind(1)]]
        policy, trajectories = self._learner.policy, self.window.trajectories
        for missing in part.part(rows).parts(self._learner.settings.microbatch_size):
            b, i = missing.places
            times = self.window.path.times(i)
            embeds = trajectories.prompt_embeds[b]
            with span("forward"):
                text = policy.predict_text(trajectories.latents[b, i], times, embeds)
            self.see(missing, text)
        self.settle()
