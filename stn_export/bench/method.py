"""How the benchmarks measure, prove themselves and spend a lent GPU's minutes: frozen dataclasses, like ``config``."""

from dataclasses import dataclass

from stn_export.comparison.moments import RUN_SPREAD
from stn_export.config import DEFAULT_RUN


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


@dataclass(frozen=True)
class Proof:
    """The benchmarks' own trial: ``trials`` contests of an artifact with itself, and as many with planted slowdowns.

    Passed where ``holding`` intervals at least hold the truth 1 (of intervals that do so 95 times in 100, 15 of 20 or
    fewer are one case in 400), no false verdict is off by more than ``METHOD.same``, no slowdown is called faster, and
    every one of ``certain`` or more is found. How often smaller ones are found is stated.
    """

    trials: int = 20
    holding: int = 16
    planted: tuple[float, ...] = (0.03, 0.05, 0.15)
    certain: float = 0.15
    batches: tuple[int, ...] = (1, 64)
    runners: tuple[str, ...] = ("onnxruntime-{}", "openvino-{}", "eager-{}")  # by device, where they can be had


PROOF = Proof()


@dataclass(frozen=True)
class Peak:
    """A GPU's published peak rates: FLOP/s by precision, dense, and bytes/s of its memory."""

    flops: dict[str, float]
    bytes: float
    source: str


# By a word of the GPU's name. Of either the SXM module; the tensor cores' rates without sparsity.
_HOPPER = {"fp32": 67e12, "tf32": 494.5e12, "fp16": 989.5e12, "bf16": 989.5e12, "int8": 1979e12}
PEAKS = {
    "H100": Peak(_HOPPER, 3.35e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM, dense"),
    "H200": Peak(_HOPPER, 4.8e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM, dense"),
}


@dataclass(frozen=True)
class Probe:
    """How a processor's own peak rates are measured: ``rounds`` of a loop, and a copy of ``copy_bytes``."""

    rounds: int = 5_000_000
    copy_bytes: int = 256 * 2**20
    tries: int = 7


PROBE = Probe()


@dataclass(frozen=True)
class GpuResults:
    """How the minutes on a lent GPU are spent; all in seconds.

    A step is not begun with fewer than ``shortest`` left before the ``last``, which keeping the results may take; one
    that is stopped has ``grace`` to write what it has.
    """

    dataset: str = DEFAULT_RUN.name
    device: str = "cuda"
    grid: str = "gpu"
    seconds: float = 520.0
    shortest: float = 10.0
    last: float = 60.0
    grace: float = 15.0
    trials: int = 5  # of the benchmarks' own proof, of each kind


GPU_RESULTS = GpuResults()
