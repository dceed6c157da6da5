"""Records for tests that look at a few of their fields: all others stand for a check that found nothing wrong."""

from collections.abc import Iterable, Mapping

import msgspec

from stn_export.run import records
from stn_export.run.records import Check, NetworkEntry, Timing, Verified
from tests import bench_rows
from tests.bench_rows import Artifact

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
TIMING = {
    "network": "stn",
    "label": "spatial transformer",
    "role": "subject",
    "artifact": "folded-fp32",
    "sha256": "",
    "format": "onnx",
    "lowering": "folded",
    "precision": "fp32",
    "input": "float",
    "runner": "onnxruntime-cpu",
    "device": "cpu",
    "batch": 1,
    "regime": "device",
    "inputs": "hot: one buffer",
}


def check(**known: object) -> Check:
    """A check of which this is known; whatever is no field of one is refused."""
    assert known.keys() <= set(Check.__struct_fields__)
    return msgspec.convert(CHECK | known, Check)


def network(labels: bool, points: Mapping[str, object] | None = None, examples: int = 100) -> NetworkEntry:
    """What a network was checked on, by a hundred examples unless more are said."""
    return msgspec.convert({"examples": examples, "labels": labels, "notes": [], "points": points or {}}, NetworkEntry)


def verified(*checks: Check, networks: Mapping[str, NetworkEntry] | None = None, **more: object) -> Verified:
    """The content of ``verify.json`` with these checks."""
    passed = all(each.passed for each in checks)
    known = {"passed": passed, "checks": checks, "networks": dict(networks or {}), "unavailable": {}, "environment": {}}
    return Verified(**known | more)


class MadeTiming(Timing, frozen=True, kw_only=True, omit_defaults=True):
    """A row that others are made from: ``row | {"batch": 16}``."""

    def __or__(self, changed: Mapping[str, object]) -> "MadeTiming":
        return msgspec.structs.replace(self, **changed)


def timing(known: Mapping[str, object]) -> MadeTiming:
    """A row of which this is known; whatever is no field of one is refused."""
    return msgspec.convert(msgspec.to_builtins(records.timing(TIMING | known)), MadeTiming)


def timings(rows: Iterable[Mapping[str, object]]) -> list[MadeTiming]:
    """Such rows."""
    return list(map(timing, rows))


def timed(artifact: Artifact, seconds: float, batch: int = 1, **more: object) -> MadeTiming:
    """A row of an artifact on the CPU, timed by itself: ``seconds`` a batch."""
    runner = "eager-cpu" if artifact[2] == "pt2" else "onnxruntime-cpu"
    known = bench_rows.facts(artifact, runner, "cpu", batch, "device") | bench_rows.timing(seconds, batch, 0.01)
    return timing(known | more)


def in_contest(artifact: Artifact, name: str, ratio: float, batch: int = 1, **more: object) -> MadeTiming:
    """A row of a paired comparison of an artifact on the CPU: ``ratio`` times the baseline's time."""
    known = bench_rows.facts(artifact, "onnxruntime-cpu", "cpu", batch, "contest") | bench_rows.contest(
        name, 1e-4, ratio, **more
    )
    return timing(known)
