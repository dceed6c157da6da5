"""Runners run an artifact on a device; verification and the benchmarks use the same ones.

A runner is one class and one row of ``RUNNERS``. Every runner uses as many threads as PyTorch is set to, unless its row
says otherwise.
"""

from stn_export.runners.base import Runner, Step
from stn_export.runners.onnx_runtime import OnnxRuntime
from stn_export.runners.registry import FEW, RUNNERS, RunnerSpec

__all__ = ["FEW", "RUNNERS", "OnnxRuntime", "Runner", "RunnerSpec", "Step"]
