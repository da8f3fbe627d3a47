"""First-party rewards, written against dagflow's public API alone."""

from __future__ import annotations

from collections.abc import Mapping

from dagflow import Reward, RewardFactory, hookimpl


def jpeg_incompressibility(quality: int = 95) -> Reward:
    """Size of the image as a JPEG file, in kB."""
    from dagflow_rewards.jpeg import JpegSize

    return JpegSize(quality, sign=1)


def jpeg_compressibility(quality: int = 95) -> Reward:
    """Minus the size of the image as a JPEG file, in kB."""
    from dagflow_rewards.jpeg import JpegSize

    return JpegSize(quality, sign=-1)


@hookimpl
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    return {
        "jpeg-compressibility": jpeg_compressibility,
        "jpeg-incompressibility": jpeg_incompressibility,
    }
