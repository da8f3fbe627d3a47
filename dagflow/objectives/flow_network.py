"""F_phi: the learned part of the log-flow of a state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor, nn

from dagflow import PolicySpec

GROUPS = 8
HEADS = 4
HEAD_CHANNELS = 16  # no head is narrower: attention's cost depends on heads, not on channels


class FlowNetwork(nn.Module):
    """The down half of a UNet with cross-attention on the prompt, pooled to one number.

    Zhang et al., appendix on the flow network: channels (64, 128, 256, 256), global average pool,
    one linear output, float32 (but see `attend_in_bfloat16`). Attention has four heads if each
    gets at least 16 channels, as with those widths, and fewer in narrower levels. The output layer
    starts at zero, so log F~ = 0 before training.
    """

    def __init__(self, spec: PolicySpec, channels: Sequence[int]) -> None:
        super().__init__()
        width = channels[0]
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width)
        self.conv_in = nn.Conv2d(spec.latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            CrossAttnDownBlock2D(
                in_channels=before,
                out_channels=after,
                temb_channels=4 * width,
                resnet_groups=GROUPS,
                num_attention_heads=heads(after),
                cross_attention_dim=spec.cross_attention_dim,
                add_downsample=last is False,
            )
            for before, after, last in _levels(channels)
        )
        self.norm = nn.GroupNorm(GROUPS, channels[-1])
        self.head = nn.Linear(channels[-1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """log F~ (B,) of latents (B, C, H, W) at timesteps (B,), for prompt_embeds (B, L, E)."""
        emb = self.time_embedding(self.time_proj(timesteps))
        hidden = self.conv_in(latents)
        for block in self.blocks:
            hidden, _ = block(hidden, emb, encoder_hidden_states=prompt_embeds)
        pooled = torch.nn.functional.silu(self.norm(hidden)).mean((2, 3))
        return self.head(pooled).squeeze(1)  # type: ignore[no-any-return]

    def attend_in_bfloat16(self) -> None:
        """Run attention in bfloat16, because CUDA has no fast kernels for it in float32.

        dagflow calls this if a flow network has it and the policy is bfloat16 on CUDA.
        """
        for layer in self.modules():
            if isinstance(layer, Attention):
                layer.set_processor(Bfloat16Attention())


class Bfloat16Attention(AttnProcessor2_0):  # type: ignore[misc]
    """diffusers' attention under autocast; its layers stay float32."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast(hidden_states.device.type, torch.bfloat16):
            return super().__call__(  # type: ignore[no-any-return]
                attn, hidden_states, encoder_hidden_states, attention_mask
            )


def heads(channels: int) -> int:
    """Attention heads of a level: the most that divide its channels and respect both limits."""
    fitting = (n for n in range(2, HEADS + 1) if channels % n == 0)
    return max((n for n in fitting if channels // n >= HEAD_CHANNELS), default=1)


def _levels(channels: Sequence[int]) -> list[tuple[int, int, bool]]:
    """(channels before, after, whether it is the last) of each level."""
    before = [channels[0], *channels[:-1]]
    last = len(channels) - 1
    return [(before[k], channels[k], k == last) for k in range(len(channels))]
