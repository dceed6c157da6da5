"""Where ONNX Runtime runs each node: read from a session where that is possible, else predicted for CUDA.

The prediction takes the CUDA provider's kernels from ``resources/cuda_kernels.json`` and then, as ONNX Runtime does,
moves to the CPU what depends on nothing but tensors in CPU memory, graph inputs and small constants. Source:
``GetCpuPreferredNodes`` in ``onnxruntime/core/framework/fallback_cpu_capability.cc`` and ``KernelRegistry``'s version
rule: a kernel without an upper bound serves the one version of the operator that it was registered for.

The table is written by ``write_kernels`` from what an installed ONNX Runtime registers, where its CUDA provider loads.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort

from stn_export.artifacts import read_json, write_atomically
from stn_export.errors import UserError
from stn_export.graph import HALVES, UNKNOWN, TensorInfo, constants, infer, inputs_of, opset_of, since_version

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
KERNELS_SCHEMA = "stn_export/kernels/1"
KERNELS = Path(__file__).parent / "resources" / "cuda_kernels.json"
RECORD = "session.record_ep_graph_assignment_info"
UNBOUNDED = 2**31 - 1
SMALL = 100  # elements of a constant that ONNX Runtime would rather read on the CPU

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


@dataclass(frozen=True)
class Kernel:
    """One registration: versions of the operator, and the element types allowed for each type constraint."""

    since: int
    until: int | None
    types: dict[str, list[str]]

    def serves(self, version: int) -> bool:
        """Whether it runs this version of the operator."""
        return self.since == version or (self.until is not None and self.since < version <= self.until)


@cache
def cuda_kernels() -> tuple[str, dict[str, list[Kernel]]]:
    """The ONNX Runtime version of the table, and its kernels by operator of the ONNX domain."""
    content = read_json(KERNELS, KERNELS_SCHEMA)
    return content["onnxruntime"], {name: [Kernel(*row) for row in rows] for name, rows in content["operators"].items()}


def write_kernels(path: Path) -> int:
    """Write the table from the installed ONNX Runtime; returns the number of operators.

    Raises:
        UserError: where this ONNX Runtime does not list its kernels, or its CUDA provider does not load.
    """
    rows: dict[str, list[list]] = {}
    for name, since, until, constraints in _registrations():
        types = {each: sorted(map(_element, allowed)) for each, allowed in constraints.items()}
        _merge(rows.setdefault(name, []), [since, None if until == UNBOUNDED else until, types])
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(sorted(rows[name], key=str))}" for name in sorted(rows))
    head = f'{{"schema": "{KERNELS_SCHEMA}", "onnxruntime": "{onnxruntime.__version__}", "operators": {{\n'
    write_atomically(path, f"{head}{lines}\n}}}}\n".encode())
    return len(rows)


_LIST = f"""
import json
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
rows = [each for each in get_all_opkernel_def() if each.provider == {CUDA!r} and each.domain == ""]
print(json.dumps([(each.op_name, *each.version_range, dict(each.type_constraints)) for each in rows]))
"""


def _registrations() -> list[tuple[str, int, int, dict[str, list[str]]]]:
    """What the CUDA provider registers; asked in a process of its own, which a provider that cannot load may crash."""
    asked = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True, check=False)
    lines = asked.stdout.splitlines()
    found = json.loads(lines[-1]) if asked.returncode == 0 and lines else []
    if not found:
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not list its CUDA kernels here",
            "write the table where the libraries of all its providers load: an NVIDIA driver, CUDA, TensorRT",
        )
    return found


def _element(name: str) -> str:
    return name.removeprefix("tensor(").removesuffix(")") if name.startswith("tensor(") else name


def _merge(rows: list[list], new: list) -> None:
    """Add a registration, joined with one that differs from it in one type constraint only."""
    for row in rows:
        differing = [name for name in new[2] if row[2].get(name) != new[2][name]]
        if row[:2] == new[:2] and row[2].keys() == new[2].keys() and len(differing) <= 1:
            for name in differing:
                row[2][name] = sorted({*row[2][name], *new[2][name]})
            return
    rows.append(new)


def lacks_kernel(node: NodeProto, opset: int, infos: dict[str, TensorInfo]) -> str:
    """Why ONNX Runtime's CUDA provider cannot run a node, or "" where it can."""
    if node.domain not in ("", "ai.onnx"):
        return f"the table has no kernels of domain {node.domain}"
    release, table = cuda_kernels()
    version = since_version(node, opset)
    served = [kernel for kernel in table.get(node.op_type, []) if kernel.serves(version)]
    if node.op_type not in table:
        return f"ONNX Runtime {release} has no CUDA kernel of {node.op_type}"
    if not served:
        return f"ONNX Runtime {release} has no CUDA kernel of {node.op_type} {version}"
    if not any(_accepts(kernel, node, opset, infos) for kernel in served):
        types = ", ".join(_type_name(infos.get(name, UNKNOWN)) for name in node.input if name)
        return f"ONNX Runtime {release} has no CUDA kernel of {node.op_type} {version} for {types}"
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


def free_nodes(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> dict[str, str]:
    """Nodes that compute nothing from the data of an input, by name, and why: constants and sizes of tensors.

    Shape and Size are such nodes, and whatever depends on nothing but them and constants and stays small.
    """
    fixed, sizes, found = set(constants(model.graph)), set(), {}
    for node in model.graph.node:
        needed = {name for name in node.input if name}
        if node.op_type in CONTROL_FLOW:
            continue
        if needed <= fixed and not node.op_type.startswith("Random"):
            found[node.name] = "depends on no input: folded when the session is made"
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


def predict_cuda(model: onnx.ModelProto) -> dict[str, Placed]:
    """Where each node of a ``graph.flat`` model would run with the CUDA provider, bodies of control flow aside."""
    infos, opset = infer(model), opset_of(model)
    free = free_nodes(model, infos)
    missing = {node.name: lacks_kernel(node, opset_of(model, node.domain) or opset, infos) for node in model.graph.node}
    placed = {}
    on_cpu: set[str] = set()  # tensors that lie in CPU memory
    harmless = _harmless(model, infos)
    for node in model.graph.node:
        if "folded" in free.get(node.name, ""):
            placed[node.name] = Placed(CPU, free[node.name])
            harmless.update(name for name in node.output if (infos.get(name, UNKNOWN).elements or 0) <= SMALL)
            continue
        if missing[node.name]:
            placed[node.name] = Placed(CPU, missing[node.name])
        elif _prefers_cpu(node, on_cpu, harmless, infos):
            placed[node.name] = Placed(CPU, free.get(node.name) or f"its inputs are on the CPU: {_from(node, on_cpu)}")
        else:
            placed[node.name] = Placed(CUDA, "has a CUDA kernel")
        if placed[node.name].provider == CPU or node.op_type in CPU_OUTPUTS:
            on_cpu.update(node.output)
    return placed


def _harmless(model: onnx.ModelProto, infos: dict[str, TensorInfo]) -> set[str]:
    small = {name for name in constants(model.graph) if (infos[name].elements or 0) <= SMALL}
    return small | {each.name for each in inputs_of(model.graph)}


def _from(node: NodeProto, on_cpu: set[str]) -> str:
    return ", ".join(name for name in node.input if name in on_cpu)


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


def cuda_works() -> bool:
    """Whether a session can really run on a GPU here."""
    return CUDA in onnxruntime.get_available_providers() and torch.cuda.is_available()


def open_session(model: onnx.ModelProto, provider: str) -> onnxruntime.InferenceSession:
    """A session that runs the graph as the file has it, without optimisations, and records placement where it can.

    Raises:
        UserError: where ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what it refuses is raised; what it warns of is what this module says
    options.add_session_config_entry(RECORD, "1")
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS[provider]])
    except REFUSALS as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"ONNX Runtime cannot load the model: {reason}", "check it with onnx.checker") from error


def read_placement(model: onnx.ModelProto, provider: str) -> dict[str, str] | None:
    """Each node's provider, from a session; None where this ONNX Runtime does not tell or lacks the provider here."""
    if provider == "cuda" and not cuda_works():
        return None
    session = open_session(model, provider)
    if not hasattr(session, "get_provider_graph_assignment_info") or session.get_providers()[0] != PROVIDERS[provider]:
        return None
    parts = session.get_provider_graph_assignment_info()
    return {node.name: part.ep_name for part in parts for node in part.get_nodes()}
