"""Do trained weights come back from a file, and does a given LoRA change anything?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dagflow.checks.model import rms
from dagflow.checks.patient import Patient
from dagflow.checks.result import Check, Finding, failed, ok, warning
from dagflow.engine import checkpoint
from dagflow.errors import UserError
from dagflow.policies.loading import load_policy
from dagflow.policies.policy import Policy

SIZE = 0.02  # deviation of what is added to weights that are zero before training
LORA = "--lora"


def adapter_checks(lora: Path | None) -> list[Check]:
    needs = ("policy", "noise levels", "tensors")
    found = [Check("mathematics", "save and load", save_and_load, "lora", needs)]
    if lora is not None:
        ask = partial(given, lora=lora)
        found.append(Check("model", f"LoRA {lora}", ask, LORA, ("loads", "noise levels")))
    return found


def save_and_load(patient: Patient) -> Finding:
    """Nonzero weights, saved and loaded into a fresh model, predict the same."""
    policy, _ = patient.policy_and_path()
    before = policy.weights()
    source = torch.Generator().manual_seed(patient.config.seed)
    changed = {
        name: tensor + SIZE * torch.randn(tensor.shape, generator=source)
        for name, tensor in before.items()
    }
    try:
        plain = prediction(patient, policy)
        policy.set_weights(changed)
        trained = prediction(patient, policy)
        with tempfile.TemporaryDirectory() as folder:
            policy.save_weights(Path(folder))
            other = _fresh(patient)
            other.load_weights(Path(folder))
            loaded = prediction(patient, other)
    finally:
        policy.set_weights(before)
    effect, gap = rms(trained - plain) / rms(plain), float((loaded - trained).abs().max())
    said = f"weights that change predictions by {effect:.2g} come back within {gap:.1g}"
    if not effect:
        return failed("nonzero weights change no prediction", "lora.targets")
    if gap:
        return failed(said, "dtype, or lora", "bit for bit")
    return ok(f"weights that change predictions by {effect:.2g} come back", "bit for bit")


def _fresh(patient: Patient) -> Policy:
    config = patient.config
    scale = config.rollout.guidance_scale
    return load_policy(config.model, config.dtype, patient.device, scale)


@torch.no_grad()
def prediction(patient: Patient, policy: Policy) -> Tensor:
    """The text branch's prediction at a state in the middle of the path, on the CPU."""
    assert patient.path is not None
    noise = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    time = patient.path.timesteps[patient.path.steps // 2].expand(1).to(policy.device)
    embeds = policy.encode(patient.texts()[:1])
    return policy.predict_text(noise.to(policy.device), time, embeds).cpu()


def given(patient: Patient, lora: Path) -> Finding:
    """The LoRA of a folder, or of a run's newest checkpoint, fits and changes this model."""
    folder = newest(lora)
    if (wrong := checkpoint.damage(folder)) and (folder / checkpoint.STATE).exists():
        return failed(f"the checkpoint is damaged: {wrong}", f"{LORA}: an older checkpoint")
    policy = _fresh(patient)
    if not (folder / policy.WEIGHTS_FILE).is_file():
        return failed(f"'{folder}' has no file {policy.WEIGHTS_FILE}", f"{LORA} FOLDER or RUN")
    plain = prediction(patient, policy)
    names = _names(folder / policy.WEIGHTS_FILE)
    try:
        policy.load_weights(folder)
    except UserError as error:
        said = str(error).rstrip(".")
        return failed(f"{said}{_prefixes(names)}", _rename(policy))
    taken = policy.weights()
    effect = rms(prediction(patient, policy) - plain) / rms(plain)
    own = policy.read_weights(folder)
    if lost := sorted(own.keys() - taken.keys()):
        return failed(
            f"{len(lost)} of {len(own)} matrices match no layer, such as {lost[0]}", _rename(policy)
        )
    if not effect and all(not value.any() for key, value in taken.items() if "lora_B" in key):
        return warning("it is untrained: it changes nothing", f"{LORA}: a later checkpoint")
    if not effect:
        return failed(f"it changes nothing{_prefixes(names)}", _rename(policy))
    return ok(f"{len(taken)} matrices change a prediction by {effect:.2g}")


def newest(lora: Path) -> Path:
    """The folder of the weights. Raises UserError if it does not exist or a run has none."""
    if not lora.is_dir():
        raise UserError(f"--lora '{lora}': there is no such folder.")
    if not (lora / "config.toml").is_file():
        return lora
    found = checkpoint.checkpoints(lora / "checkpoints")
    if not found:
        raise UserError(f"the run '{lora}' has no checkpoint yet.")
    return found[-1]


def _names(file: Path) -> Sequence[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _prefixes(names: Sequence[str]) -> str:
    found = sorted({name.partition(".")[0] for name in names})
    return f": its {len(names)} matrices begin with {', '.join(repr(x) for x in found)}"


def _rename(policy: Policy) -> str:
    return (
        f"{LORA}: names in {policy.WEIGHTS_FILE} must be 'unet.' followed by a layer of this "
        f"model's UNet; or model (--model), if the LoRA is for another"
    )
