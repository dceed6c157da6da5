"""What stages write about artifacts and later ones read back: records, whose fields are the keys of the JSON files.

Files may hold more. A number that is not finite is ``null`` in a file and None when it is read back.
"""

import math
from typing import Any

import msgspec

Number = float | None  # nothing where there was no number


def finite(value: Any) -> Any:
    """Return the same for strict JSON: None for every number in it that is not finite."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Comparison(msgspec.Struct, frozen=True):
    """How far values lie from what they are compared with; true where every element is within tolerance.

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
    """Mean and worst error of a site's grid over the examples, in pixels."""

    mean: Number
    worst: Number


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What verification found of one artifact in one runner.

    ``comparisons`` are by test input and point; ``errors`` the worst by point (a grid in pixels), ``multiple`` the
    worst of them in units of float32 eager's own; ``grid_pixels`` by site; ``differing`` the examples where an output
    strays furthest from float64, with by how much and which; ``notes`` what was left out; ``search`` what a search for
    worse inputs came to, where one was asked for. ``failure`` is empty where the check passed.
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
        """Whether nothing failed."""
        return not self.failure

    def as_dict(self) -> dict[str, Any]:
        """Return the check as ``verify.json`` has it, with the verdict."""
        return {"passed": self.passed} | finite(msgspec.to_builtins(self))


class PointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A point of a network: what it is, of which site, float32 eager's own error there, and its largest value."""

    kind: str
    site: str | None
    eager_error: Number
    scale: Number


class NetworkEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What a network was checked on."""

    examples: int
    labels: bool
    notes: tuple[str, ...]
    points: dict[str, PointEntry]


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """``verify.json``; ``refused`` is why an external runtime does not take an artifact, by both."""

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
