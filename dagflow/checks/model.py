"""Is the model complete, are its dtypes right, and does it listen to its prompts?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dagflow.checks.patient import Patient
from dagflow.checks.result import Check, Finding, failed, ok, skipped
from dagflow.checks.scheduler import noise_levels, settings
from dagflow.checks.tokenizer import special_tokens, vocabulary, words
from dagflow.engine.machine import prepare_policy
from dagflow.policies.loading import EMBEDDED, load_pipeline, load_policy, resolve_dtype
from dagflow.policies.loading import source_folder as folder_of
from dagflow.policies.unconditional import Unconditional

PARTS = ("unet", "vae", "text_encoder")
HEARD = 1e-4  # share of a prediction's size by which another prompt must change it
BEFORE = ("loads",)
TEXTS = ("a red cat", "a blue bird")


def model_checks() -> list[Check]:
    """The checks of a pipeline's parts come before that of the policy made from it."""
    parts = ("dtypes", "text encoder", "vocabulary", "special tokens", "scheduler")
    whole = ("tensors", "noise levels")
    tokenizer = "model: its folder tokenizer"
    scheduler = "rollout.num_inference_steps, or the model's scheduler_config.json"
    return [
        Check("model", "loads", loads, "model (--model)"),
        Check("model", "dtypes", dtypes, "dtype", BEFORE),
        Check("model", "tensors", tensors, "model: the files of the part named", BEFORE),
        Check("model", "text encoder", text_encoder, "model: its folder text_encoder", BEFORE),
        Check("model", "vocabulary", vocabulary, tokenizer, BEFORE),
        Check("model", "special tokens", special_tokens, tokenizer, BEFORE),
        Check("model", "prompts in tokens", words, tokenizer, ("vocabulary", "special tokens")),
        Check("model", "scheduler", settings, scheduler, BEFORE),
        Check("model", "noise levels", noise_levels, scheduler, BEFORE),
        Check("model", "policy", policy, "model (--model)", parts),
        Check("model", "prompts matter", prompts_matter, "model (--model)", ("policy", *whole)),
    ]


def loads(patient: Patient) -> Finding:
    """Load it as a run does; if a pipeline makes no policy, load the pipeline, to see why."""
    config = patient.config
    try:
        patient.policy = load_policy(
            config.model,
            config.dtype,
            patient.device,
            config.rollout.guidance_scale,
            config.rollout.preview_decoder,
        )
        patient.pipeline = getattr(patient.policy, "pipeline", None)
        return ok(f"{config.model}, {_size(patient.policy.networks().values())}")
    except Exception as error:
        if config.model.startswith(("world:", "ddpm:")):
            raise
        patient.pipeline = load_pipeline(config.model, resolve_dtype(config.dtype, patient.device))
        patient.refusal = error
    networks = [getattr(patient.pipeline, name) for name in PARTS]
    return ok(f"{config.model}, {_size(networks)}")


def _size(networks: Any) -> str:
    count = sum(p.numel() for network in networks for p in network.parameters())
    return f"{count / 1e6:,.1f} M parameters"


def _networks(patient: Patient) -> dict[str, nn.Module]:
    if patient.pipeline is not None:
        found = {name: getattr(patient.pipeline, name) for name in PARTS}
        return found | (patient.policy.networks() if patient.policy else {})
    assert patient.policy is not None
    return patient.policy.networks()


def dtypes(patient: Patient) -> Finding:
    """Every part has the one dtype that the configuration names."""
    due = resolve_dtype(patient.config.dtype, patient.device)
    networks = _networks(patient)
    found = {
        name: sorted({_short(p.dtype) for p in network.parameters()})
        for name, network in networks.items()
    }
    wrong = {name: kinds for name, kinds in found.items() if kinds != [_short(due)]}
    if not wrong:
        return ok(f"{', '.join(found) or 'no network'}: {_short(due)}", f"dtype = {_short(due)}")
    said = "; ".join(f"the {name} is {' and '.join(kinds)}" for name, kinds in wrong.items())
    if "float16" in wrong.get("vae", []) and patient.pipeline.vae.config.force_upcast:
        said += ", in which this VAE is known to overflow"
    kinds = {kind for kinds in wrong.values() for kind in kinds}
    change = "" if kinds - {"float32", "bfloat16"} else f"dtype = '{kinds.pop()}', or "
    classes = ", ".join(f"{type(networks[name]).__name__} ({name})" for name in wrong)
    return failed(
        said,
        f"{change}the class: dtype is {patient.config.dtype!r}, but {classes} keeps its own, so "
        f"name diffusers' class in the model's model_index.json, or remove the cast",
        f"dtype = {_short(due)}",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensors(patient: Patient) -> Finding:
    """All weights are finite, and none is random because its file lacks it."""
    for name, network in _networks(patient).items():
        for key, tensor in network.named_parameters():
            if not tensor.isfinite().all():
                return failed(f"{name}: {key} has values that are not finite")
    if patient.pipeline is None:
        return ok("all are finite")
    source = folder_of(patient.config.model, EMBEDDED) or patient.config.model
    for name in PARTS:
        missing = _missing(getattr(patient.pipeline, name), source, name)
        if missing:
            return failed(
                f"{name}: {len(missing)} tensors are missing from its file and so are random, "
                f"such as {missing[0]}",
                f"model: put the complete file back into {source}/{name}",
            )
    return ok("all are finite, and from the model's files")


def _missing(network: Any, source: Path | str, name: str) -> list[str]:
    """Names of the tensors that a part's files lack."""
    kind = type(network)
    _, found = kind.from_pretrained(source, subfolder=name, output_loading_info=True)
    return sorted(found["missing_keys"])


def text_encoder(patient: Patient) -> Finding:
    """The UNet attends to embeddings as wide as this encoder's."""
    if patient.pipeline is None:
        return skipped("this model reads no prompt")
    unet, text = patient.pipeline.unet.config, patient.pipeline.text_encoder.config
    found = f"hidden_size = {text.hidden_size}"
    limit = f"cross_attention_dim = {unet.cross_attention_dim}"
    if text.hidden_size != unet.cross_attention_dim:
        return failed(
            f"the text encoder has {found}, but the UNet {limit}",
            "model: put the one that the UNet was trained with back into its text_encoder folder",
            limit,
        )
    return ok(found, limit)


def policy(patient: Patient) -> Finding:
    """The pipeline can be trained, and its LoRA finds layers. Raises what loading raises."""
    if patient.policy is None:
        assert patient.refusal is not None
        raise patient.refusal
    patient.policy.add_weights(patient.config.lora, patient.config.seed)
    alone = patient.config.machine.model_copy(update={"shard": False})
    prepare_policy(patient.policy, alone)
    count = sum(p.numel() for p in patient.policy.parameters())
    shape = " x ".join(map(str, patient.policy.latent_shape))
    return ok(f"states of {shape}, {count:,} parameters to train")


@torch.no_grad()
def prompts_matter(patient: Patient) -> Finding:
    """Two prompts give two different predictions."""
    chosen, path = patient.policy_and_path()
    if isinstance(chosen, Unconditional):
        return skipped("this model reads no prompt")
    texts = [*dict.fromkeys([*patient.texts(), *TEXTS])][:2]
    noise = torch.randn(1, *chosen.latent_shape, generator=torch.Generator().manual_seed(0))
    times = path.timesteps[path.steps // 2].expand(2).to(chosen.device)
    states = noise.expand(2, -1, -1, -1).to(chosen.device)
    both = chosen.predict_text(states, times, chosen.encode(texts))
    found = rms(both[0] - both[1]) / rms(both)
    said = f"'{texts[0]}' and '{texts[1]}' differ by {found:.2g} of the prediction"
    if not found > HEARD:
        change = "model: its text_encoder and its UNet do not belong together"
        return failed(said, change, f"at least {HEARD:g}")
    return ok(said, f"at least {HEARD:g}")


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.float().pow(2).mean().sqrt())
