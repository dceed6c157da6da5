"""Train a spatial transformer, export it, prove the exports equal to PyTorch and measure what they cost."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "adopt", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import ``export_onnx`` and ``adopt`` when asked for: they take PyTorch with them, which is slow to load."""
    if name == "adopt":
        return importlib.import_module("stn_export.adopt")
    if name == "export_onnx":
        from stn_export.export.onnx_export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
