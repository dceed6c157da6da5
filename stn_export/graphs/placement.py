"""Where ONNX Runtime runs each node: read from a session where that is possible, else predicted for CUDA.

The prediction takes the CUDA provider's kernels from ``resources/cuda_kernels.json`` and then, as ONNX Runtime does,
moves to the CPU what depends on nothing but shapes in CPU memory, graph inputs and small constants. Source:
``GetCpuPreferredNodes`` in ``onnxruntime/core/framework/fallback_cpu_capability.cc``.
"""

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from stn_export.errors import UserError
from stn_export.graphs.graph import (
    HALVES,
    UNKNOWN,
    TensorInfo,
    constants,
    inputs_of,
    large_initialisers,
    opset_of,
    used_names,
    without_weights,
)
from stn_export.graphs.kernels import kernels, lacks_kernel
from stn_export.graphs.records import CPU, CUDA, PROVIDERS

RECORD = "session.record_ep_graph_assignment_info"
SOURCE = r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(cc|cpp|h):\d+ "  # of a message: what says nothing to a user
SMALL = 100  # elements of a constant that ONNX Runtime would rather read on the CPU

FOLDED = "depends on no input: folded when the session is made"

REFUSALS = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NotImplemented,
    ort.RuntimeException,
)

# What the CUDA kernels take from and leave in CPU memory, by index; source: InputMemoryType and OutputMemoryType in
# onnxruntime/core/providers/cuda.
_AXES = ("Squeeze", "Unsqueeze", "Split", "Tile", "Expand", "TopK", "CumSum", "Reshape", "Upsample", "Trilu", "OneHot")
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
CPU_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_AXES, (1,)),
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},
    **dict.fromkeys(("Slice", "Pad", "Resize"), (1, 2, 3, 4)),
    **dict.fromkeys(("Clip", "Dropout"), (1, 2)),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "If": (0,),
    "Loop": (0, 1),
}
CPU_OUTPUTS = ("Shape", "Size")
CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass(frozen=True)
class Placed:
    """Where one node runs, and why."""

    provider: str
    reason: str


def free_nodes(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> dict[str, str]:
    """Nodes that compute nothing from the data of an input, by name, and why: constants and sizes of tensors.

    Shape and Size are such nodes, and whatever depends on nothing but them and constants and stays small.
    """
    fixed = set(constants(model.graph))
    sizes: set[str] = set()
    found: dict[str, str] = {}
    for node in model.graph.node:
        needed = {name for name in node.input if name}
        if node.op_type in CONTROL_FLOW:
            continue
        if needed <= fixed and not node.op_type.startswith("Random"):
            found[node.name] = FOLDED
            fixed.update(node.output)
        elif node.op_type in CPU_OUTPUTS or (needed <= fixed | sizes and _small(node, infos)):
            found[node.name] = "computes a shape"
            sizes.update(node.output)
    return found


def _small(node: NodeProto, infos: dict[str, TensorInfo]) -> bool:
    found = [infos.get(name, UNKNOWN) for name in node.output if name]
    return all((0 if each.elements is None else each.elements) <= SMALL for each in found) and all(
        each.elements is not None or each.dtype in (TensorProto.INT64, TensorProto.INT32) for each in found
    )


def predict_cuda(model: onnx.ModelProto, infos: dict[str, TensorInfo], free: dict[str, str]) -> dict[str, Placed]:
    """Where each node of a ``graph.flat`` model would run with the CUDA provider, bodies of control flow aside.

    Args:
        model: every node of it has a name.
        infos: of its tensors, as ``infer`` gives them.
        free: its ``free_nodes``.
    """
    harmless = {name for name in constants(model.graph) if (infos[name].elements or 0) <= SMALL}
    harmless |= {each.name for each in inputs_of(model.graph)}
    on_cpu: set[str] = set()  # tensors in CPU memory that a chain of CPU nodes has reached, starting at Shape and Size
    placed = {}
    for node in model.graph.node:
        place = placed[node.name] = _predict(node, opset_of(model, node.domain), infos, free, on_cpu, harmless)
        if free.get(node.name) == FOLDED:
            harmless.update(name for name in node.output if (infos.get(name, UNKNOWN).elements or 0) <= SMALL)
        elif node.op_type in CPU_OUTPUTS or (place.provider == CPU and on_cpu.intersection(node.input)):
            on_cpu.update(node.output)
    return placed


def _predict(
    node: NodeProto,
    opset: int,
    infos: dict[str, TensorInfo],
    free: dict[str, str],
    on_cpu: set[str],
    harmless: set[str],
) -> Placed:
    if free.get(node.name) == FOLDED:
        return Placed(CPU, FOLDED)
    if missing := lacks_kernel(node, opset, infos):
        expanded = _is_function(node, opset) and node.op_type not in kernels().cpu
        return Placed(CUDA, "ONNX Runtime expands it into other operators") if expanded else Placed(CPU, missing)
    if _prefers_cpu(node, on_cpu, harmless, infos):
        there = ", ".join(name for name in node.input if name in on_cpu)
        return Placed(CPU, free.get(node.name) or f"its inputs are on the CPU: {there}")
    return Placed(CUDA, "has a CUDA kernel")


def _is_function(node: NodeProto, opset: int) -> bool:
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    return schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]  # not in its stub


def _prefers_cpu(node: NodeProto, on_cpu: set[str], harmless: set[str], infos: dict[str, TensorInfo]) -> bool:
    """ONNX Runtime's rule: an input is a CPU tensor, and none is half precision, on the GPU or read on the CPU."""
    if not any(name in on_cpu for name in node.input):
        return False
    for index, name in enumerate(node.input):
        if name and infos.get(name, UNKNOWN).dtype in HALVES:
            return False
        if name in harmless or not name:
            continue
        if name not in on_cpu or index in CPU_INPUTS.get(node.op_type, ()):
            return False
    return True


def reason_of(error: Exception) -> str:
    """Return what ONNX Runtime raised in one line, without where in its source."""
    return " ".join(re.sub(SOURCE, "", str(error)).split())


def cuda_works() -> bool:
    """Whether a session can really run on a GPU here."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    try:  # the driver itself, as PyTorch takes seconds to import
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def cpu_session(model: onnx.ModelProto | Path, **settings: object) -> onnxruntime.InferenceSession:
    """Open a session on the CPU as ONNX Runtime does by itself, but for these attributes of ``SessionOptions``."""
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    content = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=[CPU])


def open_session(
    model: onnx.ModelProto, provider: str, entries: Mapping[str, object] | None = None
) -> onnxruntime.InferenceSession:
    """A session that runs the graph as the file has it, without optimisations, and records placement where it can.

    Args:
        model: any.
        provider: ``cpu`` or ``cuda``.
        entries: further attributes of ``onnxruntime.SessionOptions``.

    Raises:
        UserError: where ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it refuses is raised; what it warns of is what this module says
    options.add_session_config_entry(RECORD, "1")
    for key, value in (entries or {}).items():
        setattr(options, key, value)
    large, used = {each.name: each for each in large_initialisers(model)}, used_names(model.graph)
    weights = {name: numpy_helper.to_array(each) for name, each in large.items() if name in used}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in weights.values()]
    options.add_external_initializers(list(weights), values)  # in the bytes of the model they would lie thrice
    small = without_weights(model)
    for held in (small.graph.initializer, small.graph.input):  # what nothing reads is refused: it lies nowhere
        for each in [each for each in held if each.name in large and each.name not in used]:
            held.remove(each)
    content = small.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, options, providers=[PROVIDERS[provider]])
    except REFUSALS as error:
        reason = reason_of(error)
        raise UserError(f"ONNX Runtime cannot load the model: {reason}", "check it with onnx.checker") from error


def read_placement(model: onnx.ModelProto, provider: str) -> dict[str, str] | None:
    """Each node's provider, from a session; None where this ONNX Runtime does not tell or lacks the provider here.

    Raises:
        UserError: where ONNX Runtime refuses the model.
    """
    if provider == "cuda" and not cuda_works():
        return None
    session = open_session(model, provider)
    if not hasattr(session, "get_provider_graph_assignment_info") or session.get_providers()[0] != PROVIDERS[provider]:
        return None
    parts = session.get_provider_graph_assignment_info()
    return {node.name: part.ep_name for part in parts for node in part.get_nodes()}
