"""The golden run: made-up results whose values are all different, so that whatever is mixed up reads differently.

Two devices of which the second by name is the faster one, three files in one runner, two sites and two outputs, wide
intervals that are not symmetric, parts of a call, two batches, disturbed and undisturbed figures, seeds far apart and
the memory of four fresh processes. ``read_markdown`` and ``read_html`` give tables back by their headings.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from stn_export.program.sites import Site
from stn_export.program.specs import Contract, TensorSpec
from stn_export.run.manifest import (
    POINTS_FILE,
    PROGRAM,
    TRAINING_FILE,
    VERIFY_FILE,
    VERIFY_SCHEMA,
    Artifact,
    ExamplesFile,
    Facts,
    NetworkDirectory,
    network_directories,
)
from stn_export.run.records import Check, Verified
from stn_export.run.schemas import Difference, Mean, ModelComparison, Trained, Trainings
from stn_export.run.store import serialise, write_json
from tests import made_records
from tests.bench_rows import facts
from tests.report_files import export

ENVIRONMENT = {
    "cpu": "Golden CPU",
    "gpu": "Golden GPU",
    "threads": 3,
    "instruction_sets": ["AVX2", "FMA"],
    "git_commit": "0123456789abcdef",
    "versions": {"torch": "9.8.7"},
}
MICRO = 1e-6

# Steps: network, artifact, runner, batch: microseconds of p50, its interval, p90, p99; KiB of the file, MiB of the
# host and of the GPU; whether it was disturbed.
STEPS: dict[tuple[str, str, str, int], tuple] = {
    ("stn", "program", "eager-cpu", 1): (613.0, 587.0, 668.0, 701.0, 913.0, 160, 3, None, False),
    ("stn", "program", "eager-cpu", 64): (21_700.0, 20_900.0, 23_900.0, 24_400.0, None, 160, 5, None, False),
    ("stn", "folded-fp32", "onnxruntime-cpu", 1): (123.4, 119.1, 131.9, 140.2, 191.7, 197, 80, None, False),
    ("stn", "folded-fp32", "onnxruntime-cpu", 64): (7_170.0, 6_930.0, 7_720.0, 7_910.0, None, 197, 90, None, True),
    ("stn", "decomposed-fp32", "onnxruntime-cpu", 1): (287.4, 279.3, 301.7, 322.0, 401.0, 211, 70, None, False),
    ("stn", "decomposed-fp32", "onnxruntime-cpu", 64): (9_310.0, 8_990.0, 9_870.0, 9_950.0, None, 211, 75, None, False),
    ("stn", "matmul-int8", "onnxruntime-cpu", 1): (209.8, 203.1, 222.6, 235.0, 298.0, 83, 60, None, False),
    ("stn", "matmul-int8", "onnxruntime-cpu", 64): (4_190.0, 4_010.0, 4_480.0, 4_610.0, None, 83, 65, None, False),
    ("cnn", "program", "eager-cpu", 1): (266.0, 251.0, 293.0, 307.0, 361.0, 128, 2, None, False),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 1): (52.9, 50.7, 58.3, 63.5, 77.2, 131, 50, None, False),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 64): (2_290.0, 2_170.0, 2_510.0, 2_640.0, None, 131, 55, None, False),
    ("stn", "program", "eager-cuda", 1): (402.0, 391.0, 431.0, 447.0, 533.0, 160, 7, 21, False),
    ("stn", "program", "eager-cuda", 64): (449.0, 436.0, 478.0, 490.0, None, 160, 8, 22, False),
    ("stn", "folded-fp32", "onnxruntime-cuda", 1): (61.7, 58.1, 69.4, 73.8, 99.1, 197, 310, 37, True),
    ("stn", "folded-fp32", "onnxruntime-cuda", 64): (97.1, 92.6, 108.9, 114.0, None, 197, 320, 41, False),
    ("cnn", "plain-fp32", "onnxruntime-cuda", 1): (38.2, 36.9, 41.5, 44.7, 56.6, 131, 300, 33, False),
}
COLD = {("stn", "folded-fp32", "onnxruntime-cpu", 1): (177.3, 171.2, 189.9)}
REQUESTS = {
    ("stn", "folded-fp32", "onnxruntime-cpu", 1): (151.6, 146.3, 163.8, False),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 1): (71.4, 69.3, 76.1, True),
}
# Fresh processes: milliseconds of loading and of the first answer, MiB of the host.
STARTS = {
    ("stn", "program", "eager-cpu", 1): (412.0, 8.84, 84),
    ("stn", "folded-fp32", "onnxruntime-cpu", 1): (25.3, 6.07, 80),
    ("stn", "decomposed-fp32", "onnxruntime-cpu", 1): (27.9, 7.13, 71),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 1): (18.2, 3.46, 57),
}
# Paired comparisons: kind, artifact, runner, batch: the ratio of our time and its interval, what that says, disturbed
# blocks and blocks.
CONTESTS: dict[tuple[str, str, str, int], tuple] = {
    ("overhead", "folded-fp32", "onnxruntime-cpu", 1): (2.334, 2.207, 2.538, "slower", 0, 26),
    ("overhead", "folded-fp32", "onnxruntime-cpu", 64): (3.137, 2.957, 3.442, "slower", 2, 27),
    ("overhead", "matmul-int8", "onnxruntime-cpu", 1): (2.714, 2.591, 2.882, "slower", 0, 28),
    ("overhead", "folded-fp32", "onnxruntime-cuda", 1): (1.618, 1.513, 1.774, "slower", 0, 29),
    ("eager", "folded-fp32", "onnxruntime-cpu", 1): (0.2017, 0.1893, 0.2219, "faster", 0, 31),
    ("eager", "decomposed-fp32", "onnxruntime-cpu", 1): (0.4693, 0.4411, 0.5092, "faster", 0, 32),
    ("eager", "matmul-int8", "onnxruntime-cpu", 1): (0.3421, 0.3222, 0.3713, "faster", 0, 33),
    ("eager", "folded-fp32", "onnxruntime-cpu", 64): (0.3311, 0.3104, 0.3613, "faster", 1, 34),
    ("eager", "matmul-int8", "onnxruntime-cpu", 64): (0.1931, 0.1812, 0.2107, "faster", 0, 35),
    ("eager", "folded-fp32", "onnxruntime-cuda", 1): (0.1534, 0.1437, 0.1691, "faster", 3, 36),
    ("eager", "folded-fp32", "onnxruntime-cuda", 64): (0.2172, 0.2034, 0.2393, "faster", 0, 37),
    ("default", "folded-fp32", "onnxruntime-cpu", 1): (0.9712, 0.9213, 1.0414, "cannot tell", 0, 38),
    ("lowering", "folded-fp32", "onnxruntime-cpu", 1): (0.4293, 0.4032, 0.4714, "faster", 0, 39),
}
BASELINES = {  # network, artifact, and the beginning of the runner, of what each kind is held against
    "overhead": ("cnn", "plain-fp32", "onnxruntime"),
    "eager": ("stn", "program", "eager"),
    "default": ("stn", "default-fp32", "onnxruntime-default"),
    "lowering": ("stn", "decomposed-fp32", "onnxruntime"),
}
# Profiled calls: microseconds of localisation, grid, sampler and rest.
PARTS = {
    ("stn", "folded-fp32", "onnxruntime-cpu", 1): (31.7, 11.3, 47.9, 40.1),
    ("stn", "folded-fp32", "onnxruntime-cpu", 64): (1_310.0, 420.0, 2_030.0, 1_520.0),
    ("stn", "decomposed-fp32", "onnxruntime-cpu", 1): (33.3, 171.0, 49.1, 42.6),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 1): (0.0, 0.0, 0.0, 47.2),
    ("cnn", "plain-fp32", "onnxruntime-cpu", 64): (0.0, 0.0, 0.0, 2_070.0),
}
LABELS = {"stn": ("spatial transformer", "subject"), "cnn": ("plain CNN", "plain"), "wide": ("wide CNN", "other")}

# Accuracies after both epochs of three seeds, and what training made of them; test accuracies are the second epoch's.
CURVES = {
    "stn": {"0": [0.4127, 0.9433], "1": [0.3316, 0.8917], "2": [0.5243, 0.9678]},
    "cnn": {"0": [0.3851, 0.7861], "1": [0.2964, 0.7411], "2": [0.4408, 0.8097]},
    "wide": {"0": [0.3555, 0.8512], "1": [0.3102, 0.8206], "2": [0.4809, 0.8824]},
}
# Made up all the same: mean, deviation, ends of the interval, seconds a seed, parameters, multiply-adds.
TRAINED = {
    "stn": (0.9342, 0.0387, 0.8371, 0.9919, (41.2, 47.9, 73.6), 39_884, 2_064_001),
    "cnn": (0.7791, 0.0349, 0.6912, 0.8643, (19.4, 22.7, 31.1), 31_340, 1_112_003),
    "wide": (0.8514, 0.0309, 0.7733, 0.9271, (39.8, 44.3, 58.5), 58_123, 2_099_007),
}
GAINS = {  # points: mean, deviation, ends of the interval, finding
    "cnn": (15.51, 1.23, 12.46, 18.59, "gain"),
    "wide": (-8.28, 2.14, -13.57, -2.91, "loss"),
}

# Checks: network, artifact, runner: errors by point, multiple, agreement, accuracy, mean and worst grid error by site,
# what failed.
ERRORS = ("site0/theta", "site0/grid", "site0/warped", "site1/grid", "site1/warped", "log_probs", "boxes")
CHECKS: dict[tuple[str, str, str], tuple] = {
    ("stn", "program", "eager-cpu"): (
        (1.1e-7, 1.3e-5, 2.1e-6, 1.7e-5, 2.3e-6, 3.1e-5, 3.7e-5),
        1.06,
        0.9991,
        0.9433,
        ((1.1e-6, 1.2e-5), (1.4e-6, 1.6e-5)),
        "",
    ),
    ("stn", "folded-fp32", "onnxruntime-cpu"): (
        (2.9e-7, 4.3e-5, 3.2e-6, 4.7e-5, 3.8e-6, 5.3e-5, 4.1e-5),
        1.87,
        0.9987,
        0.9412,
        ((2.2e-6, 2.4e-5), (2.6e-6, 2.8e-5)),
        "",
    ),
    ("stn", "folded-fp32", "onnxruntime-cuda"): (
        (5.9e-7, 6.1e-5, 5.2e-6, 5.4e-5, 5.6e-6, 6.7e-5, 7.1e-5),
        2.64,
        0.9983,
        0.9401,
        ((3.1e-6, 3.2e-5), (3.4e-6, 3.6e-5)),
        "",
    ),
    ("stn", "decomposed-fp32", "onnxruntime-cpu"): (
        (7.3e-7, 7.9e-5, 8.2e-6, 8.3e-5, 8.6e-6, 8.9e-5, 9.7e-5),
        3.49,
        0.9973,
        0.9389,
        ((4.1e-6, 4.2e-5), (4.4e-6, 4.6e-5)),
        "",
    ),
    ("stn", "decomposed-fp32", "openvino-cpu"): (
        (1.9e-3, 2.3e-1, 2.6e-2, 2.9e-1, 3.3e-2, 4.9e-1, 3.9e-1),
        512.3,
        0.8123,
        0.7654,
        ((5.1e-2, 5.2e-1), (5.4e-2, 5.6e-1)),
        "the grid is off",
    ),
    ("stn", "matmul-int8", "onnxruntime-cpu"): (
        (4.9e-3, 6.3e-2, 7.4e-2, 7.8e-2, 8.4e-2, 9.1e-1, 8.7e-1),
        97.1,
        0.9874,
        0.9358,
        ((6.1e-3, 6.2e-2), (7.4e-3, 7.6e-2)),
        "",
    ),
    ("cnn", "program", "eager-cpu"): ((None,) * 5 + (2.7e-6, 1.8e-6), 1.02, 0.9999, 0.7861, (), ""),
    ("cnn", "plain-fp32", "onnxruntime-cpu"): ((None,) * 5 + (4.4e-6, 6.8e-6), 1.33, 0.9996, 0.7849, (), ""),
    ("cnn", "plain-fp32", "onnxruntime-cuda"): ((None,) * 5 + (5.8e-6, 3.6e-6), 1.71, 0.9994, 0.7836, (), ""),
}
EXAMPLES = 2000
EAGER = (0.9e-7, 1.2e-5, 1.9e-6, 1.5e-5, 2.2e-6, 2.8e-5, 2.5e-5)  # float32 eager's own errors
THETAS = ((0.9, 0.1, 0.8, -0.2), (0.7, 0.25, 0.6, 0.15), (1.2, -0.3, 1.1, 0.35), (0.5, 0.4, 0.65, -0.45))
OUTSIDE = (0.11, 0.02, 0.35, 0.07)  # shares of the output grid

Rows = list[dict]


def step_rows() -> Rows:
    """Rows of bound steps, of cold inputs, requests and fresh processes."""
    found = []
    for (network, artifact, runner, batch), said in STEPS.items():
        p50, low, high, p90, p99, file, host, gpu, disturbed = said
        regime = "device" if batch == 1 else "offline"
        row = row_of(network, artifact, runner, batch, regime, disturbed=disturbed, n=1000 if batch == 1 else 21)
        sizes = {"host_bytes": host * 2**20, "device_bytes": gpu and gpu * 2**20, "file_bytes": file * 2**10}
        tail = {"p90": p90 * MICRO, "p99": p99 and p99 * MICRO, "iqr": 0.06 * p50 * MICRO}
        found.append(row | timed(p50, low, high, batch) | tail | sizes)
    for name, (p50, low, high) in COLD.items():
        row = row_of(*name, "device", disturbed=False, inputs="cold: 7 buffers, 9 MiB, in turn", file_bytes=197 * 2**10)
        found.append(row | timed(p50, low, high, name[-1]) | {"p90": 1.01 * high * MICRO, "p99": None})
    for name, (p50, low, high, disturbed) in REQUESTS.items():
        row = row_of(*name, "request", disturbed=disturbed, file_bytes=STEPS[name][5] * 2**10)
        found.append(row | timed(p50, low, high, name[-1]) | {"p90": 1.01 * high * MICRO, "p99": None})
    for name, (load, first, host) in STARTS.items():
        row = row_of(*name, "start-up", import_seconds=1.234, load_seconds=load / 1e3, first_seconds=first / 1e3)
        found.append(row | {"host_bytes": host * 2**20, "device_bytes": None, "file_bytes": STEPS[name][5] * 2**10})
    return found


def timed(p50: float, low: float, high: float, batch: int) -> dict:
    """What a timed row holds; times are given in microseconds."""
    ends = {"p50": p50 * MICRO, "p50_low": low * MICRO, "p50_high": high * MICRO}
    return ends | {"examples_per_second": batch / (p50 * MICRO)}


def row_of(network: str, artifact: str, runner: str, batch: int, regime: str, **more: object) -> dict:
    """What every row carries."""
    form = "pt2" if artifact == PROGRAM else "onnx"
    device = runner.rpartition("-")[2]
    sha256 = f"{network} {artifact}"
    return facts((network, artifact, form, sha256), runner, device, batch, regime) | {"clock": "wall"} | more


def contest_rows() -> Rows:
    """Paired comparisons and profiled calls."""
    found = []
    for (kind, artifact, runner, batch), (ratio, low, high, verdict, disturbed, blocks) in CONTESTS.items():
        network, other, begin = BASELINES[kind]
        device = runner.rpartition("-")[2]
        seconds = 1.03 * STEPS["stn", artifact, runner, batch][0] * MICRO  # another moment of the machine
        row = row_of("stn", artifact, runner, batch, "contest", contest=kind, verdict=verdict, blocks=blocks)
        sides = {"baseline": f"{network}-{begin}-{device}-{other}", "baseline_label": LABELS[network][0]}
        sides |= {"baseline_artifact": other, "baseline_sha256": f"{network} {other}", "disturbed_blocks": disturbed}
        times = {"seconds": seconds, "baseline_seconds": seconds / ratio}
        found.append(row | sides | times | {"ratio": ratio, "ratio_low": low, "ratio_high": high})
    for name, parts in PARTS.items():
        seconds = dict(zip(("localisation", "grid", "sampler", "rest"), (MICRO * each for each in parts), strict=True))
        nodes = [[f"{part} node", "Conv", part, value] for part, value in seconds.items()]
        found.append(row_of(*name, "breakdown", breakdown=seconds, nodes=nodes, sites_shown=1))
    return found


def rows(shas: dict[tuple[str, str], str] | None = None) -> Rows:
    """All rows of the golden run; ``shas`` are those of its files, by network and artifact."""
    found = [*step_rows(), *contest_rows()]
    for row in found:
        for key, name in (("sha256", "artifact"), ("baseline_sha256", "baseline_artifact")):
            network = (
                row["baseline"].partition("-")[0] if name == "baseline_artifact" and key in row else row["network"]
            )
            if key in row and shas and (network, row[name]) in shas:
                row[key] = shas[network, row[name]]
    return found


def name_of(row: dict) -> str:
    """A row's name in pytest-benchmark's file."""
    cold = "cold-" if row["inputs"].startswith("cold") else ""
    kind = row.get("contest", row["regime"])
    return f"test_{kind}[{cold}{row['network']}-{row['runner']}-{row['artifact']}-{row['batch']}]"


def median_of(row: dict) -> float:
    """What pytest-benchmark says that a row took."""
    if "breakdown" in row:
        return sum(row["breakdown"].values())
    return row.get("p50", row.get("seconds", 0.001))


def bench_content(found: Rows, **machine: object) -> dict:
    """A file of pytest-benchmark with these rows."""
    listed = [
        {
            "name": name_of(row),
            "fullname": f"test_golden.py::{name_of(row)}",
            "stats": {"median": median_of(row), "data": [0.5]},
            "extra_info": row,
        }
        for row in found
    ]
    environment = {"stn_export": ENVIRONMENT | machine}
    return {"machine_info": environment, "benchmarks": listed, "datetime": "2026-01-31T12:00:00+00:00", "work": {}}


def shas_of(run: Path) -> dict[tuple[str, str], str]:
    """What the files of a run hash to."""
    return {
        (directory.name, name): artifact.sha256
        for directory in network_directories(run)
        for name, artifact in directory.artifacts.items()
    }


def checks(shas: dict[tuple[str, str], str]) -> list[Check]:
    """The checks of the golden run."""
    found = []
    for (network, artifact, runner), (errors, multiple, agreement, accuracy, pixels, failure) in CHECKS.items():
        shown = {point: error for point, error in zip(ERRORS, errors, strict=True) if error is not None}
        compared = {point: {"reason": "", "max_abs": error} for point, error in shown.items()}
        smaller = {point: {"reason": "", "max_abs": error / 3} for point, error in shown.items()}
        grids = {f"site{index}": {"mean": mean, "worst": worst} for index, (mean, worst) in enumerate(pixels)}
        found.append(
            made_records.check(
                network=network,
                artifact=artifact,
                runner=runner,
                sha256=shas[network, artifact],
                precision="int8" if artifact.endswith("int8") else "fp32",
                failure=failure,
                comparisons={"examples ×1": smaller, "forced site0": compared},
                errors=shown,
                multiple=multiple,
                agreement=agreement,
                accuracy=accuracy,
                deterministic=artifact != "decomposed-fp32",
                grid_pixels=grids,
            )
        )
    return found


def verify_content(shas: dict[tuple[str, str], str]) -> Verified:
    """``verify.json``."""
    kinds = [point.rpartition("/")[2] if "/" in point else "output" for point in ERRORS]
    points = {
        point: {"kind": kind, "site": point.partition("/")[0] if "/" in point else None, "eager_error": own, "scale": 1}
        for point, kind, own in zip(ERRORS, kinds, EAGER, strict=True)
    }
    networks = {
        name: made_records.network(labels=True, points=points if name == "stn" else outputs(points), examples=EXAMPLES)
        for name in ("stn", "cnn")
    }
    return made_records.verified(*checks(shas), networks=networks)


def outputs(points: dict[str, dict]) -> dict[str, dict]:
    """Those that are of no site."""
    return {name: point for name, point in points.items() if point["site"] is None}


def mean_of(values: tuple) -> Mean:
    """Of three seeds."""
    mean, deviation, low, high = values
    return Mean(mean, deviation, low, high, 3)


def comparison() -> ModelComparison:
    """The golden trainings."""
    models = {}
    for name, (mean, deviation, low, high, seconds, parameters, work) in TRAINED.items():
        label, role = LABELS[name]
        models[name] = Trained(
            mean=mean,
            deviation=deviation,
            low=low,
            high=high,
            count=3,
            label=label,
            role=role,
            parameters=parameters,
            multiply_adds=work,
            device="cpu",
            seconds=dict(zip("012", seconds, strict=True)),
            median_seconds=sorted(seconds)[1],
            seeds={seed: curve[-1] for seed, curve in CURVES[name].items()},
            accuracies=CURVES[name],
        )
    differences = {
        name: Difference(
            mean=mean,
            deviation=deviation,
            low=low,
            high=high,
            count=3,
            label=LABELS[name][0],
            seeds={seed: 100 * (CURVES["stn"][seed][-1] - CURVES[name][seed][-1]) for seed in "012"},
            finding=finding,
            sentence=f"the sentence of {name}",
        )
        for name, (mean, deviation, low, high, finding) in GAINS.items()
    }
    return ModelComparison(
        run="golden",
        title="golden, quick, 2 epochs",
        dataset="digits",
        recipe="quick",
        epochs=2,
        precision="fp32",
        measure="the last epoch",
        sentence="Test accuracy: in one sentence.",
        models=models,
        differences=differences,
        reference=None,
        settings={},
        environments=[],
    )


def points_content(directory: NetworkDirectory) -> dict:
    """``points.pt``: four maps that scale and shift only, over an image of 94 by 24 pixels."""
    theta = torch.tensor([[[sx, 0.0, tx], [0.0, sy, ty]] for sx, tx, sy, ty in THETAS])
    site = {"theta": theta, "outside": torch.tensor(OUTSIDE), "image_size": [24, 94], "align_corners": False}
    network = {"program": directory.artifacts[PROGRAM].sha256, "examples": 4, "sites": {"site0": site}}
    return {"schema": "stn_export/points/1", "networks": {"stn": network}}


PIXELS = TensorSpec("images", "float32", ("N", 3, 24, 94))
OUTPUTS = (TensorSpec("log_probs", "float32", ("N", 10)), TensorSpec("boxes", "float32", ("N", 4)))
NETWORKS = {  # parameters and multiply-adds, as the manifests say
    "stn": (39_881, 2_088_077),
    "cnn": (31_337, 1_113_509),
}
WHERE = {"site0": ("nearest", "border", True), "site1": ("bilinear", "zeros", False)}  # mode, padding, align_corners


def site(index: int) -> dict:
    """A site as the manifest has it; the second one has a grid of its own."""
    name, theta = f"site{index}", "theta" * (not index)
    mode, padding, align = WHERE[name]
    image, warped = ("N", 3, 24 + index, 94 + index), ("N", 3, 16 + index, 32 + index)
    nodes = {"image": "image", "grid": "grid", "warped": "warped", "theta": theta}
    said = Site(name, f"line {index}", f"source {index}", mode, padding, align, align or None, image, warped, **nodes)
    return said.as_dict()


def write(run: Path) -> Path:
    """Write the golden run: manifests and results, and no file that anything could be run of."""
    exports = {"stn": ("folded-fp32", "decomposed-fp32", "matmul-int8"), "cnn": ("plain-fp32",)}
    for name, (parameters, work) in NETWORKS.items():
        directory = NetworkDirectory(run / name)
        directory.path.mkdir(parents=True)
        label, role = LABELS[name]
        sites = (site(0), site(1)) if name == "stn" else ()
        examples = ExamplesFile(file="examples.pt", sha256="", source=f"pictures of {name}")
        known = {"sites": sites, "parameters": parameters, "multiply_adds": work, "examples": examples}
        directory.describe(Facts(label, role, **known))
        contract = Contract((PIXELS,), OUTPUTS)
        directory.add(Artifact(PROGRAM, "program.pt2", name, "pt2", sha256=f"{name} {PROGRAM}", contract=contract))
        export(directory, *exports[name])
    shas = shas_of(run)
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, verify_content(shas).as_dict())
    (run / TRAINING_FILE).write_bytes(Trainings([comparison()], []).to_bytes())
    (run / POINTS_FILE).write_bytes(serialise(points_content(NetworkDirectory(run / "stn"))))
    (run / "bench.json").write_text(json.dumps(bench_content(rows(shas))), encoding="utf-8")
    return run


def scope(fixture_name: str, config: pytest.Config) -> str:
    """Once a module; once a test where mutants are tried, which asks of every test what it runs of its own."""
    return "function" if "MUTANT_UNDER_TEST" in os.environ else "module"


@dataclass
class Grid:
    """A table as a reader sees it."""

    columns: list[str]
    lines: list[list[str]] = field(default_factory=list)

    def by(self, *headings: str) -> dict[Any, dict[str, str]]:
        """Cells by column, by what stands in the columns that name a row; no two rows bear one name."""
        places = [self.columns.index(heading) for heading in headings]
        rest = [place for place in range(len(self.columns)) if place not in places]
        found = {
            tuple(line[place] for place in places) if len(places) > 1 else line[places[0]]: {
                self.columns[place]: line[place] for place in rest
            }
            for line in self.lines
        }
        assert len(found) == len(self.lines)
        return found

    def of(self, *columns: str) -> "Grid":
        """Some columns of it."""
        places = [self.columns.index(column) for column in columns]
        return Grid(list(columns), [[line[place] for place in places] for line in self.lines])


def unescaped(text: str) -> str:
    """Text as Markdown shows it."""
    plain = re.sub(r"\\(.)", r"\1", text.strip())
    return plain.replace("&lt;", "<").replace("&amp;", "&")


def read_markdown(text: str) -> dict[str, Grid]:
    """The tables of a page by the heading, or the bold line, that stands above."""
    found: dict[str, Grid] = {}
    title, table = "", None
    for line in text.splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif re.fullmatch(r"\*\*.*\*\*", line):
            title = unescaped(line[2:-2])
        if not line.startswith("|"):
            table = None
            continue
        cells = [unescaped(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if table is None:
            table = found[title] = Grid(cells)
        elif not all(re.fullmatch(r"-+:?", cell) for cell in cells):
            table.lines.append(cells)
    return found


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Grid] = {}
        self.charts: dict[str, dict] = {}
        self.terms: list[tuple[str, str]] = []
        self.title = self.caption = self.term = ""
        self.text: list[str] = []
        self.row: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3", "th", "td", "figcaption", "dt", "dd", "script", "button"):
            self.text = []
        if tag == "figcaption":
            self.caption = ""
        if tag == "tr":
            self.row = []
        if tag == "table":
            self.tables[self.title] = Grid([])

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        said = "".join(self.text).strip()
        if tag in ("h2", "h3"):
            self.title = said
        elif tag in ("th", "td"):
            self.row.append(said)
        elif tag == "tr":
            grid = self.tables[self.title]
            if grid.columns:
                grid.lines.append(self.row)
            else:
                grid.columns = self.row
        elif tag == "figcaption" or (tag == "span" and not self.caption):
            self.caption = self.caption or said
        elif tag == "script" and said.startswith("{") and self.caption:
            self.charts[self.caption] = json.loads(said)
        elif tag == "dt":
            self.term = said
        elif tag == "dd":
            self.terms.append((self.term, said))


def read_html(text: str) -> _Html:
    """Tables by heading, charts by caption, and the card."""
    found = _Html()
    found.feed(text)
    return found


def keyed(values: Iterable[dict], *names: str) -> dict[tuple, dict]:
    """Rows of a chart by some of their fields; no two share them."""
    listed = list(values)
    found = {tuple(row[name] for name in names): row for row in listed}
    assert len(found) == len(listed)
    return found


def channels(spec: dict, field_of: str) -> list[dict]:
    """Every channel of a chart that shows a field."""
    waiting: Sequence = [spec.get("encoding", {}), spec.get("layer", []), spec.get("spec", {})]
    found, todo = [], list(waiting)
    while todo:
        each = todo.pop()
        if isinstance(each, dict):
            if each.get("field") == field_of:
                found.append(each)
            todo += each.values()
        elif isinstance(each, list):
            todo += each
    return found
