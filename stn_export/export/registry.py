"""PyTorch's translations of operators into ONNX, read once for all files: reading them is a third of an export."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import cache
from unittest.mock import patch

try:
    from torch.onnx._internal.exporter._registration import ONNXRegistry
except ImportError:  # a PyTorch that keeps it elsewhere: it is read for every file
    ONNXRegistry = None

_from_torchlib = ONNXRegistry and ONNXRegistry.from_torchlib
OTHERS = ("torchvision",)  # packages whose operators are there to be read once they are imported


@cache
def _read(imported: tuple[str, ...], **opset_version: int) -> ONNXRegistry:
    del imported
    return _from_torchlib(**opset_version)


def _copied(**opset_version: int) -> ONNXRegistry:
    """A registry that an export may add its own translations to."""
    registry = copy(_read(tuple(name for name in OTHERS if name in sys.modules), **opset_version))
    registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
    return registry


@contextmanager
def read_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` have copies of what was read before."""
    with patch.object(ONNXRegistry, "from_torchlib", staticmethod(_copied)) if ONNXRegistry else nullcontext():
        yield
