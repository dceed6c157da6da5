"""Records for tests that look at a few of their fields: all others stand for a check that found nothing wrong."""

from collections.abc import Mapping

import msgspec

from stn_export.artifacts.records import Check, NetworkEntry, Verified

CHECK = {
    "network": "stn",
    "artifact": "folded-fp32",
    "sha256": "",
    "runner": "onnxruntime-cpu",
    "precision": "fp32",
    "comparisons": {},
    "errors": {},
    "multiple": 1.0,
    "agreement": 1.0,
    "accuracy": None,
    "deterministic": True,
    "grid_pixels": {},
    "differing": [],
    "notes": [],
    "failure": "",
}


def check(**known: object) -> Check:
    """A check of which this is known; whatever is no field of one is refused."""
    assert known.keys() <= set(Check.__struct_fields__)
    return msgspec.convert(CHECK | known, Check)


def network(labels: bool, points: Mapping[str, object] | None = None) -> NetworkEntry:
    """What a network was checked on, by a hundred examples."""
    return msgspec.convert({"examples": 100, "labels": labels, "notes": [], "points": points or {}}, NetworkEntry)


def verified(*checks: Check, networks: Mapping[str, NetworkEntry] | None = None, **more: object) -> Verified:
    """The content of ``verify.json`` with these checks."""
    passed = all(each.passed for each in checks)
    known = {"passed": passed, "checks": checks, "networks": dict(networks or {}), "unavailable": {}, "environment": {}}
    return Verified(**known | more)
