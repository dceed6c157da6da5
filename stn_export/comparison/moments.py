"""How far apart two moments of one machine lie: what separate timings of two files can tell, and what they cannot."""

import math
from functools import cache
from statistics import NormalDist

from stn_export.comparison.estimates import CONFIDENCE

RUN_SPREAD = 0.04  # standard deviation of one file's median between two moments of a machine, as a share


@cache
def drift(pairs: int = 1) -> float:
    """Return the factor within which 95 % of ratios of two medians of equally fast files stay.

    Where ``pairs`` ratios are looked at together, all of them stay within it in 95 % of cases (Bonferroni).
    """
    quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / pairs)
    return math.exp(quantile * math.sqrt(2) * RUN_SPREAD)
