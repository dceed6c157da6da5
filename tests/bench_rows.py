"""A made-up ``bench.json``: rows as the benchmarks write them, with figures from a little arithmetic and noise."""

from collections.abc import Iterable, Iterator

import numpy as np

from stn_export.run.manifest import CHECKPOINT, PROGRAM, NetworkDirectory

ENVIRONMENT = {"cpu": "a <fast> one", "gpu": "a GPU", "versions": {"torch": "2"}}
# By runner: what it runs, microseconds a call, and microseconds an image
RUNNERS = {
    "eager-{}": ("pt2", 400.0, 60.0),
    "eager-autograd-{}": ("pt2", 430.0, 62.0),
    "torchscript-{}": ("torchscript", 300.0, 58.0),
    "aotinductor-{}": ("aotinductor", 100.0, 55.0),
    "onnxruntime-{}": ("onnx", 20.0, 42.0),
    "onnxruntime-default-{}": ("onnx", 40.0, 70.0),
    "openvino-{}": ("onnx", 60.0, 30.0),
}
SHARES = {"localisation": 0.3, "grid": 0.06, "sampler": 0.2, "rest": 0.44}
NETWORKS = {"stn": ("spatial transformer", "subject"), "cnn": ("plain CNN", "plain")}
CONTESTS = {"overhead": 0.45, "eager": 4.0, "default": 2.2, "lowering": 1.5}  # the baseline's time over ours

Artifact = tuple[str, str, str, str]  # network, name, format, sha256
FEW = (
    ("stn", PROGRAM, "pt2", "a"),
    ("stn", "folded-fp32", "onnx", "b"),
    ("stn", "matmul-int8", "onnx", "c"),
    ("cnn", PROGRAM, "pt2", "d"),
    ("cnn", "plain-fp32", "onnx", "e"),
)


def artifacts_of(directories: Iterable[NetworkDirectory]) -> list[Artifact]:
    """The artifacts of a run."""
    listed = [artifact for directory in directories for artifact in directory.artifacts.values()]
    listed = [artifact for artifact in listed if artifact.name != CHECKPOINT]
    return [(each.network, each.name, each.format, each.sha256) for each in listed]


def facts(artifact: Artifact, runner: str, device: str, batch: int, regime: str, **more: object) -> dict:
    """What every row carries."""
    network, name, form, sha256 = artifact
    label, role = NETWORKS[network]
    lowering, precision, *contract = name.split("-") if form == "onnx" else (None, "fp32")
    return {
        "network": network,
        "label": label,
        "role": role,
        "artifact": name,
        "sha256": sha256,
        "format": form,
        "lowering": lowering,
        "precision": precision,
        "input": "-".join(contract) or "float",
        "runner": runner,
        "device": device,
        "batch": batch,
        "threads": 1,
        "tf32": False,
        "options": {},
        "regime": regime,
        "inputs": "hot: one buffer in place",
    } | more


def timing(seconds: float, batch: int, noise: float = 0.02, **more: object) -> dict:
    """What every timed row adds."""
    return {
        "n": 1000,
        "p50": seconds,
        "p90": 1.1 * seconds,
        "p99": 1.4 * seconds if batch == 1 else None,
        "iqr": 0.05 * seconds,
        "p50_low": (1 - noise) * seconds,
        "p50_high": (1 + noise) * seconds,
        "examples_per_second": batch / seconds,
        "disturbed": False,
        "machine": {"load_average": 1.0, "gpu": None},
        "file_bytes": 180_000,
        "host_bytes": 30_000_000,
        "device_bytes": None,
    } | more


def contest(name: str, seconds: float, ratio: float, noise: float = 0.03, **more: object) -> dict:
    """What a contest adds; the verdict is that of the benchmarks."""
    low, high = ratio * (1 - noise), ratio * (1 + noise)
    same = low >= 0.97 and high <= 1.03
    return {
        "contest": name,
        "baseline": "another",
        "baseline_label": NETWORKS["cnn"][0],
        "baseline_artifact": "another",
        "seconds": seconds,
        "baseline_seconds": seconds / ratio,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "blocks": 25,
        "disturbed_blocks": 0,
        "verdict": "same" if same else "faster" if high < 1 else "slower" if low > 1 else "cannot tell",
    } | more


def rows(
    artifacts: Iterable[Artifact] = FEW, device: str = "cpu", batches: tuple[int, ...] = (1, 16, 256)
) -> list[dict]:
    """The rows of a whole run on one device, the same ones at every call."""
    random = np.random.default_rng(0)
    return [
        row
        for artifact in artifacts
        for runner, (form, call, image) in RUNNERS.items()
        if form == artifact[2] and ("default" not in runner or artifact[1] in ("decomposed-fp32", "plain-fp32"))
        for row in _program(artifact, runner.format(device), device, (call, image), batches, random)
    ]


def _program(
    artifact: Artifact,
    runner: str,
    device: str,
    cost: tuple[float, float],
    batches: tuple[int, ...],
    random: np.random.Generator,
) -> Iterator[dict]:
    factor = float(random.uniform(0.9, 1.5)) * (1.0 if artifact[0] == "stn" else 0.45) * 1e-6
    for batch in batches:
        seconds = factor * (cost[0] + cost[1] * batch)
        noise, disturbed = float(random.uniform(0.01, 0.05)), bool(random.random() < 0.03)
        measured = timing(seconds, batch, noise, disturbed=disturbed)
        yield facts(artifact, runner, device, batch, "device" if batch == 1 else "offline") | measured
        if batch == 1:
            yield facts(artifact, runner, device, 1, "request") | timing(1.2 * seconds + 1e-5, 1, noise)
            start = {"load_seconds": 0.02, "first_seconds": 3 * seconds, "file_bytes": 180_000}
            yield facts(artifact, runner, device, 1, "start-up", host_bytes=3e7, device_bytes=None, **start)
        if artifact[0] == "stn" and "autograd" not in runner and batch in (1, 256):
            for name, times in CONTESTS.items():
                ratio = float(random.normal(1, 0.05)) / times
                disturbed = int(random.integers(4) == 0)
                yield facts(artifact, runner, device, batch, "contest") | contest(
                    name, seconds, ratio, noise, disturbed_blocks=disturbed
                )
        if "autograd" not in runner and batch in (1, 256):
            parts = {part: seconds * share * (artifact[0] == "stn" or share > 0.3) for part, share in SHARES.items()}
            yield facts(artifact, runner, device, batch, "breakdown", breakdown=parts, nodes=[])


def bench_file(content: Iterable[dict]) -> dict:
    """Rows as pytest-benchmark's file has them, as far as the report reads it."""
    return {"machine_info": {"stn_export": ENVIRONMENT}, "benchmarks": [{"extra_info": row} for row in content]}
