"""Run any ONNX file in ONNX Runtime on the CPU within a time limit, and record what that shows."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto

from stn_export.cli.apart import BeyondLimitError, CrashedError, forked
from stn_export.errors import UserError
from stn_export.limits import LIMITS
from stn_export.onnx_graph.costs import Runs, macs
from stn_export.onnx_graph.inputs import (
    LENGTHS,
    Asked,
    Inputs,
    Outputs,
    Run,
    concrete_inputs,
    declared_inputs,
    session_run,
    settled,
)
from stn_export.onnx_graph.model import Shape, TensorInfo, all_constants, infer, walk
from stn_export.onnx_graph.placement import open_session
from stn_export.onnx_graph.records import Tried

Result = TypeVar("Result")
Step = Callable[[Callable[[], Result]], Result]  # calls a function, perhaps in another process
ASKED = Asked()
DRAWS = ((1, 1.0), (2, 2.0), (3, 100.0))  # seed, scale; 100 shows also in networks that truncate floats to integers
ANOTHER_BATCH = 3
LONGER = (LENGTHS[0], 16000)  # first length of a search, and of a second search after a crash
SOON = 0.6  # share of the limit after which no further run starts
KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Trial:
    """The outcome of running a file.

    ``loads`` says whether ONNX Runtime loads the file at all; ``outputs`` are those of a first run, or why there are
    none; ``steady`` says whether a second run gives the same; ``constant`` names float outputs that no input changes;
    ``batch`` says why another batch does not run and is empty where it does; ``runs`` are the shapes recorded in a run.
    """

    inputs: Inputs
    outputs: Outputs | str
    loads: bool = True
    steady: bool = True
    constant: tuple[str, ...] = ()
    batch: str = ""
    runs: Runs = field(default_factory=dict)

    @property
    def tried(self) -> Tried:
        """The inputs as a record."""
        return replace(self.inputs.tried, loads=self.loads)


def here(work: Callable[[], Result]) -> Result:
    """Call a function in this process: for this package's own files."""
    return work()


def within_limits(work: Callable[[], Result]) -> Result:
    """Call a function in a fork of this process, within the time limit of a trial.

    Raises:
        BeyondLimitError: where it exceeds the limit or crashes.
    """
    return forked(work, LIMITS["trial"].value)


def try_model(model: onnx.ModelProto, asked: Asked = ASKED, step: Step = here) -> Trial:
    """Run a ``model.flat`` model on inputs that are found for it.

    Raises:
        UserError: where what was asked for contradicts the file.
    """
    try:
        declared = settled(declared_inputs(model), asked)
    except UserError:
        if asked.shapes or asked.arrays:
            raise
        return Trial(Inputs((), {}), "it takes what cannot be made here")
    why = ""
    for length in LONGER if declared.origin == "chosen" else LONGER[:1]:
        try:
            return step(partial(_trial, model, replace(asked, length=length), declared))
        except BeyondLimitError as error:
            why = why or error.message
            if not isinstance(error, CrashedError):  # some files crash ONNX Runtime if an input is too short
                break
    return Trial(replace(declared, problem=why), why)


def _trial(model: onnx.ModelProto, asked: Asked, declared: Inputs) -> Trial:
    end = time.monotonic() + SOON * LIMITS["trial"].value
    try:
        session = open_session(model, "cpu")
    except UserError as error:
        return Trial(replace(declared, problem=error.message), error.message, loads=False)
    run = session_run(session)
    inputs = concrete_inputs(model, run, asked)
    if inputs.problem:
        return Trial(inputs, inputs.problem)
    begun = time.monotonic()
    outputs = run(inputs.draw())
    took = time.monotonic() - begun
    if isinstance(outputs, str):  # it ran once, but not a second time
        return Trial(inputs, outputs)
    further = _Further(run, inputs, outputs, end - took)
    runs = _profiled(model, inputs) if _is_unknown(model, inputs.sizes) and further.in_time else {}
    steady = further.steady()
    return Trial(inputs, outputs, True, steady, further.constant() if steady else (), further.batch(), runs)


@dataclass(frozen=True)
class _Further:
    """Further runs of a file, as time allows."""

    run: Run
    inputs: Inputs
    outputs: Outputs
    end: float

    @property
    def in_time(self) -> bool:
        """Whether another run would end in time, if it takes as long as the first."""
        return time.monotonic() < self.end

    def steady(self) -> bool:
        """Return whether the same inputs give the same outputs again."""
        again = self.run(self.inputs.draw()) if self.in_time else self.outputs
        return not isinstance(again, str) and all(same(again[name], output) for name, output in self.outputs.items())

    def constant(self) -> tuple[str, ...]:
        """Return the float outputs that other inputs leave unchanged, empty and NaN ones aside."""
        if self.inputs.given or not self.inputs.declared:
            return ()
        comparable = [
            name
            for name, output in self.outputs.items()
            if output.size and _is_float(output) and not np.isnan(output).all()
        ]
        tried = 0
        for seed, scale in DRAWS:
            other = self.run(self.inputs.draw(seed, scale=scale)) if comparable and self.in_time else "not run"
            if not isinstance(other, str):
                tried += 1
                comparable = [name for name in comparable if same(other[name], self.outputs[name])]
        return tuple(comparable) if tried > 1 else ()

    def batch(self) -> str:
        """Return why another batch does not run; empty where it does, or where the batch cannot be chosen."""
        ones = [self.inputs.chosen[name] == 1 for name in self.inputs.batches]
        if not ones or not all(ones) or self.inputs.given or self.inputs.origin == "given" or not self.in_time:
            return ""
        outputs = self.run(self.inputs.draw(batch=ANOTHER_BATCH))
        return outputs if isinstance(outputs, str) else ""


def _is_float(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two outputs are equal, NaN counting as equal to NaN."""
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=_is_float(one) and _is_float(other))


def _is_unknown(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Return whether inference alone leaves multiply-adds or shapes unknown."""
    infos = infer(model, shapes)
    names = (name for node in model.graph.node for name in node.output if name)
    return any(macs(node, infos) is None for node in model.graph.node) or any(
        name not in infos or infos[name].shape is None for name in names
    )


def _profiled(model: onnx.ModelProto, inputs: Inputs) -> Runs:
    """Return the shapes of every node's tensors each time that it ran, from ONNX Runtime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        entries = {"enable_profiling": True, "profile_file_prefix": str(Path(folder) / "profile")}
        session = open_session(model, "cpu", entries)
        session_run(session)(inputs.draw())
        content = Path(session.end_profiling()).read_bytes()
    nodes, runs = {node.name: node for node in walk(model.graph)}, dict[str, list[dict[str, TensorInfo]]]()
    tensors = all_constants(model.graph)
    fixed = {name: TensorInfo(tensor.data_type, tuple(tensor.dims)) for name, tensor in tensors.items()}
    for name, event in kernels(json.loads(content)):
        node = nodes.get(name)
        if node is not None:
            shapes = (event["args"]["input_type_shape"], event["args"]["output_type_shape"])
            pairs = zip((node.input, node.output), shapes, strict=True)
            seen = [_tensors(names, rows, fixed) for names, rows in pairs]
            runs.setdefault(name, []).append(seen[0] | seen[1])
    return runs


def kernels(events: Sequence[dict]) -> Iterator[tuple[str, dict]]:
    """Yield the runs of nodes in a profile of ONNX Runtime: a node's name, and its event."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            yield event["name"].removesuffix(KERNEL), event


def _tensors(
    names: Sequence[str], rows: Sequence[Mapping[str, list[int]]], fixed: Mapping[str, TensorInfo]
) -> dict[str, TensorInfo]:
    """Match the tensors of one run of a node; a profile leaves out non-tensors, and a body's outer constants."""
    named = [name for name in names if name]
    infos = {name: fixed[name] for name in named if name in fixed}
    if len(named) != len(rows):
        named = [name for name in named if name not in fixed]
    if len(named) != len(rows):
        return infos
    for name, row in zip(named, rows, strict=True):
        for kind, shape in row.items():
            infos[name] = TensorInfo(getattr(TensorProto, kind.upper(), TensorProto.UNDEFINED), tuple(shape))
    return infos


def observed(infos: Mapping[str, TensorInfo], model: onnx.ModelProto, runs: Runs) -> dict[str, TensorInfo]:
    """Merge the types and shapes of inference with those seen in a run, where inference knows no shape."""
    seen = {name: info for node in model.graph.node for run in runs.get(node.name, ()) for name, info in run.items()}
    lacking = {name: info for name, info in seen.items() if name not in infos or infos[name].shape is None}
    return dict(infos) | {
        name: TensorInfo(infos[name].dtype or info.dtype if name in infos else info.dtype, info.shape)
        for name, info in lacking.items()
    }
