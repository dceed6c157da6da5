"""Means over seeds and their 95 % intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

CONFIDENCE = 0.95
BISECTIONS = 60  # of an angle: as close as a double can tell


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` values, their standard deviation and the mean's 95 % interval (NaN for a single value)."""

    mean: float
    deviation: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False for a single value."""
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Estimate":
        """The same with its interval cut to what the quantity can be."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))  # NaN stays: it comes first

    def as_dict(self) -> dict:
        """JSON-ready."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (n - 1) and Student's 95 % interval of independent values.

    Raises:
        ValueError: for no values at all.
    """
    if not values:
        raise ValueError("there is no mean of no values")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    deviation = statistics.stdev(values)
    reach = student(CONFIDENCE, count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, mean - reach, mean + reach, count)


@cache
def student(confidence: float, freedom: int) -> float:
    """What Student's t stays within, on either side, with this probability; ``freedom`` is 1 or more.

    The probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), which is bisected.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """How much of Student's distribution lies between plus and minus ``sqrt(freedom) * tan(angle)``."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
