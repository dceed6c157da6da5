"""Records that stages write and later ones read; their fields are the keys of the JSON files.

Files may hold further keys. A number that is not finite is ``null`` in a file and None when read back.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from stn_export.errors import UserError, command

Number = float | None  # None where a value is missing or not finite
Value = TypeVar("Value")


def finite(value: Any) -> Any:
    """Replace every non-finite number by None, as strict JSON requires."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Comparison(msgspec.Struct, frozen=True):
    """Differences between values and what they are compared with; truthy where every element is within tolerance.

    ``max_abs`` and ``mean_abs`` are in the units of the arrays, ``max_rel`` is ``|actual - expected| / |expected|``,
    ``agreement`` the share of rows with the same argmax, ``worst`` the index of the element furthest beyond its
    tolerance and ``excess`` its difference in units of that tolerance. ``reason`` is empty where the comparison passed.
    """

    reason: str
    max_abs: Number = None
    max_rel: Number = None
    mean_abs: Number = None
    agreement: Number = None
    worst: tuple[int, ...] = ()
    excess: Number = None

    def __bool__(self) -> bool:
        return not self.reason


class GridPixels(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and largest error of a site's grid over the examples, in pixels."""

    mean: Number
    worst: Number


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Result of verifying one artifact in one runner.

    ``comparisons`` are by test input and point; ``errors`` the largest by point (a grid in pixels); ``multiple`` the
    largest in units of eager float32's own error, images of one grey left out; ``grid_pixels`` by site; ``differing``
    the examples whose outputs differ most from float64, with the difference and the output; ``notes`` what was left
    out; ``search`` the result of a search for worse inputs, where one was asked for. ``failure`` is empty where the
    check passed.
    """

    network: str
    artifact: str
    sha256: str
    runner: str
    precision: str
    comparisons: dict[str, dict[str, Comparison]]
    errors: dict[str, Number]
    multiple: Number
    agreement: Number
    accuracy: Number
    deterministic: bool
    grid_pixels: dict[str, GridPixels]
    differing: tuple[tuple[int, Number, str], ...]
    notes: tuple[str, ...]
    failure: str
    search: dict[str, Any] | None = None
    examples_sha256: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return not self.failure

    def as_dict(self) -> dict[str, Any]:
        """Return the check in the form of ``verify.json``, with the verdict."""
        return {"passed": self.passed} | finite(msgspec.to_builtins(self))


class Estimate(NamedTuple):
    """A median or a ratio with the ends of its 95 % confidence interval."""

    middle: float
    low: float
    high: float


class Timing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A measurement, in the form of ``extra_info`` of a row of ``bench.json``. Times in seconds, memory in bytes.

    A paired comparison (``contest``) has a ratio to its baseline with a 95 % interval. What a row lacks is None.
    """

    network: str
    label: str
    role: str
    artifact: str
    sha256: str
    examples_sha256: str | None = None
    format: str
    lowering: str | None
    precision: str
    input: str
    runner: str
    device: str
    batch: int
    threads: int | None = None
    tf32: bool | None = None
    options: dict[str, Any] | None = None
    regime: str
    inputs: str
    sizes: dict[str, Any] | None = None
    clock: str | None = None
    file_bytes: int | None = None
    host_bytes: Number = None
    device_bytes: Number = None
    warm_up: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    n: int | None = None
    p50: float | None = None
    p50_low: float | None = None
    p50_high: float | None = None
    p90: Number = None
    p99: Number = None
    iqr: float | None = None
    examples_per_second: float | None = None
    disturbed: bool | None = None
    launch_seconds: float | None = None  # on a GPU: how long the host took to queue a call
    breakdown: dict[str, float] | None = None
    nodes: list[tuple[Any, ...]] | None = None  # the last item of each is its seconds
    sites_shown: int | None = None
    contest: str | None = None
    baseline: str | None = None
    baseline_label: str | None = None
    baseline_artifact: str | None = None
    baseline_sha256: str | None = None
    baseline_options: dict[str, Any] | None = None
    baseline_runner: str | None = None
    baseline_threads: int | None = None
    by_host: bool | None = None
    seconds: float | None = None
    baseline_seconds: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: str | None = None
    blocks: int | None = None
    disturbed_blocks: int | None = None
    loads: int | None = None
    import_seconds: float | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    grid: str | None = None
    key: str | None = None

    @property
    def median(self) -> Estimate:
        """Seconds per call."""
        return Estimate(known(self.p50), known(self.p50_low), known(self.p50_high))

    @property
    def paired(self) -> Estimate:
        """Time divided by the baseline's, of a paired comparison."""
        return Estimate(known(self.ratio), known(self.ratio_low), known(self.ratio_high))


FACTS = frozenset(field.name for field in msgspec.structs.fields(Timing) if field.required)  # older rows lack some
KEYS = frozenset(Timing.__struct_fields__)


def timings(content: Mapping[str, Any]) -> list[Timing]:
    """Return the rows of a benchmark file that ``read_bench`` has checked.

    Raises:
        UserError: where it is of an older format, whose rows lack fields.
    """
    rows = [row["extra_info"] for row in content["benchmarks"]]
    if lost := [name for row in rows for name in sorted(FACTS - row.keys())]:
        raise UserError(f"a row has no {lost[0]}: it is of an older format", f"run {command('bench')} again")
    return [msgspec.convert(row, Timing) for row in rows]


def timing(facts: Mapping[str, Any]) -> Timing:
    """Convert the facts of a measurement to the record that its row will be read back as.

    Raises:
        ValueError: for an unknown key, such as a misspelt one.
    """
    if unknown := sorted(facts.keys() - KEYS):
        raise ValueError(f"a timing has no field {unknown[0]}")
    return msgspec.convert(json.loads(json.dumps(dict(facts))), Timing)


def known(value: Value | None) -> Value:
    """Return a field that rows of this kind must have.

    Raises:
        ValueError: where it is None.
    """
    if value is None:
        raise ValueError("the row has no such figure")
    return value


class PointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A point of a network: its kind, its site, eager float32's own error there, and its largest magnitude."""

    kind: str
    site: str | None
    eager_error: Number
    scale: Number


class NetworkEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a network was verified on: examples, labels, points."""

    examples: int
    labels: bool
    notes: tuple[str, ...]
    points: dict[str, PointEntry]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """Content of ``verify.json``; ``refused`` holds why an external runtime refuses an artifact, by both names."""

    passed: bool
    checks: tuple[Check, ...]
    networks: dict[str, NetworkEntry]
    unavailable: dict[str, str]
    refused: dict[str, str] = {}
    tolerances: dict[str, dict[str, Any]] = {}
    environment: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``verify.json``."""
        return finite(msgspec.to_builtins(self)) | {"checks": [check.as_dict() for check in self.checks]}
