"""How the benchmarks measure: a frozen dataclass, like ``config``."""

from dataclasses import dataclass

from stn_export.comparison.moments import RUN_SPREAD


@dataclass(frozen=True)
class Method:
    """How the benchmarks measure, whatever they measure; times in seconds, shares and ratios as fractions of 1."""

    seed: int = 0
    confidence: float = 0.95
    same: float = 0.03  # an interval inside 1 +- this says "same"
    p99_samples: int = 662
    stretches: int = 10  # groups of neighbouring calls whose medians make the interval of a row's median
    most_correlation: float = 0.9
    # warm-up: windows of half the grid's time, until two in a row agree
    warm_windows: int = 20
    warm_agreement: float = 0.02
    # contests: two loads of one file differed by up to 3.5 % (OpenVINO, batch 1), so each side is loaded several times
    overtime: float = 6.0  # the grid's own time times this is what slow calls may take; then there are fewer blocks
    fewest_blocks: int = 10
    patience: int = 3  # so many times the grid's blocks, while the interval spans more than "same"
    loads: int = 5
    load_seconds: float = 2.0  # what loads more slowly is loaded once
    load_spread: float = 0.035
    run_spread: float = RUN_SPREAD  # of rows that were not interleaved, between two runs, as a standard deviation
    false_alarms: float = 0.01  # the chance of one in a comparison of two runs, all rows together
    # a block is disturbed where the CPU was ours for less than this share of it, or the GPU was held back, or its
    # clock moved by more than this
    cpu_share: float = 0.9
    clock_change: float = 0.05


METHOD = Method()
