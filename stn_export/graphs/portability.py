"""Which runtimes take an ONNX file: tried where the runtime is installed here, else told by the rules of ``RUNTIMES``.

A trial runs one random batch and compares every output with ONNX Runtime on the CPU, within ``TOLERANCE`` of the
largest value in it, or of 1.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from stn_export.errors import UserError, one_line
from stn_export.graphs.graph import as_array, random_inputs
from stn_export.graphs.kernels import CPU
from stn_export.graphs.lint import Finding, Subject, findings
from stn_export.graphs.placement import free_nodes, predict_cuda

TESTED, SHOULD, WRONG, REFUSED = "runs, tested here", "should run", "runs, WRONG", "refused"
NOTHING_AGAINST = "No rule speaks against it."
TOLERANCE = 1e-4
BATCH = 2

Outputs = dict[str, np.ndarray]
Verdict = tuple[str, str]


def _onnxruntime(subject: Subject) -> Outputs:
    return subject.run(BATCH, seed=0)


def _reference(subject: Subject) -> Outputs:
    names = [each.name for each in subject.model.graph.output]
    evaluator = ReferenceEvaluator(subject.model)
    found = evaluator.run(names, random_inputs(subject.model, BATCH, 0))
    return dict(zip(names, map(as_array, found), strict=True))


def _openvino(subject: Subject) -> Outputs:
    import openvino  # optional: only where it is installed

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(subject.model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    results = compiled(random_inputs(subject.model, BATCH, 0))
    return {each.name: results[index] for index, each in enumerate(subject.model.graph.output)}


@dataclass(frozen=True)
class Runtime:
    """One row: lint rules that rule it out, those that only slow it down, and how to try it, if it can be tried.

    ``samples`` is the most sampled values that it is tried with: one that samples them one by one takes minutes.
    ``kept`` is its name in the table of ``make runtimes``, where it was tried there.
    """

    name: str
    refuses: tuple[str, ...] = ()
    slows: tuple[str, ...] = ()
    trial: Callable[[Subject], Outputs] | None = None
    module: str = "onnxruntime"
    samples: float = float("inf")
    kept: str = ""


RUNTIMES = (
    Runtime("ONNX Runtime CPU", trial=_onnxruntime),
    Runtime("ONNX Runtime CUDA"),
    Runtime("ONNX Runtime TensorRT", refuses=("STN001",), slows=("STN002", "STN008")),
    Runtime("ONNX Runtime DirectML", slows=("STN002", "STN005", "STN008")),
    Runtime("TensorRT", refuses=("STN001", "STN002", "STN008")),
    Runtime("OpenVINO", trial=_openvino, module="openvino", kept="openvino"),
    Runtime("onnx reference evaluator", trial=_reference, module="onnx", samples=10_000),
)


def portability(model: onnx.ModelProto) -> dict[str, Verdict]:
    """A verdict for each runtime on any ONNX model whose weights are loaded: see ``TESTED`` and so on, and why."""
    subject = Subject(model)
    found, expected = findings(subject), _attempt(_onnxruntime, subject)
    return {runtime.name: _verdict(runtime, subject, found, expected) for runtime in RUNTIMES}


def _attempt(trial: Callable[[Subject], Outputs], subject: Subject) -> Outputs | str:
    """A trial's outputs, or the first line of why there are none. What a foreign runtime raises is its own affair."""
    try:
        return trial(subject)
    except UserError as error:
        return error.message
    except Exception as error:
        return one_line(error)


def _verdict(runtime: Runtime, subject: Subject, against: list[Finding], expected: Outputs | str) -> Verdict:
    if runtime.trial and importlib.util.find_spec(runtime.module) and _sampled(subject) <= runtime.samples:
        return _tried(_attempt(runtime.trial, subject), expected)
    return ruled(runtime, subject, against, expected)


def ruled(runtime: Runtime, subject: Subject, against: list[Finding], expected: Outputs | str) -> Verdict:
    """What the rules say of a runtime that is not tried here."""
    if isinstance(expected, str):
        return REFUSED, f"ONNX Runtime on the CPU does not run it either: {expected}."
    if runtime.name == "ONNX Runtime CUDA":
        return SHOULD, _on_cuda(subject)
    if found := [each for each in against if each.rule in runtime.refuses]:
        return REFUSED, f"{found[0].rule} at {found[0].where}: {found[0].reason}."
    slowed = sorted({f"{each.rule} {each.where}" for each in against if each.rule in runtime.slows})
    return SHOULD, f"These run on the CPU: {', '.join(slowed)}." if slowed else NOTHING_AGAINST


def _sampled(subject: Subject) -> int:
    """How many values the samplers give in a trial."""
    samplers = [node.output[0] for node in subject.model.graph.node if node.op_type == "GridSample"]
    return BATCH * sum(subject.infos[name].elements or 0 for name in samplers if name in subject.infos)


def _tried(actual: Outputs | str, expected: Outputs | str) -> Verdict:
    if isinstance(actual, str):
        return REFUSED, f"It says: {actual}."
    if isinstance(expected, str):
        return REFUSED, f"There is nothing to compare with: {expected}."
    worst = max(_difference(actual[name], expected[name]) for name in expected)
    if not worst <= TOLERANCE:
        return WRONG, f"It differs from ONNX Runtime on the CPU by {worst:.1e}."
    return TESTED, f"It stays within {TOLERANCE:.0e} of ONNX Runtime on the CPU at batch {BATCH}."


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest magnitude, or over 1 where all are smaller; infinite for other shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    scale = np.abs(expected.astype(np.float64)).max(initial=1.0)
    return float(np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0) / scale)


def _on_cuda(subject: Subject) -> str:
    free = free_nodes(subject.model, subject.infos)
    placed = predict_cuda(subject.model, subject.infos, free)
    fallen = [name for name, each in placed.items() if each.provider == CPU and name not in free]
    return f"These nodes run on the CPU: {', '.join(fallen)}." if fallen else "Every compute node has a CUDA kernel."
