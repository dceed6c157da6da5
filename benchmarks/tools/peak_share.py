"""Compute the share of a device's peak rate that a network reached; list the published peaks of GPUs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from stn_export.run.records import Timing


@dataclass(frozen=True)
class Peak:
    """A GPU's published peak rates: FLOP/s by precision, dense, and bytes/s of its memory."""

    flops: dict[str, float]
    bytes: float
    source: str


# By a word of the GPU's name. For the SXM modules; tensor core rates without sparsity.
_HOPPER = {"fp32": 67e12, "tf32": 494.5e12, "fp16": 989.5e12, "bf16": 989.5e12, "int8": 1979e12}
PEAKS = {
    "H100": Peak(_HOPPER, 3.35e12, "NVIDIA H100 Tensor Core GPU data sheet, SXM, dense"),
    "H200": Peak(_HOPPER, 4.8e12, "NVIDIA H200 Tensor Core GPU data sheet, SXM, dense"),
}


def published_peak(gpu: str) -> dict | None:
    """Return the maker's figures for a GPU, by a word in its name; None if it is not in ``PEAKS``."""
    return next((asdict(peak) for word, peak in PEAKS.items() if word in gpu), None)


def known_rate(peak: Mapping, precision: str) -> float | None:
    """Return the device's peak FLOP/s in a precision; None if unknown.

    The rate of a matrix product (in files stored without ``widths``) is no peak: other loops exceed it.
    """
    if peak["source"].startswith("measured") and not peak.get("widths"):
        return None
    return peak["flops"].get(precision)


@dataclass(frozen=True)
class PeakShare:
    """How fast a network's arithmetic ran: ``rate`` in FLOP/s of the stated work, and the share of the peak.

    ``done`` is the number of FLOPs really performed in a call, if known: a convolution can be computed with fewer
    multiplications than stated. ``share`` refers to those, else to the stated ones; None if no valid share is known.
    """

    rate: float
    done: int | None
    share: float | None


def peak_share(work_of: Mapping, peak: Mapping, row: Timing) -> PeakShare:
    """Compare a timed row's arithmetic with the device's peak rate."""
    precision = "tf32" if row.tf32 and row.precision == "fp32" else row.precision
    known, done = known_rate(peak, precision), work_of.get("native_flops") if row.format == "native" else None
    stated = work_of["flops"]
    share = None if known is None else (stated if done is None else done) / row.median.middle / known
    if share is not None and share > 1 and done is None:
        share = None  # above the peak: it was computed with fewer multiplications than stated
    return PeakShare(stated / row.median.middle, done, share)
