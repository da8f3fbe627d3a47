"""The model card of an export: what was trained, on what, and how to draw with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from dagflow import __version__, weights
from dagflow.alarms import Alarm
from dagflow.config import Config, OpenTable
from dagflow.errors import UserError
from dagflow.intervals import student
from dagflow.plugins import Registry
from dagflow.policies.loading import EMBEDDED
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.weights import WeightFile

LORA = StableDiffusionPolicy.WEIGHTS_FILE
KOHYA = "kohya_lora_weights.safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
TEMPLATE = "templates/model_card.md.jinja"
TAGS = ["text-to-image", "stable-diffusion", "diffusers", "gflownet", "dagflow"]
PROPORTION = "to draw pictures in proportion to exp(beta * reward)"
AIMS = {
    **dict.fromkeys(("kl", "db", "tb", "vargrad", "subtb"), PROPORTION),
    **dict.fromkeys(("rtb", "residual-db"), f"{PROPORTION} times the base model's density"),
    **dict.fromkeys(("ddpo", "grpo"), "to draw pictures with a higher reward"),
}
COMPARED = {
    "before-after.png": "The base model above, this model below, on the same prompts and noise.",
    "ranked-trained.png": "Held-out pictures: the best, the median and the worst by reward.",
}


@dataclass(frozen=True)
class Trained:
    """One checkpoint of a run."""

    run: Path
    checkpoint: Path
    is_newest: bool
    config: Config

    @property
    def state(self) -> dict[str, Any]:
        """The progress of the run at this checkpoint."""
        return _json(self.checkpoint / "state.json")

    @property
    def report(self) -> dict[str, Any]:
        """What was measured on this very checkpoint; empty if nothing was."""
        found = _json(self.run / "report.json")
        known = found.get("checkpoint") or (self.checkpoint.name if self.is_newest else "")
        return found if known == self.checkpoint.name else {}

    def pictures(self) -> dict[str, str]:
        """Captions of this checkpoint's pictures, by file name in the run's samples/."""
        name = f"{self.checkpoint.name}.png"
        grid = {name: "Held-out pictures of this checkpoint."}
        wanted = COMPARED if self.report else grid
        return {k: v for k, v in wanted.items() if (self.run / "samples" / k).is_file()}


@dataclass(frozen=True)
class Wishes:
    """What the person who exports asks for."""

    prompts: tuple[str, ...]  # of the example
    fused: bool = False
    base_model: str = ""  # its id on the hub, if the run loaded it from elsewhere
    license: str = ""  # as the hub writes it

    def __post_init__(self) -> None:
        if self.base_model and not HUB_ID.fullmatch(self.base_model):
            raise UserError(f"--base-model {self.base_model}: expected an id such as owner/name.")


def card(trained: Trained, wishes: Wishes, registry: Registry, drawn: Sequence[str] = ()) -> str:
    """The text of README.md. `drawn`: files of the example's pictures."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "repr": repr}
    template = (resources.files("dagflow") / TEMPLATE).read_text(encoding="utf-8")
    config, report = trained.config, trained.report
    base = wishes.base_model or config.model
    in_module = base in EMBEDDED
    words = {
        "front_matter": _front_matter(trained, wishes, drawn),
        "title": trained.run.resolve().name,
        "fused": wishes.fused,
        "base": f"{base}, the model that comes with dagflow" if in_module else base,
        "base_module": in_module and not wishes.fused,
        "base_code": f'files("dagflow") / "{EMBEDDED[base]}"' if in_module else repr(base),
        "dagflow": __version__,
        "license": wishes.license,
        "pictures": [(f"samples/{name}", text) for name, text in trained.pictures().items()],
        "prompts": wishes.prompts,
        "dtype": _dtype(config),
        "num_inference_steps": config.rollout.num_inference_steps,
        "guidance_scale": config.rollout.guidance_scale,
        "settings": list(_settings(trained)),
        "rewards": [_reward(registry, label, config) for label in config.rewards],
        "files": _files(registry, config),
        "images": report.get("images"),
        "measured": list(_measured(report)),
        "alarms": list(_alarms(report)),
        "aim": AIMS.get(config.objective.name, f"with the objective {config.objective.name}"),
        "lora_file": LORA,
        "kohya_file": KOHYA,
    }
    return environment.from_string(template).render(words)


def _front_matter(trained: Trained, wishes: Wishes, drawn: Sequence[str]) -> str:
    """The hub's YAML. The hub knows only base models that have an id there."""
    from huggingface_hub import ModelCardData

    base = wishes.base_model or trained.config.model
    on_the_hub = HUB_ID.fullmatch(base) and not Path(base).exists()
    shown = zip(wishes.prompts, drawn, strict=False)
    return ModelCardData(
        base_model=base if on_the_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=wishes.license or None,
        tags=[*TAGS, *([] if wishes.fused else ["lora"])],
        widget=[{"text": text, "output": {"url": file}} for text, file in shown] or None,
    ).to_yaml()


def _dtype(config: Config) -> str:
    """The dtype as `resolve_dtype` decides it, as code."""
    if config.dtype == "auto":
        return 'torch.bfloat16 if device == "cuda" else torch.float32'
    return f"torch.{config.dtype}"


def _settings(trained: Trained) -> Iterator[tuple[str, object]]:
    config, state = trained.config, trained.state
    objective, lora = config.objective, config.lora
    beta = state.get("beta") or objective.beta
    found = f" (found for {objective.beta})" if objective.divergence is not None else ""
    yield "checkpoint", f"{trained.checkpoint.name}: {state.get('update', 0)} updates"
    yield "objective", _with_options(objective.name, objective)
    yield "beta", f"{beta}{found}, on the {objective.log_density} of log-densities"
    yield "prompts", _with_options(config.prompts.name, config.prompts)
    yield "num_inference_steps", config.rollout.num_inference_steps
    yield "guidance_scale", config.rollout.guidance_scale
    yield "LoRA", f"rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.targets)}"
    yield "learning rate", config.update.learning_rate
    yield "seed", config.seed


def _with_options(name: str, table: OpenTable) -> str:
    return f"{name} ({_options(table)})" if table.options else name


def _options(table: OpenTable) -> str:
    return ", ".join(f"{key} = {value}" for key, value in table.options.items())


def _reward(registry: Registry, label: str, config: Config) -> dict[str, object]:
    table = config.rewards[label]
    name = (table.name or label).partition(":")[0]
    try:
        found = registry.find("reward", name)
        origin = f"{found.distribution} {found.version}"
    except UserError:
        origin = "not installed where this card was written"
    return {
        "label": label if name == label else f"{label} ({name})",
        "weight": table.weight,
        "options": _options(table),
        "origin": origin,
    }


def _files(registry: Registry, config: Config) -> list[dict[str, str]]:
    names = {(table.name or label).partition(":")[0] for label, table in config.rewards.items()}
    read = {
        file.name: {**asdict(file), "name": file.name, "sha256": _sha256(file)}
        for item in registry.provided
        if item.kind == "reward" and item.name in names
        for file in weights.files_read_by(item.factory)
    }
    return list(read.values())


def _sha256(file: WeightFile) -> str:
    """The file's sha256; "" if unknown."""
    path = None if file.sha256 else weights.find(file)
    return weights.check(file, path) if path else file.sha256


def _measured(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Table rows of what a report compares, as far as it does."""
    images = report.get("images") or 0
    for name, numbers in [("total reward", report.get("reward")), *_by_label(report)]:
        if numbers and numbers.get("trained") is not None:
            yield _row(name, numbers, images)
    for name in ("diversity", "vendi"):
        numbers = report.get(name) or {}
        if numbers.get("trained") is not None:
            yield _row(name, numbers, images)
    kl = (report.get("drift") or {}).get("kl")
    if kl is not None:
        yield {"name": "KL from the base, nats", "base": "", "trained": f"{kl:.4g}", "note": ""}
    temperature = report.get("temperature") or {}
    if None not in (temperature.get("slope"), temperature.get("due")):
        yield {
            "name": "slope of log-density against reward",
            "base": "",
            "trained": f"{temperature['slope']:.4g}",
            "note": f"{temperature['due']:.4g} if in proportion",
        }


def _alarms(report: Mapping[str, Any]) -> Iterator[str]:
    known = {field.name for field in fields(Alarm)}
    for alarm in report.get("alarms") or ():
        if known <= alarm.keys():
            yield str(Alarm(**{name: alarm[name] for name in known}))


def _by_label(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any] | None]]:
    rewards = report.get("rewards") or {}
    return [
        (label if (numbers or {}).get("trained_on", True) else f"{label} (measured only)", numbers)
        for label, numbers in rewards.items()
    ]


def _row(name: str, numbers: Mapping[str, Any], images: int) -> dict[str, str]:
    base, now = numbers.get("base"), numbers["trained"]
    error, wins = numbers.get("standard_error_of_change"), numbers.get("win_rate")
    notes = []
    if error is not None and base is not None and images > 1:
        notes.append(f"change {now - base:+.4g} +- {student(images) * error:.2g} (95 %)")
    if wins is not None:
        notes.append(f"better in {wins:.0%} of pairs")
    return {
        "name": name,
        "base": "" if base is None else f"{base:.4g}",
        "trained": f"{now:.4g}",
        "note": ", ".join(notes),
    }


def _cell(value: object) -> str:
    """A value as a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _json(file: Path) -> dict[str, Any]:
    """A JSON object, empty if there is no file. Raises UserError for any other content."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{file}' is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"'{file}' is not as dagflow writes it: expected a JSON object.")
    return found
