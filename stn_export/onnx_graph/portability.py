"""Find which runtimes can run an ONNX file: tried where installed, else judged by rules and operator lists.

A trial runs the file on the inputs that ONNX Runtime on the CPU ran, and compares every output with it, within a share
of the largest value in it, or of 1, that depends on the least exact type in the file (``APART``). What could not be run
is not tried, and what no rule and no list covers is unknown: neither is refused.
"""

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from stn_export.cli.apart import BeyondLimitError
from stn_export.errors import UserError, one_line
from stn_export.onnx_graph.costs import macs
from stn_export.onnx_graph.inputs import Outputs, of_openvino, openvino_core
from stn_export.onnx_graph.lint import Finding, Subject, findings
from stn_export.onnx_graph.model import as_array
from stn_export.onnx_graph.placement import free_nodes, predict_gpu
from stn_export.onnx_graph.records import CPU, NO_TENSORS, Verdict
from stn_export.results.tolerances import TOLERANCES
from stn_export.run.store import read_json

TESTED, SHOULD, WRONG, REFUSED = "runs, tested here", "should run", "runs, WRONG", "refused"
UNTRIED, UNSURE = "not tried", "unknown"
NOTHING_AGAINST = "No lint rule applies."
OPERATORS = Path(__file__).parent.parent / "resources" / "operators.json"
_HALF, _BRAIN = (TOLERANCES[name].output for name in ("fp16", "bf16"))
APART = {  # by the least exact type: int8 values may be one step, 1/127, off in every layer
    "fp32": 1e-4,
    "fp16": _HALF.absolute + _HALF.relative,
    "bf16": _BRAIN.absolute + _BRAIN.relative,
    "int8": 0.1,
}
HALF = (TensorProto.FLOAT16,)
BRAIN = (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2)
BYTES = ("QLinear", "Integer", "DequantizeLinear", "QuantizeLinear", "QGemm", "QAttention", "NBits", "Bnb4")


def _reference(subject: Subject) -> Outputs:
    names = [output.name for output in subject.model.graph.output]
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):  # of divisions by 0 in foreign files
        values = ReferenceEvaluator(subject.model).run(names, dict(subject.trial.inputs.draw()))
    return dict(zip(names, map(as_array, values), strict=True))


def _openvino(subject: Subject) -> Outputs:
    core = openvino_core()
    compiled = core.compile_model(
        core.read_model(subject.model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    taken = {name for port in compiled.inputs for name in port.names}  # without inputs that nothing reads
    results = compiled({name: value for name, value in subject.trial.inputs.draw().items() if name in taken})
    return {
        output.name: of_openvino(results[index], compiled.outputs[index].element_type.get_type_name())
        for index, output in enumerate(subject.model.graph.output)
    }


@dataclass(frozen=True)
class Runtime:
    """A runtime: lint rules that rule it out, rules that only slow it down, and how to try it, if possible.

    ``samples`` and ``products`` are the most sampled values and multiply-adds that it is tried with, for a runtime that
    is slow at them. ``kept`` is its name in the kept table of runtimes, where it was tried there. ``alone`` is set
    where no other runtime takes over operators that it lacks: then its operator list decides.
    """

    name: str
    refuses: tuple[str, ...] = ()
    slows: tuple[str, ...] = ()
    trial: Callable[[Subject], Outputs] | None = None
    module: str = "onnxruntime"
    samples: float = float("inf")
    products: float = float("inf")
    kept: str = ""
    alone: bool = False


RUNTIMES = (
    Runtime("ONNX Runtime CPU"),
    Runtime("ONNX Runtime CUDA"),
    Runtime("ONNX Runtime TensorRT", refuses=("STN001",), slows=("STN002", "STN008")),
    Runtime("ONNX Runtime DirectML", slows=("STN002", "STN005", "STN008")),
    Runtime("TensorRT", refuses=("STN001", "STN002", "STN008"), alone=True),
    Runtime("OpenVINO", trial=_openvino, module="openvino", kept="openvino", alone=True),
    Runtime("onnx reference evaluator", trial=_reference, module="onnx", samples=10_000, products=20_000_000),
)


@dataclass(frozen=True)
class Operators:
    """The operators that a runtime has and lacks, according to ``source``; those of other domains with their domain."""

    source: str
    has: frozenset[str]
    lacks: frozenset[str]


@cache
def operators(runtime: str) -> Operators:
    """Load a runtime's list from ``resources/operators.json``."""
    content: dict = read_json(OPERATORS, "stn_export/operators/1")["runtimes"][runtime]
    return Operators(content["source"], frozenset(content["has"]), frozenset(content["lacks"]))


def portability(model: onnx.ModelProto) -> dict[str, Verdict]:
    """Return each runtime's verdict (``TESTED`` and so on), and why, on an ONNX model with its weights loaded."""
    return verdicts(Subject(model))


def verdicts(subject: Subject, against: list[Finding] | None = None) -> dict[str, Verdict]:
    """Return the verdicts on a model that may have been examined already."""
    all_findings = findings(subject) if against is None else against
    return {runtime.name: _verdict(runtime, subject, all_findings) for runtime in RUNTIMES}


def _verdict(runtime: Runtime, subject: Subject, against: list[Finding]) -> Verdict:
    if runtime.name == "ONNX Runtime CPU":
        return _on_cpu(subject)
    if runtime.trial and importlib.util.find_spec(runtime.module):
        many = _too_many(runtime, subject)
        return (UNTRIED, many) if many else _tried(runtime.trial, subject)
    return ruled(runtime, subject, against)


def said(reason: str) -> str:
    """Quote a runtime's own message, with one full stop."""
    return f"It says: {reason.rstrip('.')}."


def _too_many(runtime: Runtime, subject: Subject) -> str:
    """Return why a trial would take too long; empty where it would not."""
    sampled = _sampled(subject)
    products = sum(macs(node, subject.infos, subject.trial.runs) or 0 for node in subject.model.graph.node)
    if sampled <= runtime.samples and products <= runtime.products:
        return ""
    what = f"{sampled:,} sampled values" if sampled > runtime.samples else f"{products:,} multiply-adds"
    return f"{what} would take it minutes."


def _on_cpu(subject: Subject) -> Verdict:
    trial = subject.trial
    if not trial.loads:
        return REFUSED, said(str(trial.outputs))
    if isinstance(trial.outputs, str):
        return (
            UNTRIED,
            f"It loads and was not run on {trial.inputs}: {trial.outputs}; give others by --shape or --inputs.",
        )
    return TESTED, f"On {trial.inputs}" + ("." if trial.steady else "; its outputs are others each time.")


def ruled(runtime: Runtime, subject: Subject, against: list[Finding]) -> Verdict:
    """Return the verdict of rules and lists on a runtime that is not tried here."""
    if runtime.name == "ONNX Runtime CUDA":
        return _on_cuda(subject)
    if against_it := [finding for finding in against if finding.rule in runtime.refuses]:
        return REFUSED, f"{against_it[0].rule} at {against_it[0].where}: {against_it[0].reason}."
    if runtime.alone:
        return _listed(runtime, subject)
    if not subject.trial.loads:
        return UNSURE, "ONNX Runtime on the CPU, which would take what others lack, does not load it."
    slowed = sorted({f"{finding.rule} {finding.where}" for finding in against if finding.rule in runtime.slows})
    return SHOULD, f"These run on the CPU: {', '.join(slowed)}." if slowed else NOTHING_AGAINST


def _listed(runtime: Runtime, subject: Subject) -> Verdict:
    """Return the verdict of a runtime's operator list."""
    listed = operators(runtime.name)
    used = {f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in subject.nodes()}
    if lacking := sorted(used & listed.lacks):
        return REFUSED, f"It has no {', '.join(lacking)} ({listed.source})."
    if unlisted := sorted(used - listed.has):
        return UNSURE, f"Nothing is known of {', '.join(unlisted)} ({listed.source})."
    return SHOULD, NOTHING_AGAINST


def _sampled(subject: Subject) -> int:
    """Count the values that samplers compute in a trial; a deformable convolution samples once per tap."""
    nodes = [node for node in subject.model.graph.node if node.op_type in ("GridSample", "DeformConv")]
    taps = {node.name: subject.info(node, 1).shape or () for node in nodes if node.op_type == "DeformConv"}
    shapes = ((node, subject.infos[node.output[0]].shape) for node in nodes if node.output[0] in subject.infos)
    return sum(prod(shape or (0,)) * prod(taps.get(node.name, ())[1:]) for node, shape in shapes)


def _tried(trial: Callable[[Subject], Outputs], subject: Subject) -> Verdict:
    expected, inputs = subject.trial.outputs, subject.trial.inputs
    if isinstance(expected, str) and subject.trial.loads:
        return UNTRIED, f"ONNX Runtime on the CPU was not run on {inputs} either."
    try:
        actual = subject.step(partial(trial, subject))
    except BeyondLimitError as error:
        return UNTRIED, f"{error.message.capitalize()} on {inputs}."
    except Exception as error:  # an external runtime may raise anything
        return REFUSED, said(error.message if isinstance(error, UserError) else one_line(error))
    if isinstance(expected, str):
        return TESTED, f"On {inputs}; ONNX Runtime on the CPU does not, so that there was nothing to compare."
    if not subject.trial.steady:
        return TESTED, f"On {inputs}; outputs that are others each time were not compared."
    return _compared(actual, expected, subject)


def _compared(actual: Outputs, expected: Outputs, subject: Subject) -> Verdict:
    allowed = APART[least_exact(subject)]
    shaped = {output.name for output in subject.model.graph.output if output.type.WhichOneof("value") not in NO_TENSORS}
    flat = {name for name in expected if name not in shaped}  # outputs of sequences and optionals, flattened
    pairs = ((name, actual[name], expected[name]) for name in expected if name in actual)
    worst = max((difference(*_in_a_row(pair, name in flat)) for name, *pair in pairs), default=0.0)
    if not worst <= allowed:
        return WRONG, f"It differs from ONNX Runtime on the CPU by {worst:.1e}."
    return TESTED, f"It stays within {allowed:.0e} of ONNX Runtime on the CPU on {subject.trial.inputs}."


def _in_a_row(arrays: Sequence[np.ndarray], flat: bool) -> list[np.ndarray]:
    return [array.ravel() if flat else array for array in arrays]


def least_exact(subject: Subject) -> str:
    """Return the least exact type that a file computes in, as a key of ``APART``."""
    types = {info.dtype for info in subject.infos.values()}
    if any(mark in node.op_type for node in subject.nodes() for mark in BYTES):
        return "int8"
    return "bf16" if types.intersection(BRAIN) else "fp16" if types.intersection(HALF) else "fp32"


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest magnitude, or over 1 where that is larger.

    It is infinite for other shapes, for different text, and where unequal values are not finite. Equal values, NaN and
    infinities differ by 0.
    """
    if actual.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "OUS" or actual.dtype.kind in "OUS":
        return 0.0 if np.array_equal(actual.astype(str), expected.astype(str)) else float("inf")
    kind = np.complex128 if "c" in (actual.dtype.kind, expected.dtype.kind) else np.float64
    wide, right = actual.astype(kind), expected.astype(kind)
    other = ~((wide == right) | (np.isnan(wide) & np.isnan(right)))
    if not np.isfinite(wide[other]).all() or not np.isfinite(right[other]).all():
        return float("inf")
    scale = np.abs(right[np.isfinite(right)]).max(initial=1.0)
    return float(np.abs(wide[other] - right[other]).max(initial=0.0) / scale)


def _on_cuda(subject: Subject) -> Verdict:
    if not subject.trial.loads:
        return UNSURE, "ONNX Runtime on the CPU, which would take what CUDA lacks, does not load it."
    free = free_nodes(subject.model, subject.infos)
    placed = predict_gpu(subject.model, subject.infos, free)
    fallen = [name for name, placement in placed.items() if placement.provider == CPU and name not in free]
    if fallen:
        return SHOULD, f"These nodes run on the CPU: {', '.join(fallen)}."
    return SHOULD, "Every compute node has a CUDA kernel."
