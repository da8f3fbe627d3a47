"""Will this machine do? Packages, devices, memory, and the place where a run would write."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement

from dagflow.checks.patient import Patient
from dagflow.checks.result import Check, Finding, failed, ok, skipped, warning
from dagflow.engine.learner import Learner
from dagflow.errors import UserError
from dagflow.estimate import Estimate, estimate
from dagflow.plugins import OWN_DISTRIBUTION
from dagflow.policies.shapes import Shapes
from dagflow.prepare import maker_of

MEGABYTE, GIGABYTE = 2**20, 2**30
CHUNK = 4 * MEGABYTE
UNKNOWN_CHECKPOINT = MEGABYTE  # bytes, for a model that does not load
FLOAT = 4  # bytes


def machine_checks() -> list[Check]:
    """Checks that need no model."""
    return [
        Check("machine", "packages", packages, "the versions of the packages named"),
        Check("machine", "torchvision", torchvision_pair, "the pair torch and torchvision"),
        Check("machine", "devices", devices, "dtype"),
    ]


def place_checks() -> list[Check]:
    """Checks that say more once the size of the run is known."""
    return [
        Check("machine", "output", disk, "output (--output)"),
        Check("machine", "needs", needs, "update.microbatch_size", ("objective", "sampling")),
    ]


def packages(patient: Patient) -> Finding:
    """Versions within the bounds of pyproject.toml."""
    try:
        lines = requires(OWN_DISTRIBUTION) or []
    except PackageNotFoundError:
        return warning("dagflow is not installed, it runs from a folder", "pip install -e .")
    wanted = [Requirement(line) for line in lines]
    wanted = [item for item in wanted if not item.marker or item.marker.evaluate({"extra": ""})]
    wrong = {str(item): fault for item in wanted if (fault := _fault(item))}
    if wrong:
        needed = " ".join(f"'{requirement}'" for requirement in wrong)
        return failed("; ".join(wrong.values()), f"pip install {needed}")
    return ok(
        f"torch {version('torch')}, diffusers {version('diffusers')}", f"{len(wanted)} bounds"
    )


def _fault(wanted: Requirement) -> str:
    """What is wrong with a required package; "" if nothing is."""
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is missing"
    fits = wanted.specifier.contains(installed, prereleases=True)
    return "" if fits else f"{wanted.name} {installed} is not {wanted.specifier}"


def torchvision_pair(patient: Patient) -> Finding:
    """Its compiled operators load only beside the torch that they were built for."""
    pair = f"torch {version('torch')} and torchvision {version('torchvision')}"
    try:
        import torchvision

        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(box, torch.ones(1), 0.5)
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        return failed(
            f"{pair} do not fit each other: {reason}",
            "pip install --force-reinstall torch torchvision, both in one command",
        )
    return ok(pair, "operators load")


def devices(patient: Patient) -> Finding:
    """What there is to compute on, and whether it supports the dtype."""
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use"
    if not torch.cuda.is_available():
        memory = _main_memory()
        return ok(f"{cores}" + (f", {memory / GIGABYTE:.1f} GB of memory free" if memory else ""))
    names = []
    for k in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(k)
        size = f"{free / GIGABYTE:.0f} of {total / GIGABYTE:.0f} GB free"
        names.append(f"{torch.cuda.get_device_name(k)}, {size}")
    found = "; ".join([cores, *names])
    if patient.config.dtype != "float32" and not torch.cuda.is_bf16_supported():
        return failed(f"{found}: no bfloat16", "dtype = 'float32' (-s dtype=float32)")
    return ok(found)


def _main_memory() -> int | None:
    """Bytes available, if the system says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = dict(line.split(":") for line in lines)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None


def disk(patient: Patient) -> Finding:
    """Write a file as large as a checkpoint where the run would, and remove it."""
    place = next(path for path in (patient.folder, *patient.folder.parents) if path.is_dir())
    size = checkpoint_bytes(patient.learner, patient) if patient.learner else UNKNOWN_CHECKPOINT
    change = "output (--output DIR), or make room there"
    try:
        _probe(place, size)
    except OSError as error:
        return failed(
            f"a file of {_megabytes(size)}, the size of a checkpoint, cannot be written to "
            f"'{place}': {error.strerror}",
            change,
        )
    free = shutil.disk_usage(place).free
    keep = patient.config.checkpoint.keep + 1 + patient.config.checkpoint.keep_best
    found = f"{_megabytes(size)} written to '{place}', {_megabytes(free)} free"
    limit = f"{keep} checkpoints, {_megabytes(keep * size)}"
    if free < keep * size:
        return warning(found, f"{change}, or checkpoint.keep", limit)
    return ok(found, limit)


def _probe(folder: Path, size: int) -> None:
    """Raises OSError if a file of that size cannot be written and synced."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".dagflow-doctor-") as file:
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))
        file.flush()
        os.fsync(file.fileno())


def checkpoint_bytes(learner: Learner, patient: Patient) -> int:
    """The size of the largest checkpoint.

    It holds the trained weights, now and as they sampled, the objective, AdamW's two moments and
    the replay buffer.
    """
    config, shape = patient.config, learner.policy.latent_shape
    policy, own = (
        sum(parameter.numel() for parameter in parameters)
        for parameters in (learner.policy.parameters(), learner.objective_parameters)
    )
    states = 0
    if (config.replay.share or config.replay.backward) and patient.path:
        states = config.replay.capacity * (patient.path.steps + 1) * torch.Size(shape).numel()
    return FLOAT * (4 * policy + 3 * own + states)


def needs(patient: Patient) -> Finding:
    """Memory and time of the run, counted and timed; memory is compared with what is free."""
    config = patient.config
    try:
        shapes = Shapes(config)
    except UserError as error:
        return skipped(str(error).rstrip("."))
    make = maker_of(patient.registry, "objective", config.objective.name, config.objective)
    with torch.device("meta"):
        found = estimate(config, shapes, make(shapes.spec), 1)
    free = _main_memory()
    if patient.device.type == "cuda":  # what these checks hold is freed when they are done
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    said = f"{found.peak_bytes / MEGABYTE:,.0f} MB at least, {_time(found, patient)}"
    limit = f"{free / MEGABYTE:,.0f} MB free" if free else ""
    if free and found.peak_bytes > free:
        settings = (
            "update.microbatch_size or rollout.batch_size (lower), "
            "machine.gradient_checkpointing or machine.offload (true)"
        )
        return failed(said, settings, limit)
    return ok(said, limit)


def _time(found: Estimate, patient: Patient) -> str:
    """The run's time at the rate of the passes made here."""
    assert patient.trajectories is not None
    count, steps = patient.trajectories.log_pf.shape
    rate = count * steps * found.units["guided forward"].flops / patient.seconds_of_sampling
    hours = found.hours(rate)
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return f"about {shown} at this rollout's rate, without rewards"


def _megabytes(size: int) -> str:
    return f"{size / MEGABYTE:,.1f} MB"
