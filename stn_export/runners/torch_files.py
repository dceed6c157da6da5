"""PyTorch's own file formats: TorchScript, ``torch.export`` programs, AOTInductor packages.

``torch.jit`` is deprecated since torch 2.14 and is what was asked for: exactly its own warnings are silenced here, and
those of the tracer about the shape checks inside ``affine_grid``, which hold for every batch.
"""

import copy
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from stn_export.program.capture import capture

METADATA = "metadata.json"


@contextmanager
def _without_deprecation() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=category)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_torchscript(module: nn.Module, images: Tensor, metadata: dict) -> bytes:
    """Trace ``module`` (in evaluation mode) on a batch of at least 2, freeze it, and add ``metadata`` to the file."""
    buffer = io.BytesIO()
    with _without_deprecation():
        traced = torch.jit.freeze(torch.jit.trace(module, images, check_trace=False))
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def load_torchscript(path: Path, device: str) -> nn.Module:
    """The module at ``path``, on ``device``."""
    with _without_deprecation():
        return torch.jit.load(path, map_location=device)


def read_metadata(path: Path) -> dict:
    """The metadata that ``to_torchscript`` or ``to_pt2`` added to a file; empty where it holds none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"extra/{METADATA}")]
            return json.loads(archive.read(names[0])) if names else {}
    except (zipfile.BadZipFile, ValueError):
        return {}


def to_pt2(module: nn.Module, images: Tensor, metadata: dict) -> bytes:
    """Capture ``module`` (in evaluation mode) with an open batch, and add ``metadata`` to the file."""
    buffer = io.BytesIO()
    torch.export.save(capture(module, (images,)), buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def load_pt2(path: Path) -> nn.Module:
    """The module of a ``torch.export`` file, on the CPU."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # torch 2.11 about its own doing
        return torch.export.load(path).module()


def to_aotinductor(module: nn.Module, images: Tensor, device: str) -> bytes:
    """Compile a copy of ``module`` for ``device`` as it is here, with an open batch: slow, needs a C++ compiler."""
    module, images = copy.deepcopy(module).to(device), images.to(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.pt2"
        torch._inductor.aoti_compile_and_package(capture(module, (images,)), package_path=str(path))
        return path.read_bytes()
