"""Train a spatial transformer, export it, verify the exports against PyTorch and measure their overhead."""

import importlib
from typing import Any

__version__ = "0.1.0"
PUBLIC = {  # module and function, imported at first use: they import PyTorch, which is slow
    "adopt": ("stn_export.adopt", ""),
    "audit": ("stn_export.audit", ""),
    "bench": ("stn_export.bench", ""),
    "check": ("stn_export.api", "check"),
    "compare": ("stn_export.api", "compare"),
    "export": ("stn_export.export", ""),
    "export_onnx": ("stn_export.export.onnx", "export_onnx"),
    "report": ("stn_export.report", ""),
    "train": ("stn_export.train", ""),
    "translations": ("stn_export.export.lowerings", "translations"),
    "verify": ("stn_export.verify", ""),
}
__all__ = [
    *("__version__", "adopt", "audit", "bench", "check", "compare", "export", "export_onnx"),
    *("report", "train", "translations", "verify"),
]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = PUBLIC[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, function) if function else loaded
