"""The kernels of ONNX Runtime's CUDA provider: the table ``resources/cuda_kernels.json``, how it is written and read.

``write_kernels`` takes it from what an installed ONNX Runtime registers. A kernel without an upper bound serves the one
version of the operator that it was registered for: a newer version of the operator needs a registration of its own.
Source: ``KernelRegistry::VerifyKernelDef`` in ``onnxruntime/core/framework/kernel_registry.cc``.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
from onnx import NodeProto, TensorProto

from stn_export.artifacts.files import read_json, write_out
from stn_export.cli import children
from stn_export.errors import UserError
from stn_export.graphs.graph import ALIAS, UNKNOWN, TensorInfo, since_version
from stn_export.graphs.records import CPU, CUDA

CONTRIBUTED = "com.microsoft"
SCHEMA = "stn_export/kernels/2"
KERNELS = Path(__file__).parent.parent / "resources" / "cuda_kernels.json"
UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Kernel:
    """One registration: versions of the operator, and the element types allowed for each type constraint."""

    since: int
    until: int | None
    types: dict[str, list[str]]

    def serves(self, version: int) -> bool:
        """Whether it runs this version of the operator."""
        return self.since == version or (self.until is not None and self.since < version <= self.until)


@dataclass(frozen=True)
class Kernels:
    """What one ONNX Runtime registers for the ONNX domain: its CUDA kernels by operator, and the CPU's operators.

    ``contributed`` are the operators of com.microsoft that its CUDA provider has, by what ``source`` says.
    """

    release: str
    cuda: dict[str, list[Kernel]]
    cpu: frozenset[str]
    contributed: frozenset[str]
    source: str


@cache
def kernels() -> Kernels:
    """The table of ``resources/cuda_kernels.json``."""
    content = read_json(KERNELS, SCHEMA)
    cuda = {name: [Kernel(*row) for row in rows] for name, rows in content["operators"].items()}
    others = content["contributed"]
    cpu = frozenset(content["cpu_operators"])
    return Kernels(content["onnxruntime"], cuda, cpu, frozenset(others["operators"]), others["source"])


def write_kernels(path: Path) -> int:
    """Write the table from the installed ONNX Runtime; returns the number of operators.

    Raises:
        UserError: where this ONNX Runtime does not list its kernels, or its CUDA provider does not load.
    """
    rows: dict[str, list[list]] = {}
    cpu: set[str] = set()
    contributed: set[str] = set()
    for provider, domain, name, since, until, constraints in _registrations():
        if provider == CPU or domain:
            (contributed if provider == CUDA else cpu if not domain else set()).add(name)
            continue
        types = {each: sorted(map(_element, allowed)) for each, allowed in constraints.items()}
        _merge(rows.setdefault(name, []), [since, None if until == UNBOUNDED else until, types])
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(sorted(rows[name], key=str))}" for name in sorted(rows))
    head = {"schema": SCHEMA, "onnxruntime": onnxruntime.__version__, "cpu_operators": sorted(cpu)}
    source = f"what ONNX Runtime {onnxruntime.__version__} registers"
    head |= {"contributed": {"source": source, "operators": sorted(contributed)}}
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
    """What both providers register; asked in a process of its own, which a provider that cannot load may crash."""
    asked = children.run([sys.executable, "-P", "-c", _LIST])
    lines = asked.stdout.splitlines()
    found = json.loads(lines[-1]) if asked.returncode == 0 and lines else []
    if CUDA not in {row[0] for row in found}:
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
    """Why the CUDA provider of ``kernels().release`` cannot run a node, or "" where it can."""
    if node.domain == CONTRIBUTED:
        known = node.op_type in kernels().contributed
        return "" if known else f"no CUDA kernel of {node.op_type} in {kernels().source}"
    if node.domain not in ("", ALIAS):
        return f"the table has no kernels of domain {node.domain}"
    table = kernels().cuda
    version = since_version(node, opset)
    served = [kernel for kernel in table.get(node.op_type, []) if kernel.serves(version)]
    if node.op_type not in table:
        return f"no CUDA kernel of {node.op_type}"
    if not served:
        return f"no CUDA kernel of {node.op_type} {version}"
    if not any(_accepts(kernel, node, opset, infos) for kernel in served):
        types = ", ".join(_type_name(infos.get(name, UNKNOWN)) for name in node.input if name)
        return f"no CUDA kernel of {node.op_type} {version} for {types}"
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
