"""Signs that a reward is being fooled: it rises while pictures lose what it does not see."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dagflow.config import AlarmsTable
from dagflow.evaluate import Measured, standard_error
from dagflow.intervals import student
from dagflow.measures.looks import shift

DETERMINED = 0.8  # rank correlation from which the reward itself determines a look
DIVERSITY = "diversity"


@dataclass(frozen=True)
class Alarm:
    """A statistic that has moved too far."""

    statistic: str
    shift: float  # in deviations of the base model's images; of diversity, as a share of the base's
    limit: float
    gain: float  # of the reward, in deviations of the base model's images

    def __str__(self) -> str:
        moved = f"{'rose' if self.shift > 0 else 'fell'} by {abs(self.shift):.2f} deviations"
        if self.statistic == DIVERSITY:
            moved = f"fell by {-self.shift:.0%}"
        limit = f"{self.limit:.0%}" if self.statistic == DIVERSITY else f"{self.limit:g}"
        return (
            f"{self.statistic.replace('_', ' ')} {moved} (limit {limit}) while the reward rose by "
            f"{self.gain:.2f} deviations"
        )


def find_alarms(base: Measured, now: Measured, table: AlarmsTable) -> list[Alarm]:
    """What has moved too far while the reward rose, on the same prompts and noise.

    A look (brightness, ...) that the reward itself determines does not count. Of any other, only
    the part beyond its correlation with the reward over the base model's images counts.
    """
    gain = shift(base.rewards, now.rewards)
    change = now.rewards - base.rewards
    if table.action == "off" or len(change) < 2:
        return []  # one picture cannot tell a change from chance
    if float(change.mean()) <= student(len(change)) * standard_error(change):
        return []
    found = []
    if now.diversity is not None and base.diversity:
        lost = 1 - now.diversity / base.diversity
        if lost > table.diversity:
            found.append(Alarm(DIVERSITY, -lost, table.diversity, gain))
    for name, values in now.looks.items():
        moved, with_reward = shift(base.looks[name], values), correlation(base, name)
        beyond = abs(moved) - max(0.0, with_reward * gain * (1 if moved > 0 else -1))
        if abs(with_reward) < DETERMINED and beyond > table.looks:
            found.append(Alarm(name, moved, table.looks, gain))
    return found


def correlation(base: Measured, look: str) -> float:
    """Rank correlation of a look with the reward over the base model's images, from -1 to 1."""
    from torchmetrics.functional import spearman_corrcoef

    values = (base.rewards.double(), base.looks[look].double())
    if any(len(each) < 2 or _is_constant(each) for each in values):
        return 0.0
    return float(spearman_corrcoef(*values))


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
