"""The result of a run in words and a few figures, made from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from dagflow.intervals import student
from dagflow.page.charts import alarm_text
from dagflow.page.plans import STATISTICS, name_of
from dagflow.page.plot import shown
from dagflow.page.read import Record, RunData, at, number

SHIFTED = 1.0  # deviations from which a statistic's shift is mentioned
FELL = 0.05  # share from which a change of diversity counts


@dataclass(frozen=True)
class Change:
    """The change of the held-out reward."""

    base: float
    trained: float
    low: float | None  # of the 95 % interval of the change; None if it cannot be known
    high: float | None
    images: int | None
    win_rate: float | None

    @property
    def mean(self) -> float:
        return self.trained - self.base

    @property
    def interval(self) -> str:
        """In figures; "–" if it cannot be known."""
        if self.low is None or self.high is None:
            return "–"
        return f"{shown(self.low, signed=True)} to {shown(self.high, signed=True)}"

    @property
    def is_certain(self) -> bool:
        """Whether chance in the held-out images is unlikely to explain it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Figure:
    """One number at the top of the page."""

    key: str  # of the glossary
    label: str
    value: str
    detail: str = ""


def change(run: RunData) -> Change | None:
    """From the report, or from the newest held-out record while the run is under way."""
    return _reported(run.report) or _under_way(run)


def _reported(report: Record) -> Change | None:
    base, trained = (number(at(report, "reward", name)) for name in ("base", "trained"))
    if base is None or trained is None:
        return None
    images = report.get("images")
    low, high = _interval(report, trained - base)
    return Change(base, trained, low, high, images, number(at(report, "reward", "win_rate")))


def _interval(report: Record, mean: float) -> tuple[float | None, float | None]:
    """Of the change: as reported, or from the standard error in an older report."""
    ends = at(report, "reward", "interval")
    if isinstance(ends, list) and len(ends) == 2 and None not in (found := [*map(number, ends)]):
        return found[0], found[1]
    error = number(at(report, "reward", "standard_error_of_change"))
    images = int(number(report.get("images")) or 0)
    if error is None or images < 2:
        return None, None
    half = error * student(images)
    return mean - half, mean + half


def _under_way(run: RunData) -> Change | None:
    held_out = [e for e in run.epochs if number(e.get("held_out.reward_change")) is not None]
    if not held_out or held_out[-1]["epoch"] == 0:
        return None
    last = held_out[-1]
    mean, trained = last["held_out.reward_change"], last["held_out.reward_mean"]
    half = run.look_errors * (number(last.get("held_out.reward_change_error")) or 0.0)
    win_rate = number(last.get("held_out.win_rate"))
    return Change(trained - mean, trained, mean - half, mean + half, None, win_rate)


def sentences(run: RunData) -> list[str]:
    """The verdict, sentence by sentence."""
    parts = (_progress, _checkpoint, _reward, _diversity, _truth, _statistics)
    return [sentence for part in parts for sentence in part(run)]


def _progress(run: RunData) -> Iterator[str]:
    done, due = run.epochs_done, run.epochs_due
    if run.state != "finished":
        yield f"The run is {run.state}: {done} of {due} epochs are done."
    elif done < due:
        yield f"The run ended after {done} of {due} epochs."


def _checkpoint(run: RunData) -> Iterator[str]:
    """Whose comparison it is, if not that of the newest checkpoint."""
    evaluated = str(run.report.get("checkpoint") or "")
    if evaluated and run.newest_checkpoint not in ("", evaluated):
        yield (
            f"The comparison with the base model is of checkpoint {evaluated}, which was evaluated "
            f"last; the newest is {run.newest_checkpoint}."
        )


def _reward(run: RunData) -> Iterator[str]:
    found = change(run)
    if found is None:
        means = [e["reward_mean"] for e in run.epochs if number(e.get("reward_mean")) is not None]
        if means:
            yield (
                f"There is no comparison with the base model yet. In training the mean reward went "
                f"from {shown(means[0])} to {shown(means[-1])}, on different prompts and noise "
                f"each time, so part of that is chance."
            )
        else:
            yield "There are no numbers yet."
        return
    verb = "rose" if found.mean > 0 else "fell" if found.mean < 0 else "stayed"
    of = f" of {found.images} held-out images" if found.images else " of the held-out images"
    yield (
        f"The mean reward{of} {verb} from {shown(found.base)} (base) to {shown(found.trained)} "
        f"(trained): a change of {shown(found.mean, signed=True)}"
        + ("." if found.low is None else f", with a 95 % interval from {found.interval}.")
    )
    yield from _certainty(found)
    if found.win_rate is not None:
        yield (
            f"{percent(found.win_rate)} of the trained model's images beat the base model's from "
            f"the same noise (50 % would be no change)."
        )


def _certainty(found: Change) -> Iterator[str]:
    """Whether chance could explain the change; nothing if an older report does not say."""
    if found.images == 1 or (found.low is not None and found.low == found.high):
        yield "That is too few images to tell the change from chance."
    elif found.is_certain:
        yield (
            "Chance in the noise is unlikely to explain that; other prompts or another seed may "
            "differ."
        )
    elif found.low is not None:
        yield "The interval contains 0: chance alone could explain that."


def _diversity(run: RunData) -> Iterator[str]:
    base, trained = diversity(run)
    if base is None or trained is None:
        return
    change = trained / base - 1 if base else 0.0
    verb = "fell" if change < -FELL else "rose" if change > FELL else "hardly changed"
    hint = " Images of a prompt are growing alike." if change < -FELL else ""
    yield (
        f"Diversity within a prompt {verb}, from {shown(base)} to {shown(trained)} "
        f"({percent(change, signed=True)}).{hint}"
    )


def diversity(run: RunData) -> tuple[float | None, float | None]:
    """Of base and trained model, from the report or else the newest held-out record."""
    if at(run.report, "diversity") is not None:
        base, trained = (number(at(run.report, "diversity", name)) for name in ("base", "trained"))
        return base, trained
    logged = [number(e.get("held_out.diversity")) for e in run.epochs]
    known = [value for value in logged if value is not None]
    return (known[0], known[-1]) if len(known) > 1 else (None, None)


def _truth(run: RunData) -> Iterator[str]:
    base, trained = (
        number(at(run.report, "distances", name, "total_variation")) for name in ("base", "trained")
    )
    if base is not None and trained is not None:
        yield (
            f"This world's target is known: the total variation distance to it went from "
            f"{shown(base)} to {shown(trained)} (0 is the target itself)."
        )


def _statistics(run: RunData) -> Iterator[str]:
    """Statistics that have moved far, except those with an alarm of their own."""
    for name in STATISTICS:
        shift = number(at(run.report, "statistics", name, "shift")) or 0.0
        if abs(shift) >= SHIFTED and name not in _alarms(run):
            word = name_of(f"held_out.{name}")
            yield f"{word} moved by {shown(shift, signed=True)} deviations of the base images."


def alarms(run: RunData) -> list[str]:
    """The first alarm of each statistic."""
    return [alarm_text(record) for record in _alarms(run).values()]


def _alarms(run: RunData) -> dict[str, Record]:
    """Alarms by statistic: those raised during the run, or else those in its report."""
    logged = {str(record["alarm"]): record for record in reversed(run.alarms)}
    reported = {
        str(alarm["statistic"]): {**alarm, "alarm": alarm["statistic"]}
        for alarm in run.report.get("alarms") or []
    }
    return reported | logged


def percent(share: float, signed: bool = False) -> str:
    text = f"{100 * share:{'+' if signed else ''}.0f}"
    return "0 %" if float(text) == 0 else f"{text} %".replace("-", "−")


def figures(run: RunData) -> list[Figure]:
    """The numbers to see first."""
    found = change(run)
    base, trained = diversity(run)
    kl = number(at(run.report, "drift", "kl")) or _last(run, "held_out.drift.kl")
    cards: list[Figure | None] = [
        Figure(
            "held_out.reward_change",
            "reward change",
            shown(found.mean, signed=True),
            f"95 %: {found.interval}",
        )
        if found
        else None,
        Figure("held_out.win_rate", "win rate", percent(found.win_rate), "50 % is no change")
        if found and found.win_rate is not None
        else None,
        Figure("held_out.diversity", "diversity", shown(trained), f"base {shown(base)}")
        if trained is not None
        else None,
        Figure("held_out.drift.kl", "KL from the base", shown(kl), "nats")
        if kl is not None
        else None,
        *_distances(run),
        Figure("reward_calls", "reward calls", f"{run.reward_calls:,}".replace(",", " "), "images")
        if run.reward_calls
        else None,
        Figure("epoch", "epochs", f"{run.epochs_done}", f"of {run.epochs_due}, {duration(run)}"),
    ]
    return [card for card in cards if card]


def _distances(run: RunData) -> Iterator[Figure]:
    value = number(at(run.report, "distances", "trained", "total_variation"))
    if value is not None:
        base = number(at(run.report, "distances", "base", "total_variation"))
        key = "distances.trained.total_variation"
        yield Figure(key, "total variation", shown(value), f"base {shown(base)}")


def _last(run: RunData, key: str) -> float | None:
    known = [value for e in run.epochs if (value := number(e.get(key))) is not None]
    return known[-1] if known else None


def duration(run: RunData) -> str:
    """The time of all epochs, in words; empty if no time was recorded."""
    if not run.seconds:
        return ""
    if run.seconds < 100:
        return f"{run.seconds:.0f} s"
    hours, minutes = divmod(round(timedelta(seconds=run.seconds).total_seconds() / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
