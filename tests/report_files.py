"""What stages leave in a run, made up for the report: exports in manifests, ``training.json``, ``verify.json``..."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from stn_export.run.manifest import (
    CHECKPOINT,
    POINTS_FILE,
    PROGRAM,
    TRAINING_FILE,
    VERIFY_FILE,
    VERIFY_SCHEMA,
    Artifact,
    NetworkDirectory,
    network_directories,
)
from stn_export.run.schemas import Difference, ModelComparison, Reference, Trained, Trainings
from stn_export.run.store import serialise, write_json

CUDA = {"predicted": True, "fallbacks": [], "copies": 0, "graph": True, "reason": "", "on_cuda": 26, "on_cpu": 0}
PORTABLE = {
    "ONNX Runtime CPU": ["runs, tested here", "It stays within."],
    "TensorRT": ["refused", "STN001 at grid: <no>."],
}
EAGER = {"theta": 2e-7, "grid": 7e-6, "warped": 8e-6, "output": 3e-5}  # errors by kind of point
LABELS = {"stn": ("spatial transformer", "subject"), "cnn": ("plain CNN", "plain"), "wide": ("wide CNN", "other")}


def export(directory: NetworkDirectory, *rows: str) -> None:
    """List ONNX files such as ``folded-fp16``; the report looks into none."""
    program = directory.artifacts[PROGRAM]
    for row in rows:
        lowering, precision = row.split("-")
        directory.add(
            Artifact(
                name=row,
                file=f"{row}.onnx",
                network=directory.name,
                format="onnx",
                sha256=f"{directory.name} {row}",
                contract=program.contract,
                parent_sha256=program.sha256,
                lowering=lowering,
                precision=precision,
                details={"cuda": CUDA, "portability": PORTABLE},
            )
        )
    directory.plan(rows, {"gather-fp32": "it samples <bicubic>"})


def points_of(directory: NetworkDirectory) -> dict[str, dict]:
    """The points of a network, as ``verify`` lists them."""
    kinds = {
        f"{site['name']}/{kind}": (kind, site["name"])
        for site in directory.facts.sites
        for kind in ("theta", "grid", "warped")
        if kind != "theta" or site["theta"]
    } | {spec.name: ("output", None) for spec in directory.artifacts[PROGRAM].contract.outputs}
    return {
        point: {"kind": kind, "site": site, "eager_error": EAGER[kind], "scale": 1.0}
        for point, (kind, site) in kinds.items()
    }


def check(directory: NetworkDirectory, name: str, runner: str, **more: object) -> dict:
    """A check that passed, twice as far off as eager at every point."""
    artifact, points = directory.artifacts[name], points_of(directory)
    errors = {point: 2 * each["eager_error"] for point, each in points.items()}
    sites = {each["site"] for each in points.values() if each["site"]}
    compared = {point: {"reason": "", "max_abs": error} for point, error in errors.items()}
    return {
        "passed": True,
        "network": directory.name,
        "artifact": name,
        "sha256": artifact.sha256,
        "runner": runner,
        "precision": artifact.precision,
        "comparisons": {"examples ×1": compared, "constants": compared},
        "errors": errors,
        "multiple": 2.0,
        "agreement": 1.0,
        "accuracy": 0.9,
        "deterministic": True,
        "grid_pixels": {site: {"mean": 1e-6, "worst": 2e-5} for site in sites},
        "differing": [],
        "notes": [],
        "failure": "",
        "search": None,
    } | more


def checks_of(run: Path) -> list[dict]:
    """A check of every artifact in one runner."""
    runners = {"pt2": "eager-cpu", "onnx": "onnxruntime-cpu"}
    return [
        check(directory, name, runners[artifact.format])
        for directory in network_directories(run)
        for name, artifact in directory.artifacts.items()
        if name != CHECKPOINT
    ]


def write_verify(run: Path, checks: Iterable[dict]) -> None:
    """``verify.json``."""
    networks = {
        directory.name: {"examples": 300, "labels": True, "notes": [], "points": points_of(directory)}
        for directory in network_directories(run)
    }
    content = {"passed": True, "checks": list(checks), "networks": networks, "unavailable": {"eager-cuda": "no GPU"}}
    write_json(run / VERIFY_FILE, VERIFY_SCHEMA, content | {"tolerances": {}, "environment": {}})


def write_points(run: Path, count: int = 50, pictures: Mapping[str, object] | None = None, **changed: object) -> None:
    """``points.pt``: what the subject looks at on its examples, and the first ten with what its sites make of them.

    ``pictures`` and ``changed`` replace entries of the one network, and of its pictures.
    """
    directory = network_directories(run)[0]
    program, examples = directory.program(), directory.examples()
    found = program.points(program.values(examples.take(count)))
    shown = examples.rows(slice(10))[program.contract.picture.name]
    sites = {
        site.name: {
            "outside": (found[site.point("grid")].abs() > 1).any(-1).float().mean((1, 2)),
            "image_size": list(site.image_shape[-2:]),
            "align_corners": site.align_corners,
        }
        | ({"theta": found[site.point("theta")]} if site.theta else {})
        for site in program.sites
    }
    drawn = {
        "of": program.contract.picture.name,
        "indices": torch.arange(len(shown)),
        "input": shown,
        "warped": {
            site.name: found[site.point("warped")][:10, :1].mul(255).clamp(0, 255).byte() for site in program.sites
        },
        "labels": examples.labels[:10],
    } | (pictures or {})
    network = {"program": directory.artifacts[PROGRAM].sha256, "examples": count, "sites": sites, "pictures": drawn}
    content = {"schema": "stn_export/points/1", "networks": {directory.name: network | changed}}
    (run / POINTS_FILE).write_bytes(serialise(content))


def mean(values: list[float]) -> dict:
    """Of one value, or of more with an interval of any width."""
    middle, several = statistics.fmean(values), len(values) > 1
    ends = {"deviation": 0.01, "low": middle - 0.02, "high": middle + 0.02} if several else {}
    return {"mean": middle, "count": len(values)} | {"deviation": None, "low": None, "high": None} | ends


def trained(name: str, seeds: Mapping[str, float]) -> Trained:
    """Two epochs of a network with each seed; the second gives its accuracy."""
    label, role = LABELS[name]
    curves = {seed: [value / 2, value] for seed, value in seeds.items()}
    facts = {"label": label, "role": role, "parameters": 39884, "multiply_adds": 2_064_000, "device": "cpu"}
    times = {"seconds": dict.fromkeys(seeds, 40.0), "median_seconds": 40.0}
    return Trained(**mean(list(seeds.values())), **facts, **times, seeds=dict(seeds), accuracies=curves)


def comparison(
    seeds: int, title: str = "digits, quick, 2 epochs", reference: Reference | None = None
) -> ModelComparison:
    """Three networks by so many seeds."""
    models = {
        name: trained(name, {str(seed): best + seed / 100 for seed in range(seeds)})
        for name, best in (("stn", 0.9), ("cnn", 0.7), ("wide", 0.8))
    }
    gains = {
        name: {seed: 100 * (models["stn"].seeds[seed] - value) for seed, value in models[name].seeds.items()}
        for name in ("cnn", "wide")
    }
    words = {"finding": "gain" if seeds > 1 else "one seed only: no interval", "sentence": "the transformer gains"}
    return ModelComparison(
        run="digits",
        title=title,
        dataset="digits",
        recipe="quick",
        epochs=2,
        precision="fp32",
        measure="the last epoch",
        sentence="Test accuracy: spatial transformer 90.00%, plain CNN 70.00% (the last epoch).",
        models=models,
        differences={
            name: Difference(**mean(list(values.values())), label=LABELS[name][0], seeds=values, **words)
            for name, values in gains.items()
        },
        reference=reference,
        settings={},
        environments=[],
    )


def write_training(run: Path, *comparisons: ModelComparison, caveats: tuple[str, ...] = ()) -> None:
    """``training.json``."""
    run.mkdir(parents=True, exist_ok=True)
    (run / TRAINING_FILE).write_bytes(Trainings(list(comparisons), list(caveats)).to_bytes())
