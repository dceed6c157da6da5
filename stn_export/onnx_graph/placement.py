"""Find where ONNX Runtime runs each node: read from a session where possible, else predicted from a kernel table.

``resources`` has a table for each GPU provider. That of CUDA is what ONNX Runtime registers; WebGPU's kernels are not
listed, so its table is what a session answers for models of one node.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, numpy_helper
from onnxruntime.capi import build_and_package_info
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from stn_export.cli import children
from stn_export.errors import UserError
from stn_export.onnx_graph.model import (
    ALIAS,
    HALVES,
    UNKNOWN,
    TensorInfo,
    constants,
    inputs_of,
    large_initialisers,
    opset_of,
    since_version,
    used_names,
    without_weights,
)
from stn_export.onnx_graph.records import CPU, CUDA, PROVIDERS
from stn_export.run.gpu import driver
from stn_export.run.store import read_json, write_out

CONTRIBUTED = "com.microsoft"
SCHEMA = "stn_export/kernels/2"
RESOURCES = Path(__file__).parent.parent / "resources"
CALLED = {"cuda": "CUDA", "webgpu": "WebGPU"}  # providers that run on a GPU, as people call them
UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    """One registered kernel: versions of the operator, and the element types allowed per type constraint."""

    since: int
    until: int | None
    types: dict[str, list[str]]

    def serves(self, version: int) -> bool:
        """Return whether it runs this version of the operator."""
        return self.since == version or (self.until is not None and self.since < version <= self.until)


@dataclass(frozen=True)
class Kernels:
    """What one ONNX Runtime release has for the ONNX domain: a GPU's kernels by operator, the CPU's operators.

    ``contributed`` are the operators of com.microsoft that the GPU's provider has, according to ``source``; None where
    they are not known.
    """

    release: str
    gpu: dict[str, list[Kernel]]
    cpu: frozenset[str]
    contributed: frozenset[str] | None
    source: str


@cache
def kernels(provider: str = "cuda") -> Kernels:
    """Load the table of a provider: ``cuda`` or ``webgpu``."""
    content = read_json(RESOURCES / f"{provider}_kernels.json", SCHEMA)
    gpu = {name: [Kernel(*row) for row in rows] for name, rows in content["operators"].items()}
    listed = content["contributed"]["operators"]
    contributed = None if listed is None else frozenset(listed)
    cpu = frozenset(content["cpu_operators"])
    return Kernels(content["onnxruntime"], gpu, cpu, contributed, content["contributed"]["source"])


def write_kernels(path: Path) -> int:
    """Write the kernel table of the installed ONNX Runtime, and return the number of operators.

    Raises:
        UserError: where this ONNX Runtime does not list its CUDA kernels, or its provider does not load.
    """
    rows: dict[str, list[list]] = {}
    cpu: set[str] = set()
    contributed: set[str] = set()
    for provider, domain, name, since, until, constraints in _registrations():
        if provider == CPU or domain:
            (contributed if provider == CUDA else cpu if not domain else set()).add(name)
            continue
        types = {variable: sorted(map(_element, allowed)) for variable, allowed in constraints.items()}
        _merge(rows.setdefault(name, []), [since, None if until == UNBOUNDED else until, types])
    release = onnxruntime.__version__
    others = {"source": f"what ONNX Runtime {release} registers", "operators": sorted(contributed)}
    return write_table(path, release, cpu, others, {name: sorted(rows[name], key=str) for name in rows})


def write_table(path: Path, release: str, cpu: Iterable[str], contributed: Mapping, rows: Mapping[str, list]) -> int:
    """Write a table that ``kernels`` loads, one operator a line, and return the number of operators.

    Args:
        path: of the table.
        release: of the ONNX Runtime that has the kernels.
        cpu: the operators that its CPU provider has.
        contributed: the ``source`` of what is known of com.microsoft, and its ``operators`` or None.
        rows: by operator, the fields of each ``Kernel``.
    """
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    head = {"schema": SCHEMA, "onnxruntime": release, "cpu_operators": sorted(cpu), "contributed": contributed}
    write_out(path, f'{json.dumps(head)[:-1]}, "operators": {{\n{lines}\n}}}}\n'.encode())
    return len(rows)


_LIST = f"""
import json
try:
    import torch  # whose wheels bring the CUDA libraries that the provider needs
except ImportError:
    pass
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
rows = [each for each in get_all_opkernel_def() if each.provider in ({CPU!r}, {CUDA!r})]
rows = [each for each in rows if each.domain in ("", {CONTRIBUTED!r})]
facts = [(each.provider, each.domain, each.op_name, *each.version_range, dict(each.type_constraints)) for each in rows]
print(json.dumps(facts))
"""


def _registrations() -> list[tuple[str, str, str, int, int, dict[str, list[str]]]]:
    """List the kernels of both providers, in a child process, as a provider that cannot load may crash."""
    asked = children.run([sys.executable, "-P", "-c", _LIST])
    lines = asked.stdout.splitlines()
    answer = json.loads(lines[-1]) if asked.returncode == 0 and lines else []
    if CUDA not in {row[0] for row in answer}:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not list its CUDA kernels here",
            "write the table where the libraries of all its providers load: an NVIDIA driver, CUDA, TensorRT",
        )
    return answer


def _element(name: str) -> str:
    return name.removeprefix("tensor(").removesuffix(")") if name.startswith("tensor(") else name


def _merge(rows: list[list], new: list) -> None:
    """Add a registration; merge it into one that differs in one type constraint only."""
    for row in rows:
        differing = [name for name in new[2] if row[2].get(name) != new[2][name]]
        if row[:2] == new[:2] and row[2].keys() == new[2].keys() and len(differing) <= 1:
            for name in differing:
                row[2][name] = sorted({*row[2][name], *new[2][name]})
            return
    rows.append(new)


def lacks_kernel(node: NodeProto, opset: int, infos: dict[str, TensorInfo], provider: str = "cuda") -> str:
    """Return why a GPU provider of ``kernels(provider).release`` cannot run a node; "" where it can."""
    table, called = kernels(provider), CALLED[provider]
    if node.domain == CONTRIBUTED and table.contributed is not None:
        contributed = node.op_type in table.contributed
        return "" if contributed else f"no {called} kernel of {node.op_type} in {table.source}"
    if node.domain not in ("", ALIAS):
        return f"the table has no kernels of domain {node.domain}"
    version = since_version(node, opset)
    served = [kernel for kernel in table.gpu.get(node.op_type, []) if kernel.serves(version)]
    if node.op_type not in table.gpu:
        return f"no {called} kernel of {node.op_type}"
    if not served:
        return f"no {called} kernel of {node.op_type} {version}"
    if not any(_accepts(kernel, node, opset, infos) for kernel in served):
        types = ", ".join(_type_name(infos.get(name, UNKNOWN)) for name in node.input if name)
        return f"no {called} kernel of {node.op_type} {version} for {types}"
    return ""


def _type_name(info: TensorInfo) -> str:
    name = TensorProto.DataType.Name(info.dtype).lower()
    return {"undefined": "an unknown type", "string": "string"}.get(name, name)


def _accepts(kernel: Kernel, node: NodeProto, opset: int, infos: dict[str, TensorInfo]) -> bool:
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            formal = formals[min(index, len(formals) - 1)]
            allowed = kernel.types.get(formal.type_str) or kernel.types.get(formal.name)
            dtype = infos.get(name, UNKNOWN).dtype
            if allowed and dtype and _type_name(TensorInfo(dtype, None)) not in allowed:
                return False
    return True


# Where ONNX Runtime runs each node: read from a session where that is possible, else predicted for CUDA.


RECORD = "session.record_ep_graph_assignment_info"
SOURCE = r"\[ONNXRuntimeError\] : \d+ : \w+ : |\S+\.(cc|cpp|h):\d+ "  # in messages, of no use to a user
SMALL = 100  # largest constant that ONNX Runtime prefers to read on the CPU

FOLDED = "depends on no input: folded when the session is made"

REFUSALS = (
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NotImplemented,
    ort.RuntimeException,
)

# Inputs and outputs that CUDA kernels keep in CPU memory, by index; source: InputMemoryType and OutputMemoryType in
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
    """The provider that runs one node, and why."""

    provider: str
    reason: str


def free_nodes(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> dict[str, str]:
    """Return the nodes that compute nothing from the data of an input, and why: constants and shapes.

    These are Shape and Size, and whatever depends only on them and on constants and stays small.
    """
    fixed = set(constants(model.graph))
    sizes: set[str] = set()
    reasons: dict[str, str] = {}
    for node in model.graph.node:
        needed = {name for name in node.input if name}
        if node.op_type in CONTROL_FLOW:
            continue
        if needed <= fixed and not node.op_type.startswith("Random"):
            reasons[node.name] = FOLDED
            fixed.update(node.output)
        elif node.op_type in CPU_OUTPUTS or (needed <= fixed | sizes and _small(node, infos)):
            reasons[node.name] = "computes a shape"
            sizes.update(node.output)
    return reasons


def _small(node: NodeProto, infos: dict[str, TensorInfo]) -> bool:
    outputs = [infos.get(name, UNKNOWN) for name in node.output if name]
    return all((0 if info.elements is None else info.elements) <= SMALL for info in outputs) and all(
        info.elements is not None or info.dtype in (TensorProto.INT64, TensorProto.INT32) for info in outputs
    )


def predict_gpu(
    model: onnx.ModelProto, infos: dict[str, TensorInfo], free: dict[str, str], provider: str = "cuda"
) -> dict[str, Placed]:
    """Predict where each node of a ``model.flat`` model runs with a GPU provider, control flow bodies left out.

    Args:
        model: each of its nodes has a unique name.
        infos: of its tensors, from ``infer``.
        free: its ``free_nodes``.
        provider: ``cuda`` or ``webgpu``.
    """
    harmless = {name for name in constants(model.graph) if (infos[name].elements or 0) <= SMALL}
    harmless |= {value.name for value in inputs_of(model.graph)}
    on_cpu: set[str] = set()  # tensors in CPU memory that a chain of CPU nodes has reached, starting at Shape and Size
    placed = {}
    for node in model.graph.node:
        opset = opset_of(model, node.domain)
        place = placed[node.name] = _predict(node, opset, infos, free, on_cpu, harmless, provider)
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
    provider: str,
) -> Placed:
    gpu = PROVIDERS[provider]
    if free.get(node.name) == FOLDED:
        return Placed(CPU, FOLDED)
    if missing := lacks_kernel(node, opset, infos, provider):
        expanded = _is_function(node, opset) and node.op_type not in kernels(provider).cpu
        return Placed(gpu, "ONNX Runtime expands it into other operators") if expanded else Placed(CPU, missing)
    if _prefers_cpu(node, on_cpu, harmless, infos):
        there = ", ".join(name for name in node.input if name in on_cpu)
        return Placed(CPU, free.get(node.name) or f"its inputs are on the CPU: {there}")
    return Placed(gpu, f"has a {CALLED[provider]} kernel")


def _is_function(node: NodeProto, opset: int) -> bool:
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    return schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]  # not in its stub


def _prefers_cpu(node: NodeProto, on_cpu: set[str], harmless: set[str], infos: dict[str, TensorInfo]) -> bool:
    """Apply ONNX Runtime's rule: an input is on the CPU, and none is half precision, on the GPU or read on the CPU."""
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
    """Format an exception of ONNX Runtime as one line, without the location in its source."""
    return " ".join(re.sub(SOURCE, "", str(error)).split())


def cuda_works() -> bool:
    """Return whether a session can run on a GPU of this machine."""
    if CUDA not in onnxruntime.get_available_providers():
        return False
    found = driver()  # PyTorch takes seconds to import
    wanted = str(getattr(build_and_package_info, "cuda_version", None) or "0")
    return found is not None and found.devices > 0 and found.cuda[0] >= int(wanted.partition(".")[0])


def cpu_session(model: onnx.ModelProto | Path, **settings: object) -> onnxruntime.InferenceSession:
    """Open a session on the CPU with default options, except these attributes of ``SessionOptions``."""
    options = onnxruntime.SessionOptions()
    for name, value in settings.items():
        setattr(options, name, value)
    content = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=[CPU])


def open_session(
    model: onnx.ModelProto, provider: str, entries: Mapping[str, object] | None = None
) -> onnxruntime.InferenceSession:
    """Open a session that runs the graph unoptimised on one thread, and records placement where it can.

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
    options.log_severity_level = 4  # errors are raised, and its warnings are what this module reports
    options.add_session_config_entry(RECORD, "1")
    for key, value in (entries or {}).items():
        setattr(options, key, value)
    large, used = {tensor.name: tensor for tensor in large_initialisers(model)}, used_names(model.graph)
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in large.items() if name in used}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)  # within the model's bytes they would take memory thrice
    small = without_weights(model)
    for held in (small.graph.initializer, small.graph.input):  # unused ones are rejected, as their data is not passed
        for tensor in [
            initializer for initializer in held if initializer.name in large and initializer.name not in used
        ]:
            held.remove(tensor)
    content = small.SerializeToString()
    try:
        return onnxruntime.InferenceSession(content, options, providers=[PROVIDERS[provider]])
    except REFUSALS as error:
        reason = reason_of(error)
        raise UserError(f"ONNX Runtime cannot load the model: {reason}", "check it with onnx.checker") from error


def read_placement(model: onnx.ModelProto, provider: str) -> dict[str, str] | None:
    """Read each node's provider from a session; None where ONNX Runtime does not report it, or lacks the provider.

    Raises:
        UserError: where ONNX Runtime refuses the model.
    """
    if provider == "webgpu" or (provider == "cuda" and not cuda_works()):
        return None
    session = open_session(model, provider)
    if not hasattr(session, "get_provider_graph_assignment_info") or session.get_providers()[0] != PROVIDERS[provider]:
        return None
    parts = session.get_provider_graph_assignment_info()
    return {node.name: part.ep_name for part in parts for node in part.get_nodes()}
