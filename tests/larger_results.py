"""What was measured of larger networks as generated C: contests with other runtimes, and large layers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn_export.results.statistics import ratio_interval

KEPT = Path(__file__).parent.parent / "benchmarks" / "results" / "larger-cpu.json"
KEPT_INT8 = KEPT.with_name("larger-int8-cpu.json")
LARGE = 10_000_000  # multiply-adds of layers that are kept


@dataclass(frozen=True)
class Contest:
    """Seconds of a call by contender, a value a block; neighbouring blocks are of one of the ``loads`` of the files."""

    network: str
    batch: int
    threads: int
    loads: int
    seconds: dict[str, list[float]]

    def times_as_fast(self, other: str) -> tuple[float, float, float]:
        """How many times as fast the C is as another contender, with the 95 % interval."""
        ratios = np.array(self.seconds[other]) / np.array(self.seconds["native"])
        of = np.repeat(np.arange(self.loads), len(ratios) // self.loads)
        return float(np.median(ratios)), *ratio_interval(ratios, of)

    def cells(self) -> list[str]:
        """A row of the table."""
        medians = [f"{1e3 * np.median(values):.3g}" for values in self.seconds.values()]
        others = [self.times_as_fast(other) for other in list(self.seconds)[1:]]
        return [
            self.network,
            str(self.batch),
            str(self.threads),
            *medians,
            *(f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in others),
        ]


COLUMNS = (
    *("network", "batch", "threads", "C, ms", "ONNX Runtime, ms", "OpenVINO, ms"),
    *("times as fast as ONNX Runtime", "times as fast as OpenVINO"),
)

COLUMNS_INT8 = (
    *("network", "batch", "threads", "C in int8, ms", "C in float32, ms", "ONNX Runtime in int8, ms"),
    *("OpenVINO in int8, ms", "times as fast as C in float32", "times as fast as ONNX Runtime"),
    "times as fast as OpenVINO",
)


@dataclass(frozen=True)
class Layer:
    """A step of the C: its operator, the line of the module, and the median seconds for an example."""

    network: str
    batch: int
    threads: int
    operator: str
    at: str
    multiply_adds: int
    seconds: float
    peak: float | None

    @property
    def share(self) -> float | None:
        """Its share of the measured peak of as many threads; None where it multiplies nothing, or no peak is known."""
        if not (self.multiply_adds and self.peak and self.seconds):
            return None
        return 2 * self.multiply_adds / self.seconds / self.peak

    def cells(self) -> list[str]:
        """A row of the table."""
        share = "–" if self.share is None else f"{self.share:.0%}"
        return [self.operator, self.at, f"{self.multiply_adds:,}", f"{1e6 * self.seconds:.1f}", share]
