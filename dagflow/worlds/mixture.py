"""A mixture of Gaussians, about which everything is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Sum over k of weights[k] N(means[k], std^2), in D dimensions."""

    weights: Tensor  # (K,) float64, summing to 1
    means: Tensor  # (K, D) float64
    std: float

    def on(self, device: torch.device) -> Mixture:
        """The same mixture on a device."""
        return Mixture(self.weights.to(device), self.means.to(device), self.std)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats, (B,) for x (B, D)."""
        return self._log_parts(x).logsumexp(1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability (B, K) that x (B, D) came from each component."""
        return self._log_parts(x).softmax(1)

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest component, ignoring weights, (B,) int64."""
        return torch.cdist(x, self.means.to(x)).argmin(1)

    def sample(self, count: int, source: torch.Generator) -> Tensor:
        """Samples (count, D), float32."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=source)
        noise = torch.randn(count, self.means.shape[1], generator=source)
        return self.means[chosen].float() + self.std * noise

    def denoised(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, tilt: Tensor | None = None
    ) -> Tensor:
        """E[x_0 | x] (B, D) of x = alpha x_0 + sigma noise, where x_0 has this law.

        alpha and sigma are (B, 1). With a `tilt` (B, K) the components' weights are multiplied by
        its exponential.
        """
        means = self.means.to(x)
        variance = self.std**2
        spread = alpha**2 * variance + sigma**2
        closeness = alpha * (x @ means.T) - alpha**2 * (means**2).sum(1) / 2  # less |x|^2 / 2
        logits = self.weights.to(x).log() + closeness / spread
        probabilities = (logits if tilt is None else logits + tilt).softmax(1)
        share = alpha * variance / spread  # E[x_0 | x] is mean + share * (x - alpha * mean)
        return share * x + (1 - share * alpha) * (probabilities @ means)

    def before_noise(self, alpha: float, sigma: float) -> Mixture:
        """The law of x_0 for which alpha x_0 + sigma noise has this law; needs sigma below std."""
        return Mixture(self.weights, self.means / alpha, math.sqrt(self.std**2 - sigma**2) / alpha)

    def _log_parts(self, x: Tensor) -> Tensor:
        squares = torch.cdist(x, self.means.to(x), compute_mode="donot_use_mm_for_euclid_dist") ** 2
        constant = x.shape[1] * math.log(2 * math.pi * self.std**2) / 2
        return self.weights.to(x).log() - squares / (2 * self.std**2) - constant
