"""Means over seeds and their 95 % intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

# Student's t, two-sided 95 %, by degrees of freedom from 1; beyond the table it is within 2 % of the last value.
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


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
    reach = T_95[min(count - 1, len(T_95)) - 1] * deviation / math.sqrt(count)
    return Estimate(mean, deviation, mean - reach, mean + reach, count)
