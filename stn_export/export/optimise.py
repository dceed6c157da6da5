"""ONNX Runtime's own optimiser, run ahead of time and kept to what every runtime understands."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime import GraphOptimizationLevel

from stn_export.graphs.placement import cpu_session


def optimise(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and drop what does nothing: ONNX Runtime's basic level, which writes standard operators only.

    The levels above it write operators of one processor and one version of ONNX Runtime, which does the same by
    itself when it loads a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "optimised.onnx")
        basic = GraphOptimizationLevel.ORT_ENABLE_BASIC
        cpu_session(model, graph_optimization_level=basic, optimized_model_filepath=target)
        return onnx.load(target)
