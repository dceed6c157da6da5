"""PyTorch's translations of operators into ONNX, read once for all files: reading them is a third of an export."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import cache, partial
from typing import TYPE_CHECKING
from unittest.mock import patch

if TYPE_CHECKING:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

OTHERS = ("torchvision",)  # packages whose operators are there to be read once they are imported


def _found() -> "type[ONNXRegistry] | None":
    """PyTorch's table; None where this PyTorch keeps it elsewhere, and it is read for every file."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry


@cache
def _read(read: "Callable[..., ONNXRegistry]", imported: tuple[str, ...], **opset_version: int) -> "ONNXRegistry":
    del imported
    return read(**opset_version)


def _copied(read: "Callable[..., ONNXRegistry]", **opset_version: int) -> "ONNXRegistry":
    """A registry that an export may add its own translations to."""
    registry = copy(_read(read, tuple(name for name in OTHERS if name in sys.modules), **opset_version))
    registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
    return registry


@contextmanager
def read_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` have copies of what was read before."""
    kept = _found()
    if kept is None:
        yield
        return
    with patch.object(kept, "from_torchlib", staticmethod(partial(_copied, kept.from_torchlib))):
        yield
