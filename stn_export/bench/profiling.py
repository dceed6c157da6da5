"""Profile nodes with ONNX Runtime and PyTorch, and count the work of a network: FLOPs, bytes, launches."""

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from onnx import NodeProto
from onnxruntime import GraphOptimizationLevel
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler_util import FunctionEvent
from torch.fx import Interpreter, Node
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from stn_export.bench.plan import BenchGrid
from stn_export.bench.targets import Network, Target
from stn_export.native.source import multiply_adds_saved
from stn_export.onnx_graph.placement import cpu_session
from stn_export.onnx_graph.points import site_values, steps_of
from stn_export.onnx_graph.trial import kernels
from stn_export.program.program import Program
from stn_export.program.sites import PARTS, Values, parts_of
from stn_export.program.specs import Arrays
from stn_export.run.records import Timing
from stn_export.runners.pytorch import Captured, OfProgram

WARM_UPS = 5
LAYERS = ("Conv", "Gemm", "MatMul")  # parts of operator names
MARK = "node of the captured graph: "


class Timed(NamedTuple):
    """An operator that a node of the graph runs, and its seconds in one call of the network."""

    name: str
    op: str
    part: str
    seconds: float


@dataclass(frozen=True)
class Profile:
    """The time of a call by node; the graph exposes ``sites_shown`` sites, nodes of the others count as ``rest``."""

    nodes: list[Timed]
    sites_shown: int

    @property
    def seconds(self) -> float:
        """Return the time of the whole call, the sum over all nodes."""
        return sum(node.seconds for node in self.nodes)

    def facts(self) -> dict:
        """Return the row's figures: the seconds of every part, and the nodes."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for node in self.nodes:
            seconds[node.part] += node.seconds
        return {"breakdown": seconds, "nodes": self.nodes, "sites_shown": self.sites_shown}


def profiled(target: Target, batch: int, grid: BenchGrid) -> Profile:
    """Profile a target: an ONNX file on the CPU, any other as its captured graph."""
    [feeds] = target.feeds(batch)
    if target.artifact.format == "onnx":
        affine = [bool(site["theta"]) for site in target.network.facts.sites]
        return profile_onnx(target.path, feeds, affine, grid.profiled_calls, grid.threads)
    runner = target.open()
    if not isinstance(runner, OfProgram | Captured):
        raise TypeError(f"{target} has no captured graph")
    runner.options["code"] = "the captured graph, node by node"
    return profile_program(runner.program, runner.place(feeds), grid.profiled_calls)


def profile_onnx(path: Path, feeds: Arrays, affine: Sequence[bool], calls: int, threads: int) -> Profile:
    """Measure the median seconds of every node on the CPU, fused as ONNX Runtime runs them, over ``calls`` calls.

    ``affine`` says of every sampling site whether its grid is made from a theta.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = _optimised(path, Path(folder) / "optimised.onnx", threads)
        settings = _settings(threads, GraphOptimizationLevel.ORT_DISABLE_ALL)
        session = cpu_session(
            model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile"), **settings
        )
        for _ in range(WARM_UPS + calls):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    samples = defaultdict(list)
    for name, event in kernels(events):
        samples[name].append(event["dur"] / 1e6)
    sites = sites_of(model, affine)
    parts = parts_of(steps_of(model), sites, [output.name for output in model.graph.output])
    operators = {node.name: node.op_type for node in model.graph.node}
    nodes = [
        Timed(name, operators[name], parts[name], statistics.median(seconds[WARM_UPS:]))
        for name, seconds in samples.items()
    ]
    return Profile(nodes, len(sites))


def sites_of(model: onnx.ModelProto, affine: Sequence[bool]) -> list[Values]:
    """Return the sampling sites that a graph exposes, as ``program.sites`` takes them.

    If a theta is no value of its own, because it is folded into the grid or has no name, the layer nearest to the grid
    ends the localisation, or belongs to the grid if it outputs the grid directly.
    """
    maker = {value: node for node in model.graph.node for value in node.output}
    events = []
    for site, has_theta in zip(site_values(model), affine, strict=False):
        if {"image", "grid", "warped"} <= set(site):
            theta = site.get("theta") or (_end_of_localisation(maker, site["grid"]) if has_theta else "")
            events.append(Values(site["image"], site["grid"], site["warped"], theta))
    return events


def _end_of_localisation(maker: Mapping[str, NodeProto], grid: str) -> str:
    waiting = [grid]
    for value in waiting:
        node = maker.get(value, NodeProto())
        if any(layer in node.op_type for layer in LAYERS):
            gives_grid = any(name.startswith(f"{grid}.") for name in node.input)  # the folded layer's weights
            return node.input[0] if gives_grid else node.output[0]
        waiting += [name for name in node.input if name not in waiting]
    return ""


def _settings(threads: int, level: GraphOptimizationLevel) -> dict[str, object]:
    quiet = {"log_severity_level": 3}  # no warning that the optimised file is for this machine
    return {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "graph_optimization_level": level} | quiet


def _optimised(path: Path, target: Path, threads: int) -> onnx.ModelProto:
    """Return the graph as ONNX Runtime optimises it, with a name for every node."""
    cpu_session(path, optimized_model_filepath=str(target), **_settings(threads, GraphOptimizationLevel.ORT_ENABLE_ALL))
    model = onnx.load(target)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type} {index}"
    return model


class _Marked(Interpreter):
    """Run a graph node by node, each in a profiler range with the node's name."""

    def run_node(self, node: Node) -> object:
        """Run a node in a profiler range."""
        with record_function(MARK + node.name):
            return super().run_node(node)


def profile_program(program: Program, values: Sequence[Tensor], calls: int) -> Profile:
    """Measure the median seconds of every operator over ``calls`` calls of the captured graph, on its inputs' device.

    On a GPU these are the times of its kernels, on a CPU those of the operators with everything they call; the overhead
    of running the graph node by node is excluded.
    """
    on_gpu = any(value.is_cuda for value in values)
    marked, parts = _Marked(program.on(values[0].device)), program.parts()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            marked.run(*values)
        with profile(activities=activities) as profiler:
            for _ in range(calls):
                marked.run(*values)
            if on_gpu:
                torch.cuda.synchronize()
    samples = defaultdict(list)
    for event in profiler.events():
        ranges = [parent.name for parent in _outwards(event)]
        if "::" in event.name and ranges and not any("::" in name for name in ranges) and MARK in ranges[-1]:
            taken = event.device_time_total if on_gpu else event.cpu_time_total
            samples[ranges[-1].removeprefix(MARK), event.name].append(taken / 1e6)
    nodes = [  # a node may run an operator more than once
        Timed(name, op, parts.get(name, "rest"), statistics.median(taken) * len(taken) / calls)
        for (name, op), taken in samples.items()
    ]
    return Profile(nodes, len(program.sites))


def _outwards(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield the profiler events that contain an event, the innermost first."""
    parent = event.cpu_parent
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


# The work of a network: FLOPs, bytes and kernel launches.


class _Traffic(TorchDispatchMode):
    """Count operators that compute, and the bytes that they read and write; views and empty tensors do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        aliases = [value.alias_info for value in func._schema.returns]
        view = any(alias and not alias.is_write for alias in aliases)  # in-place results are not views
        first = result[0] if isinstance(result, tuple | list) else result  # the indices of max pooling are not needed
        if isinstance(first, Tensor) and not view and "empty" not in func.name():
            self.launches += 1
            self.bytes += sum(value.nbytes for value in (*args, first) if isinstance(value, Tensor))
        return result


def work(program: Program, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Count the work of one call, from the captured network's own operators and precision; nothing is computed.

    Args:
        program: the network.
        inputs: only their shapes and dtypes matter.

    Returns:
        ``flops``: two per multiply-add, see ``Program.multiply_adds``; all else is not counted.
        ``bytes_fused``: weights, input and output once each: what no implementation can avoid.
        ``bytes_unfused``: what every operator reads and writes, intermediate activations included.
        ``launches``: operators that compute, each at least one kernel on a GPU.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        values = [torch.empty(value.shape, dtype=value.dtype) for value in inputs]
        with _Traffic() as traffic:
            outputs = program.module(*values)
        flops = 2 * program.multiply_adds(values=values)
    return {
        "flops": flops,
        "bytes_fused": sum(value.nbytes for value in (*program.state().values(), *values, *outputs)),
        "bytes_unfused": traffic.bytes,
        "launches": traffic.launches,
    }


def all_work(networks: Mapping[str, Network], rows: Iterable[Timing]) -> dict[str, dict[str, dict[str, int]]]:
    """Count the ``work`` of every network at every batch size of its rows; keys are strings, as JSON requires.

    ``native_flops`` is how many of ``flops`` the timed C code really performs.
    """
    work_of: dict[str, dict] = {}
    listed = list(rows)
    written = {row.network for row in listed if row.format == "native"}
    saved = {name: 2 * multiply_adds_saved(networks[name].program) for name in sorted(written)}
    for name, batch in sorted({(row.network, row.batch) for row in listed}):
        network = networks[name]
        counted = work(network.program, network.shapes(batch))
        if name in saved:
            counted["native_flops"] = counted["flops"] - batch * saved[name]
        work_of.setdefault(name, {})[str(batch)] = counted
    return work_of
