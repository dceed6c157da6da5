"""Benchmark files made up for tests: rows of known speed on known machines."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from stn_export.program.specs import Contract
from stn_export.run.manifest import VERIFY_FILE, VERIFY_SCHEMA, Artifact, Facts, NetworkDirectory
from stn_export.run.store import write_json

CPU = {"cpu": "Test CPU @ 1 GHz", "gpu": None, "threads": 1, "git_commit": "abc", "versions": {"torch": "2"}}
RUNNERS = ("eager", "torchscript", "onnxruntime", "openvino")
BATCHES = (1, 16, 64, 256)
NETWORKS = {"stn": ("spatial transformer", "subject"), "cnn": ("plain CNN", "plain")}
WORK = {
    name: {
        str(batch): {"flops": 4_000_000 * batch, "bytes_fused": 10**5, "bytes_unfused": 10**6, "launches": 20}
        for batch in BATCHES
    }
    for name in NETWORKS
}


def timed(name: str, runner: str, network: str, batch: int, p50: float) -> dict:
    """A row of the bound step alone, its interval 2 % wide."""
    label, role = NETWORKS[network]
    extra = {
        "network": network,
        "label": label,
        "role": role,
        "runner": f"{runner}-cpu",
        "artifact": "some-fp32",
        "sha256": "0",
        "device": "cpu",
        "format": "onnx",
        "lowering": "some",
        "precision": "fp32",
        "input": "float",
        "disturbed": False,
        "file_bytes": 1000,
        "batch": batch,
        "regime": "device",
        "inputs": "hot: one buffer in place",
        "p50": p50,
        "p50_low": p50 * 0.99,
        "p50_high": p50 * 1.01,
        "examples_per_second": batch / p50,
    }
    stats = {"median": p50, "data": [p50] * 1000, "rounds": 1000}
    return {"name": name, "fullname": f"test_latency.py::{name}", "stats": stats, "extra_info": extra}


def contest(name: str, kind: str, runner: str, batch: int, ratio: float) -> dict:
    """A contest, its interval 2 % wide."""
    row = timed(name, runner, "stn", batch, 1e-3)
    times = {"p50", "p50_low", "p50_high", "examples_per_second"}
    row["extra_info"] = {key: value for key, value in row["extra_info"].items() if key not in times} | {
        "regime": "contest",
        "contest": kind,
        "baseline": "cnn-some",
        "baseline_label": NETWORKS["cnn"][0],
        "baseline_artifact": "some",
        "seconds": 1e-3,
        "baseline_seconds": 1e-3 / ratio,
        "ratio": ratio,
        "ratio_low": ratio * 0.99,
        "ratio_high": ratio * 1.01,
        "blocks": 25,
        "disturbed_blocks": 2,
        "verdict": "slower",
    }
    return row


def rows_of(seed: int, noise: float = 0.0, drift: float = 1.0) -> dict[str, dict]:
    """Every runner, network, batch, and contests; timed rows are ``noise`` apart and take ``drift`` times as long."""
    random, rows = np.random.default_rng(seed), []
    for network in NETWORKS:
        for speed, runner in enumerate(RUNNERS, 1):
            for batch in BATCHES:
                p50 = 1e-3 * batch / speed * drift * np.exp(random.normal(0, noise))
                rows.append(timed(f"test_latency[{network}-{runner}-{batch}]", runner, network, batch, p50))
    for kind, ratio in (("eager", 0.25), ("overhead", 1.8)):
        for runner in RUNNERS[1:]:
            value = ratio * np.exp(random.normal(0, 0.005))
            rows.append(contest(f"test_{kind}[{runner}]", kind, runner, 1, value))
    return {row["name"]: row for row in rows}


def prove(run: Path, *runners: str) -> None:
    """A run's manifest and ``verify.json`` that say that the file of all those rows equals PyTorch in these runners."""
    artifact = Artifact("some-fp32", "some-fp32.onnx", "stn", "onnx", "0", Contract((), ()), lowering="some")
    NetworkDirectory(run / "stn").describe(Facts(*NETWORKS["stn"]))
    NetworkDirectory(run / "stn").add(replace(artifact, details={"portability": {"a runtime": ["runs", ""]}}))
    check = {"network": "stn", "artifact": "some-fp32", "sha256": "0", "accuracy": None, "passed": True}
    check |= {"precision": "fp32", "failure": "", "comparisons": {}, "errors": {}, "multiple": None, "agreement": None}
    check |= {"deterministic": True, "grid_pixels": {}, "differing": [], "notes": []}
    checks = [check | {"runner": runner} for runner in runners]
    checks += [
        check | {"runner": "openvino-cpu", "passed": False, "failure": "off"},
        check | {"runner": "eager-cpu", "sha256": "old"},
    ]
    rest = {"passed": True, "networks": {}, "unavailable": {}, "environment": {}}
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, {"checks": checks} | rest)


def write(path: Path, rows: dict[str, dict], **machine: object) -> Path:
    """A bench.json of these rows on this machine."""
    content = {
        "machine_info": {"stn_export": CPU | machine},
        "benchmarks": list(rows.values()),
        "datetime": "2026-01-31T12:00:00+00:00",
        "work": WORK,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
