"""The arithmetic of the benchmarks: percentiles, intervals, verdicts. Pure functions of arrays; nothing is timed here.

Samples are in the order in which they were taken, since neighbours resemble each other: a machine has good and bad
moments. No sample and no block is ever left out.
"""

import math
from statistics import NormalDist

import numpy as np

from stn_export.bench.method import METHOD
from stn_export.comparison.estimates import estimate

NORMAL = NormalDist()
TAILS = ((1 - METHOD.confidence) / 2, (1 + METHOD.confidence) / 2)


def summarise(samples: np.ndarray) -> dict[str, float | int | None]:
    """Percentiles of single calls in seconds, their interquartile range, and the 95 % interval of their median.

    ``p99`` is None under ``METHOD.p99_samples``: fewer leave its upper end to chance.
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
    """The bootstrap interval of the median; whole stretches of neighbouring calls are resampled, not single calls."""
    stretches = np.array_split(samples, min(METHOD.stretches, len(samples)))
    order = np.argsort(samples, kind="stable")
    owner = np.repeat(np.arange(len(stretches)), [len(part) for part in stretches])[order]
    random = np.random.default_rng(METHOD.seed)
    counts = random.multinomial(len(stretches), [1 / len(stretches)] * len(stretches), METHOD.resamples)
    taken = np.cumsum(counts[:, owner], axis=1)  # how many of each resample lie at or below each sorted sample
    medians = samples[order][(taken >= taken[:, -1:] / 2).argmax(axis=1)]
    low, high = np.quantile(medians, TAILS)
    centre, wider = np.median(samples), stretch(np.array([np.median(part) for part in stretches]))
    return float(centre - wider * max(centre - low, 0)), float(centre + wider * max(high - centre, 0))


def ratio_interval(ratios: np.ndarray, loads: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the median ratio of blocks, in the order in which they ran.

    Two things make a ratio uncertain, and the interval holds both. The blocks differ: they are resampled (bootstrap),
    and the interval is stretched where neighbours resemble each other. And two loads of one file differ, by where
    their memory came to lie: Student's interval of the loads' own medians sees that. With a single load nothing sees
    it, and ``METHOD.load_spread`` is added.

    Args:
        ratios: one a block.
        loads: which load of the contenders ran in each block.
    """
    logs = np.log(ratios)
    chosen = np.random.default_rng(METHOD.seed).integers(len(logs), size=(METHOD.resamples, len(logs)))
    centre, wider = np.median(logs), stretch(logs)
    low, high = centre + wider * (np.quantile(np.median(logs[chosen], axis=1), TAILS) - centre)
    by_load = np.array([np.median(logs[loads == load]) for load in np.unique(loads)])
    if len(by_load) > 1:
        between_loads = estimate(by_load.tolist())
        low, high = min(low, between_loads.low), max(high, between_loads.high)
    else:
        low, high = low - METHOD.load_spread, high + METHOD.load_spread
    return math.exp(low), math.exp(high)


def stretch(values: np.ndarray) -> float:
    """How much wider an interval of correlated values is than one of independent values, at least 1.

    For a first-order process it is sqrt((1 + r) / (1 - r)); r is the correlation of neighbours' ranks (outliers count
    no more than others), corrected for its bias towards minus in short series: M. G. Kendall, "Note on bias in the
    estimation of autocorrelation", Biometrika 1954.
    """
    ranks = values.argsort().argsort() - (len(values) - 1) / 2
    if len(values) < 3:
        return 1.0
    correlation = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    correlation = min(max(correlation + (1 + 3 * correlation) / len(values), 0.0), METHOD.most_correlation)
    return math.sqrt((1 + correlation) / (1 - correlation))


def verdict(low: float, high: float) -> str:
    """What the interval of a ratio says: same, faster, slower, cannot tell; below 1 is faster."""
    if 1 - METHOD.same <= low and high <= 1 + METHOD.same:
        return "same"
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "cannot tell"
