"""PyTorch's file formats other than programs: TorchScript and AOTInductor packages."""

import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from stn_export.errors import UserError, one_line
from stn_export.program.capture import AFFINE_GRIDS
from stn_export.program.passes import sharing_copy
from stn_export.program.program import Program

METADATA = "metadata.json"


@contextmanager
def _without_deprecation() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=category)
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")  # FX's classes
        yield


def to_torchscript(module: GraphModule, metadata: dict) -> bytes:
    """Compile a flat graph (``Program.module``), freeze it, and add ``metadata`` to the file.

    Raises:
        UserError: where TorchScript's compiler rejects the graph.
    """
    buffer = io.BytesIO()
    with _without_deprecation():
        try:
            scripted = torch.jit.freeze(torch.jit.script(_scriptable(module)).eval())
        except Exception as error:  # RuntimeError, NotSupportedError and others
            reason = f"torch.jit.script does not take the graph: {one_line(error)}"
            raise UserError(reason, "use another format") from error
        torch.jit.save(scripted, buffer, _extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def _scriptable(module: GraphModule) -> GraphModule:
    """Return a copy that TorchScript compiles: PyTorch's own operators, and a single output without a tuple."""
    module = sharing_copy(module)
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.sym_size.int:
            node.op, node.target = "call_method", "size"
        elif node.target in AFFINE_GRIDS:
            node.target = torch.ops.aten.affine_grid_generator
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket
    [output] = module.graph.find_nodes(op="output")
    if len(output.args[0]) == 1:
        output.args = (output.args[0][0],)
    module.recompile()
    return module


def load_torchscript(path: Path, device: str) -> nn.Module:
    """Load a TorchScript file onto ``device``."""
    with _without_deprecation():
        return torch.jit.load(path, map_location=device)


def read_metadata(path: Path) -> dict:
    """Read the metadata that ``to_torchscript`` added to a file; empty where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{METADATA}")]
            return json.loads(archive.read(names[0])) if names else {}
    except (zipfile.BadZipFile, ValueError):
        return {}


def to_aotinductor(program: Program, device: str) -> bytes:
    """Compile a program for ``device`` of this machine; slow, and needs a C++ compiler."""
    exported = program.exported if device == "cpu" else move_to_device_pass(program.exported, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.pt2"
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
        return path.read_bytes()
