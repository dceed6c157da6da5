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


def _sheet(name: str, fp32: float, tf32: float | None, half: float, int8: float, memory: float) -> Peak:
    """Build a row from a data sheet: TFLOP/s without sparsity, ``half`` for fp16 and bf16, and TB/s of memory."""
    rates = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if tf32 else None, "int8": int8}
    flops = {precision: rate * 1e12 for precision, rate in rates.items() if rate is not None}
    return Peak(flops, memory * 1e12, f"NVIDIA, {name}, without sparsity")


# By the exact name that the driver gives the card. A card of another form, or a part of one (MIG), has other rates.
PEAKS = {
    "Tesla T4": _sheet("T4 data sheet", 8.1, None, 65, 130, 0.3),
    "NVIDIA A10": _sheet("A10 data sheet", 31.2, 62.5, 125, 250, 0.6),
    "NVIDIA A100-PCIE-40GB": _sheet("A100 data sheet, PCIe 40 GB", 19.5, 156, 312, 624, 1.555),
    "NVIDIA A100-SXM4-40GB": _sheet("A100 data sheet, SXM 40 GB", 19.5, 156, 312, 624, 1.555),
    "NVIDIA A100 80GB PCIe": _sheet("A100 data sheet, PCIe 80 GB", 19.5, 156, 312, 624, 1.935),
    "NVIDIA A100-SXM4-80GB": _sheet("A100 data sheet, SXM 80 GB", 19.5, 156, 312, 624, 2.039),
    "NVIDIA GeForce RTX 4090": _sheet("Ada GPU architecture", 82.6, 82.6, 165.2, 660.6, 1.008),
    "NVIDIA L4": _sheet("L4 data sheet", 30.3, 60, 121, 242.5, 0.3),
    "NVIDIA L40S": _sheet("L40S data sheet", 91.6, 183, 362, 733, 0.864),
    "NVIDIA H100 PCIe": _sheet("H100 data sheet, PCIe", 51, 378, 756, 1513, 2.0),
    "NVIDIA H100 NVL": _sheet("H100 data sheet, NVL", 60, 417.5, 835.5, 1670.5, 3.9),
    "NVIDIA H100 80GB HBM3": _sheet("H100 data sheet, SXM", 67, 494.5, 989.5, 1979, 3.35),
    "NVIDIA GH200 480GB": _sheet("GH200 data sheet, HBM3", 67, 494.5, 990, 1979, 4.0),
    "NVIDIA H200": _sheet("H200 data sheet, SXM", 67, 494.5, 989.5, 1979, 4.8),
    "NVIDIA H200 NVL": _sheet("H200 data sheet, NVL", 60, 417.5, 835.5, 1670.5, 4.8),
    "NVIDIA B200": _sheet("HGX B200 data sheet", 75, 1100, 2250, 4500, 7.7),
}


def published_peak(gpu: str) -> dict | None:
    """Return the maker's figures for a GPU of exactly this name; None if it is not in ``PEAKS``."""
    return asdict(PEAKS[gpu]) if gpu in PEAKS else None


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
