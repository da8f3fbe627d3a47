"""Published files that plugins read: where they come from, and proof that they are genuine."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dagflow.errors import UserError, described

VARIABLE = "DAGFLOW_WEIGHTS"
READS = "__dagflow_reads__"  # attribute of a factory
CHUNK = 1 << 20  # bytes
SHA256 = re.compile("[0-9a-f]{64}")

Factory = TypeVar("Factory", bound=Callable[..., Any])

_nothing_fetched: ContextVar[bool] = ContextVar("nothing_fetched", default=False)


class Missing(UserError):
    """A file that is not on this machine, in a context where nothing may be fetched."""


@dataclass(frozen=True)
class WeightFile:
    """One published file, pinned: a plugin declares it, and dagflow finds, fetches and checks it.

    It comes from the model hub (`repo` and `revision`, a commit), or from `url` if there is one;
    `repo` is then the name under which it is kept. Without a `sha256`, a file from the hub is
    checked against the hub's own.
    """

    repo: str  # "owner/name"
    filename: str
    revision: str
    size: int  # bytes, approximately
    licence: str
    sha256: str = ""
    url: str = ""
    kind: Literal["model", "dataset"] = "model"  # of the hub's repository

    @property
    def name(self) -> str:
        """The file's name in commands, and its path in the folder DAGFLOW_WEIGHTS."""
        return f"{self.repo}/{self.filename}"

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return self.url or f"the model hub (revision {self.revision[:12]})"


def reads(*files: WeightFile) -> Callable[[Factory], Factory]:
    """Declare which files a factory may read, for `dagflow weights`."""

    def mark(factory: Factory) -> Factory:
        setattr(factory, READS, files)
        return factory

    return mark


def files_read_by(factory: Callable[..., Any]) -> tuple[WeightFile, ...]:
    """The files that `reads` declared for a factory."""
    files: tuple[WeightFile, ...] = getattr(factory, READS, ())
    return files


def locate(file: WeightFile, folder: str = "") -> Path:
    """The path of the file, checked; fetched first if it is not on this machine.

    With a `folder` it is the file of that name there, directly or below `repo`: the user's own,
    not compared with the published one. Raises UserError if the file is not here and cannot be
    fetched, or is not the published one.
    """
    if folder:
        return _own(file, Path(folder).expanduser())
    path = find(file)
    if path is None:
        if _nothing_fetched.get():
            raise Missing(f"{file.name} is not on this machine: run `{pull_command(file)}`.")
        return pull(file)
    check(file, path)
    return path


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside this context `locate` raises Missing instead of fetching a file."""
    token = _nothing_fetched.set(True)
    try:
        yield
    finally:
        _nothing_fetched.reset(token)


def find(file: WeightFile) -> Path | None:
    """The file on this machine, unchecked: in the folder DAGFLOW_WEIGHTS, or fetched earlier.

    Raises UserError if DAGFLOW_WEIGHTS is set and there is no such folder.
    """
    candidates = [_cached_download(file) if file.url else _cached_by_the_hub(file)]
    if name := os.environ.get(VARIABLE):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"{VARIABLE} = '{name}': there is no such folder.")
        candidates.insert(0, folder / file.name)
    return next((path for path in candidates if path and path.is_file()), None)


def pull(file: WeightFile, progress: Callable[[int], None] | None = None) -> Path:
    """Fetch the file into the cache and check it. Raises UserError if either fails.

    For a file with a `url`, `progress` is called with the number of bytes of each chunk; the hub's
    client shows its own progress bar.
    """
    try:
        path = _download(file, progress) if file.url else _download_from_the_hub(file)
    except UserError:
        raise
    except Exception as error:  # two clients, each with its own exceptions
        reason = described(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{file.name} ({megabytes(file.size)}) is not on this machine, and could not be "
            f"fetched from {file.source}: {reason}. With a network, `{pull_command(file)}` fetches "
            f"it; or set {VARIABLE} to a folder that holds {file.name}."
        ) from None
    check(file, path)
    return path


def check(file: WeightFile, path: Path) -> str:
    """Compare with the published sha256; return it, or "" if none is known. Raises UserError."""
    expected = file.sha256 or _hubs_own(path)
    if expected and (wrong := _difference(path, expected, file)):
        raise UserError(
            f"{path} is not the published {file.filename}: {wrong}. Delete "
            f"{path.resolve()} and run `{pull_command(file)}`."
        )
    return expected


def megabytes(size: int) -> str:
    if size < 1e5:
        return f"{size / 1e3:,.0f} kB"
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"


def pull_command(file: WeightFile) -> str:
    """The command that fetches the file."""
    return f"dagflow weights pull {shlex.quote(file.name)}"


def _own(file: WeightFile, folder: Path) -> Path:
    for path in (folder / file.name, folder / file.filename):
        if path.is_file():
            return path
    raise UserError(
        f"weights = '{folder}': that folder has neither {file.name} nor {file.filename}."
    )


def _difference(path: Path, expected: str, file: WeightFile) -> str:
    """The difference in words; "" if there is none."""
    import hashlib  # `dagflow --help` does without it

    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == expected:
        return ""
    size = f"{path.stat().st_size:,} bytes of about {file.size:,}"
    return f"its sha256 is {found}, not {expected} ({size})"


def _hubs_own(path: Path) -> str:
    """The sha256 by which the hub's cache names the content of a large file, or ""."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else ""


def _cached_by_the_hub(file: WeightFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(
        file.repo, file.filename, revision=file.revision, repo_type=file.kind
    )
    return Path(path) if isinstance(path, str) else None


def _download_from_the_hub(file: WeightFile) -> Path:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(file.repo, file.filename, revision=file.revision, repo_type=file.kind)
    return Path(path)


def _cached_download(file: WeightFile) -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME, "dagflow", file.repo, file.revision, file.filename)


def _download(file: WeightFile, progress: Callable[[int], None] | None) -> Path:
    """Write to a temporary folder, check, and only then move into place."""
    from filelock import FileLock
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():
        raise ConnectionError("HF_HUB_OFFLINE is set")
    target = _cached_download(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / ".lock"):  # one process on a machine fetches, others wait
        return target if target.is_file() else _fetch(file, target, progress)


def _fetch(file: WeightFile, target: Path, progress: Callable[[int], None] | None) -> Path:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unchecked = Path(folder, target.name)
        with unchecked.open("wb") as stream:
            for chunk in _chunks(file.url):
                stream.write(chunk)
                if progress:
                    progress(len(chunk))
        if file.sha256 and (wrong := _difference(unchecked, file.sha256, file)):
            raise UserError(f"{file.url} returned something other than {file.name}: {wrong}.")
        os.replace(unchecked, target)
    return target


def _chunks(url: str) -> Iterator[bytes]:
    import httpx2

    with httpx2.stream("GET", url, follow_redirects=True, timeout=60) as response:
        response.raise_for_status()
        yield from response.iter_bytes(CHUNK)
