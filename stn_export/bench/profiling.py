"""Per-node times from ONNX Runtime's profiler and from PyTorch's. A profiled call is slower than one that is not."""

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import GraphOptimizationLevel, SessionOptions
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from stn_export.bench.parts import Timed, parts_of
from stn_export.config import INPUT_NAME

WARM_UPS = 5
RANGES = {"localisation": ("transformer.localisation", "transformer.regressor"), "classifier": ("classifier",)}
OPERATORS = {"aten::affine_grid_generator": "grid", "aten::grid_sampler": "sampler"}


def profile_onnx(path: Path, images: np.ndarray, calls: int, threads: int) -> list[Timed]:
    """Median seconds of every node on the CPU, as ONNX Runtime fuses and runs them, over ``calls`` calls."""
    with tempfile.TemporaryDirectory() as folder:
        model = _optimised(path, Path(folder) / "optimised.onnx", threads)
        options = _options(threads, GraphOptimizationLevel.ORT_DISABLE_ALL)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UPS + calls):
            session.run(None, {INPUT_NAME: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    samples = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            samples[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e6)
    parts, operators = parts_of(model), {node.name: node.op_type for node in model.graph.node}
    return [
        Timed(name, operators[name], parts[name], statistics.median(seconds[WARM_UPS:]))
        for name, seconds in samples.items()
    ]


def _options(threads: int, level: GraphOptimizationLevel) -> SessionOptions:
    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = level
    options.log_severity_level = 3  # that an optimised file is for this machine only is known
    return options


def _optimised(path: Path, target: Path, threads: int) -> onnx.ModelProto:
    """The graph as ONNX Runtime would run it, with a name for every node."""
    options = _options(threads, GraphOptimizationLevel.ORT_ENABLE_ALL)
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    model = onnx.load(target)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type} {index}"
    return model


def profile_eager(module: nn.Module, inputs: Tensor, calls: int) -> list[Timed]:
    """Mean seconds of every operator by part, over ``calls`` calls of a model of ours on the device of its inputs.

    On a GPU they are those of its kernels, on a CPU of the operators with all that they call.
    """
    on_gpu = inputs.is_cuda
    for part, names in RANGES.items():
        for name in names:
            if name.split(".")[0] in dict(module.named_children()):
                _mark(module.get_submodule(name), part)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            module(inputs)
        with profile(activities=activities) as profiler:
            for _ in range(calls):
                module(inputs)
            if on_gpu:
                torch.cuda.synchronize()
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for event in profiler.events():
        if event.name.startswith("aten::") and not _inside_operator(event):
            taken = event.device_time_total if on_gpu else event.cpu_time_total
            seconds[event.name, _part(event)] += taken / 1e6 / calls
    return [Timed(name, name, part, taken) for (name, part), taken in seconds.items()]


def _mark(module: nn.Module, part: str) -> None:
    forward: Callable[[Tensor], Tensor] = module.forward

    def marked(values: Tensor) -> Tensor:
        with record_function(part):
            return forward(values)

    module.forward = marked


def _inside_operator(event: torch.autograd.profiler_util.FunctionEvent) -> bool:
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or _inside_operator(parent))


def _part(event: torch.autograd.profiler_util.FunctionEvent) -> str:
    parent = event.cpu_parent
    while parent is not None:
        if parent.name in RANGES:
            return parent.name
        parent = parent.cpu_parent
    return OPERATORS.get(event.name, "other")
