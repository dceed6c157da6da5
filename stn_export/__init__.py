"""Train a spatial transformer, export it, prove the exports equal to PyTorch and measure what they cost."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "export_onnx"]


def __getattr__(name: str) -> Any:
    """Import ``export_onnx`` when it is asked for: it takes PyTorch's exporter with it, which is slow to load."""
    if name == "export_onnx":
        from stn_export.export.onnx_export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
