"""Trackers that receive what a run logs, through accelerate: TensorBoard, wandb, Trackio.

They affect nothing. A tracker that fails is dropped, and the run continues.
"""

from __future__ import annotations

import importlib.metadata
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from packaging.version import Version

from dagflow.config import Config
from dagflow.engine.metrics import Record
from dagflow.errors import RunError, UserError, described

if TYPE_CHECKING:
    from accelerate.tracking import TensorBoardTracker

LEAST = {"tensorboard": "2.20", "trackio": "0.43", "wandb": "0.31"}  # oldest versions supported
FOLDER = "tracking"  # in the run directory
WARM_UP, UPDATE = "warm_up", "update"  # what steps count; each counts from 1


@dataclass(frozen=True)
class Place:
    """Where a tracker finds the run again."""

    folder: Path  # of the run
    project: str
    key: str  # the run's own, unchanged when it resumes
    steps: Mapping[str, int]  # already done, by what they count

    @property
    def has_begun(self) -> bool:
        return any(self.steps.values())


class Tracker(Protocol):
    """A tracker, told what dagflow's records mean."""

    def configure(self, values: dict[str, Any]) -> None:
        """Take the configuration, flat."""

    def log(self, values: Record, step: int, counts: str) -> None:
        """Take numbers and texts at a step; `counts`: WARM_UP or UPDATE."""

    def picture(self, name: str, file: Path, step: int) -> None:
        """Take a PNG at an update."""

    def finish(self, whole: bool) -> None:
        """Nothing more will come; `whole`: the run ended well."""

    def link(self) -> str:
        """How a person can see it."""


class TensorBoard:
    """Event files in the run's folder; when a run resumes, what it redoes replaces the old."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._writers: dict[str, TensorBoardTracker] = {}
        self._writer(UPDATE)

    def _writer(self, counts: str) -> TensorBoardTracker:
        """Warm-up steps have their own writer, since a writer purges all of its steps together."""
        if counts not in self._writers:
            from accelerate.tracking import TensorBoardTracker

            name = "tensorboard" if counts == UPDATE else "tensorboard/warm-up"
            again = self._place.steps[counts] + self._place.has_begun
            tracker = TensorBoardTracker(name, self._place.folder / FOLDER, purge_step=again)
            tracker.main_process_only = False  # only the main process has trackers
            tracker.start()
            self._writers[counts] = tracker
        return self._writers[counts]

    def configure(self, values: dict[str, Any]) -> None:
        if not self._place.has_begun:
            self._writer(UPDATE).store_init_configuration(values)

    def log(self, values: Record, step: int, counts: str) -> None:
        self._writer(counts).log(dict(values), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        import numpy
        from PIL import Image

        pixels = numpy.asarray(Image.open(file).convert("RGB"))[None]
        self._writer(UPDATE).log_images({name: pixels}, step=step, dataformats="NHWC")

    def finish(self, whole: bool) -> None:
        for writer in self._writers.values():
            writer.finish()

    def link(self) -> str:
        return f"tensorboard --logdir {self._place.folder / FOLDER}"


class WandB:
    """wandb's own steps only rise, so `update` and `warm_up` are logged as the axes of charts."""

    def __init__(self, place: Place) -> None:
        import wandb
        from accelerate.tracking import WandBTracker

        mode = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("it has no API key: run `wandb login`, or set WANDB_MODE=offline")
        folder = place.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = WandBTracker(
            place.project,
            dir=str(folder),
            id=place.key,
            name=place.folder.name,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._tracker.start()
        self._run = self._tracker.tracker
        self._run.define_metric("*", step_metric=UPDATE)
        self._run.define_metric(f"{WARM_UP}.*", step_metric=WARM_UP)

    def configure(self, values: dict[str, Any]) -> None:
        self._tracker.store_init_configuration(values)

    def log(self, values: Record, step: int, counts: str) -> None:
        self._tracker.log({**values, counts: step})

    def picture(self, name: str, file: Path, step: int) -> None:
        import wandb

        self._tracker.log({name: wandb.Image(str(file)), UPDATE: step})

    def finish(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)

    def link(self) -> str:
        if self._run.offline:
            return f"wandb sync {Path(self._run.dir).parent}"
        return str(self._run.url)


class Trackio:
    """Kept where Trackio keeps all projects on this machine."""

    def __init__(self, place: Place) -> None:
        from accelerate.tracking import TrackioTracker

        self._project = place.project
        name = f"{place.folder.name}-{place.key}"
        self._tracker = TrackioTracker(place.project, name=name, resume="allow")
        with redirect_stdout(StringIO()):  # it prints a greeting
            self._tracker.start()

    def configure(self, values: dict[str, Any]) -> None:
        self._tracker.tracker.config.update(values)  # accelerate's own adds a setting

    def log(self, values: Record, step: int, counts: str) -> None:
        self._tracker.log(dict(values), step=step)

    def picture(self, name: str, file: Path, step: int) -> None:
        import trackio

        self._tracker.log({name: trackio.Image(str(file))}, step=step)

    def finish(self, whole: bool) -> None:
        import trackio

        with redirect_stdout(StringIO()):
            trackio.finish()

    def link(self) -> str:
        return f'trackio show --project "{self._project}"'


KINDS: dict[str, Callable[[Place], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


def require(names: tuple[str, ...]) -> None:
    """Raise UserError if the package of a tracker is missing or too old."""
    for name in names:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        if not found or Version(found) < Version(LEAST[name]):
            what = f"{found} is older than {LEAST[name]}" if found else "is not installed"
            raise UserError(
                f"tracker '{name}': the package {name} {what}: pip install 'dagflow-align[{name}]'."
            )


class Trackers:
    """The trackers of a run that still work; none before they begin, or in other processes."""

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._trackers: dict[str, Tracker] = {}
        self._update = 0

    @contextmanager
    def begun(self, folder: Path, update: int, warm_up: int) -> Iterator[None]:
        """Track from these steps on; raises RunError if a tracker cannot begin that never did."""
        self._begin(folder, {UPDATE: update, WARM_UP: warm_up})
        whole = False
        try:
            yield
            whole = True
        finally:
            self._each(lambda tracker: tracker.finish(whole))

    def _begin(self, folder: Path, steps: dict[str, int]) -> None:
        names, self._update = self._config.tracking.trackers, steps[UPDATE]
        if not names:
            return
        from accelerate import PartialState

        PartialState(cpu=True)  # the logging of accelerate's trackers needs it
        for name in dict.fromkeys(names):
            file = folder / FOLDER / f"{name}-key"
            key = file.read_text() if file.is_file() else secrets.token_hex(4)
            place = Place(folder, self._config.tracking.project, key, steps)
            try:
                tracker = KINDS[name](place)
                tracker.configure(flat(self._config.model_dump(mode="json")))
            except Exception as error:
                if not file.is_file():
                    raise RunError(f"tracker '{name}' cannot begin: {described(error)}") from error
                self._leave_out(name, error)
                continue
            self._trackers[name] = tracker
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(key)
            self._say(f"Tracking: {tracker.link()}")

    def record(self, record: Record) -> None:
        """Take a line of metrics.jsonl; if it has a text, as an alarm has, it becomes one text."""
        step, counts, values = self._placed(record)
        self._each(lambda tracker: tracker.log(values, step, counts))

    def _placed(self, record: Record) -> tuple[int, str, Record]:
        if WARM_UP in record:
            rest = {f"{WARM_UP}.{key}": x for key, x in record.items() if key != WARM_UP}
            return int(record[WARM_UP]), WARM_UP, rest
        self._update = int(record.get(UPDATE, self._update))
        texts = [key for key, value in record.items() if isinstance(value, str)]
        if texts:
            record = {texts[0]: ", ".join(f"{key} {value}" for key, value in record.items())}
        return self._update, UPDATE, record

    def picture(self, name: str, file: Path) -> None:
        """Take a picture that the run has drawn."""
        self._each(lambda tracker: tracker.picture(name, file, self._update))

    def _each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                work(tracker)
            except Exception as error:
                del self._trackers[name]
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._say(f"Tracker '{name}' is dropped from here on: {described(error)}.")


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Every value by its dotted path; lists as JSON, for trackers that take no lists."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{path}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            values[f"{path}{key}"] = value if plain else json.dumps(value)
    return values
