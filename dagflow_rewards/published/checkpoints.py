"""Read a checkpoint file without running any code in it, and load it strictly into a model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dagflow import UserError

State = dict[str, Tensor]


def read_state(path: Path) -> State:
    """The tensors of a safetensors or torch file, on the CPU.

    Pickled code is never run. Raises UserError for a file that is damaged, is not a mapping of
    names to tensors, or would need to run code.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # for a damaged file torch raises whatever it ran into
        raise UserError(
            f"{path} is not a checkpoint that can be read safely: {_reason(error)}. It must hold "
            f"only tensors, in safetensors or torch's format; nothing in it was run."
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path} does not hold a mapping of names to tensors.")
    return state


def load_strictly(model: nn.Module, state: State, path: Path) -> None:
    """Load a state of which every key and shape must fit. Raises UserError."""
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"{path} does not fit {type(model).__name__}: {reason[:300]}") from None


def shape(state: State, key: str, rank: int, path: Path) -> torch.Size:
    """The shape of one tensor, which identifies an architecture. Raises UserError without it."""
    if key not in state or state[key].ndim != rank:
        raise UserError(
            f"{path} is not the expected kind of checkpoint: it has no tensor '{key}' with {rank} "
            f"dimensions."
        )
    return state[key].shape


def layers(state: State, prefix: str) -> int:
    """The number of layers `prefix`0, `prefix`1, ..."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def _read_torch(path: Path) -> object:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state["state_dict"] if isinstance(state, dict) and "state_dict" in state else state


def _reason(error: Exception) -> str:
    text = str(error).strip() or "it is empty or cut short"
    return text.splitlines()[0].rstrip(".:")
