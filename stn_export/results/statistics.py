"""Statistics of the benchmarks and of seeds: means, percentiles, intervals, verdicts. Pure functions of arrays."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import NormalDist
from typing import TypedDict

import numpy as np

CONFIDENCE = 0.95
BISECTIONS = 60  # of an angle, to double precision


@dataclass(frozen=True)
class Estimate:
    """Mean of ``count`` values, with standard deviation and 95 % interval of the mean (NaN for a single value)."""

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
        """Return the estimate with its interval clipped to the range that the quantity can take."""
        return replace(self, low=max(self.low, low), high=min(self.high, high))  # NaN stays, as it comes first

    def as_dict(self) -> dict:
        """Return the estimate JSON-ready: NaN becomes None."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean, standard deviation (n - 1) and Student's 95 % interval of independent values.

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


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``count`` independent examples.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    square = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2 / count
    reach = math.sqrt(square * share * (1 - share) + square**2 / 4)
    return (share + square / 2 - reach) / (1 + square), (share + square / 2 + reach) / (1 + square)


@cache
def student(confidence: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's t at this confidence; ``freedom`` is 1 or more.

    The probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        angle = (low + high) / 2
        low, high = (angle, high) if _share_within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """Return the probability between plus and minus ``sqrt(freedom) * tan(angle)`` of Student's distribution."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


# Drift between two moments of one machine, which limits what separate timings of two files can show.


RUN_SPREAD = 0.04  # standard deviation of one file's median between two moments of a machine, as a share


@cache
def drift(pairs: int = 1) -> float:
    """Return the factor within which 95 % of ratios of two medians of equally fast files lie.

    Of ``pairs`` such ratios, all lie within it in 95 % of cases (Bonferroni).
    """
    quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / pairs)
    return math.exp(quantile * math.sqrt(2) * RUN_SPREAD)


# The parameters of the benchmarks' method.


@dataclass(frozen=True)
class Method:
    """Parameters of the benchmarks; times in seconds, shares and ratios as fractions of 1."""

    seed: int = 0
    confidence: float = 0.95
    same: float = 0.03  # an interval inside 1 ± this has the verdict "same"
    p99_samples: int = 662
    stretches: int = 10  # groups of neighbouring calls whose medians make the interval of a row's median
    most_correlation: float = 0.9
    # warm-up: windows of half the plan's time, until two in a row agree
    warm_windows: int = 20
    warm_agreement: float = 0.02
    # paired comparisons: two loads of one file differed by up to 3.5 % (OpenVINO, batch 1), so each loads several times
    overtime: float = 6.0  # slow calls may take the plan's time times this; beyond that there are fewer blocks
    fewest_blocks: int = 10
    patience: int = 3  # up to this many times the plan's blocks, while the interval is wider than "same"
    loads: int = 5
    load_seconds: float = 2.0  # a file that loads more slowly is loaded once
    load_spread: float = 0.035
    run_spread: float = RUN_SPREAD  # standard deviation between two runs, of timings that were not interleaved
    false_alarms: float = 0.01  # probability of any false alarm in a comparison of two runs
    # a block is disturbed where the CPU was ours for less than this share of it, or the GPU was held back, or its
    # clock moved by more than this
    cpu_share: float = 0.9
    clock_change: float = 0.05


METHOD = Method()


# The arithmetic of the benchmarks: percentiles, intervals, verdicts. Pure functions of arrays; nothing is timed
# here.


TO_NORMAL = 1.4826  # standard deviation / median absolute deviation of a normal distribution
OF_MEDIAN = math.sqrt(math.pi / 2)  # standard error of the median / of the mean, for a normal sample
OF_MEAN_ABSOLUTE = math.sqrt(math.pi / 2)  # standard deviation / mean absolute deviation of a normal distribution


class Times(TypedDict):
    """Statistics of single calls in seconds: percentiles, interquartile range, 95 % interval of the median."""

    n: int
    p50: float
    p90: float
    p99: float | None
    iqr: float
    p50_low: float
    p50_high: float


def summarise(samples: np.ndarray) -> Times:
    """Return percentiles of single calls in seconds, interquartile range, and 95 % interval of the median.

    ``p99`` is None below ``METHOD.p99_samples`` calls: fewer leave its upper end to chance.
    """
    p25, p50, p75, p90, p99 = map(float, np.quantile(samples, (0.25, 0.5, 0.75, 0.9, 0.99)))
    low, high = median_interval(samples)
    return {
        "n": len(samples),
        "p50": p50,
        "p90": p90,
        "p99": p99 if len(samples) >= METHOD.p99_samples else None,
        "iqr": p75 - p25,
        "p50_low": low,
        "p50_high": high,
    }


def median_interval(samples: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the median of calls, given in the order in which they ran.

    The calls are cut into ``METHOD.stretches`` stretches of neighbours, whose medians are few and nearly independent.
    The result is Student's interval of these (batch means: B. Schmeiser, "Batch size effects in the analysis of
    simulation output", Operations Research 1982), widened by their correlation, about the median of all. Computed in
    logarithms.
    """
    medians = _medians(np.array_split(np.log(samples), min(METHOD.stretches, len(samples))))
    return _around(float(np.log(np.median(samples))), stretch(medians) * _reach(estimate(medians.tolist())))


def ratio_interval(ratios: np.ndarray, loads: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a paired comparison's ratio; its centre (of logarithms) is the ratio itself.

    Two loads of one file differ for as long as they live, by where their memory happens to lie. So loads are the
    sampling unit: Student's interval of their medians covers both their differences and the noise of blocks, and
    neither drift nor correlation of blocks biases it, since every load meets them alike. A single load shows no such
    differences: five groups of neighbouring blocks take the place of loads, and ``METHOD.load_spread`` is added.

    Args:
        ratios: one per block, in the order in which they ran.
        loads: which load of the two files ran in each block.
    """
    return _around(*_over_loads(ratios, loads))


def load_interval(times: np.ndarray, loads: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the median time of one side of a paired comparison.

    It is centred on the median of all blocks, and as wide as ``ratio_interval`` of these times.
    """
    return _around(float(np.log(np.median(times))), _over_loads(times, loads)[1])


def _over_loads(values: np.ndarray, loads: np.ndarray) -> tuple[float, float]:
    """Return the mean of the loads' medians and the half-width of its interval, both in logarithms."""
    groups, unseen = by_load(np.log(values), loads), 0.0
    if len(groups) == 1:
        groups, unseen = np.array_split(groups[0], min(METHOD.loads, len(values))), METHOD.load_spread
    estimated = estimate(_medians(groups).tolist())
    return estimated.mean, _reach(estimated) + unseen


def noise_reach(ratios: np.ndarray, loads: np.ndarray) -> float:
    """Return the half-width of a ratio's interval (in logarithms) by the noise of blocks alone, loads being equal.

    It does not depend on where the loads' medians lie, so stopping once it is small does not bias the interval.
    """
    groups = by_load(np.log(ratios), loads)
    noise = float(np.mean(np.abs(np.concatenate([group - np.median(group) for group in groups]))))
    return student(CONFIDENCE, METHOD.loads - 1) * OF_MEDIAN * OF_MEAN_ABSOLUTE * noise / math.sqrt(len(ratios))


def by_load(values: np.ndarray, loads: np.ndarray) -> list[np.ndarray]:
    """Split values by load."""
    return [values[loads == load] for load in np.unique(loads)]


def scatter(values: np.ndarray) -> float:
    """Estimate the standard deviation of normal values from their median absolute deviation, robust to outliers."""
    return TO_NORMAL * float(np.median(np.abs(values - np.median(values))))


def _medians(groups: list[np.ndarray]) -> np.ndarray:
    return np.array([np.median(group) for group in groups])


def _reach(estimated: Estimate) -> float:
    return 0.0 if estimated.count == 1 else estimated.high - estimated.mean


def _around(centre: float, reach: float) -> tuple[float, float]:
    return math.exp(centre - reach), math.exp(centre + reach)


def stretch(values: np.ndarray) -> float:
    """Return how much wider an interval of correlated values is than one of independent values, at least 1.

    For a first-order process it is sqrt((1 + r) / (1 - r)); r is the correlation of neighbours' ranks (so that outliers
    count no more than others), corrected for its negative bias in short series: M. G. Kendall, "Note on bias in the
    estimation of autocorrelation", Biometrika 1954.
    """
    ranks = values.argsort().argsort() - (len(values) - 1) / 2
    if len(values) < 3:
        return 1.0
    correlation = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    correlation = min(max(correlation + (1 + 3 * correlation) / len(values), 0.0), METHOD.most_correlation)
    return math.sqrt((1 + correlation) / (1 - correlation))


def verdict(low: float, high: float) -> str:
    """Return the verdict on a ratio's interval; below 1 is faster."""
    if 1 - METHOD.same <= low and high <= 1 + METHOD.same:
        return "same"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "cannot tell"
