"""ONNX Runtime's CUDA and TensorRT providers: the CPU's answers behind the rules of theirs."""

import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from tests.rehearsal.clocks import BrokenRuleError
from tests.rehearsal.device import Device

LIBRARIES = Path(onnxruntime.__file__).parent / "capi"
CPU = "CPUExecutionProvider"
WAITING = "disable_synchronize_execution_providers"


@cache
def library(provider: str) -> bytes:
    """The installed provider's code, which holds the names of all options that it knows."""
    name = provider.removesuffix("ExecutionProvider").lower()
    path = LIBRARIES / f"libonnxruntime_providers_{name}.so"
    return path.read_bytes() if path.is_file() else b""


def check_options(provider: str, options: dict[str, str]) -> None:
    """Every option is one that the installed ONNX Runtime knows."""
    code = library(provider)
    for name, value in options.items():
        if code and name.encode() not in code:
            raise BrokenRuleError(f"this ONNX Runtime's {provider} knows no option {name}")
        if not isinstance(value, str):
            raise BrokenRuleError(f"option {name} is no string")


def is_half(model: object) -> bool:
    """Whether a file, or its content, has weights in half precision."""
    graph = (onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)).graph
    return any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in graph.initializer)


class Value:
    """``OrtValue``: an array on the device, written by the stream that last ran."""

    def __init__(self, device: Device, array: np.ndarray) -> None:
        self.device, self.array = device, array
        self.written: tuple[int, int] | None = None  # by a stream, as so much of its work

    @classmethod
    def on(cls, device: Device) -> type:
        """The class for this device."""

        class OnDevice(cls):
            @staticmethod
            def ortvalue_from_numpy(array: np.ndarray, kind: str = "cpu") -> "Value | onnxruntime.OrtValue":
                if kind == "cpu":
                    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
                device.streams.forbid_in_capture("copies from the host")
                return Value(device, array.copy())

        return OnDevice

    def numpy(self) -> np.ndarray:
        """A copy on the host, which waits for no stream of ours."""
        if self.written and self.device.streams.seen.get(self.written[0], 0) < self.written[1]:
            raise BrokenRuleError("an output is read before the host has waited for its stream")
        return self.array.copy()

    def update_inplace(self, array: np.ndarray) -> None:
        """New content at the same place."""
        if self.array.shape != array.shape or self.array.dtype != array.dtype:
            raise BrokenRuleError("an input of another shape or type is written in place")
        self.array[...] = array


class Binding:
    """``IOBinding``."""

    def __init__(self) -> None:
        self.inputs: dict[str, Callable] = {}
        self.outputs: dict[str, Callable] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = weakref.ref(value)

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = weakref.ref(value)


class Session:
    """``InferenceSession`` with a GPU's provider first, and the CPU's kernels behind it."""

    def __init__(
        self, device: Device, make: type, model: object, options: object = None, providers: Sequence = ()
    ) -> None:
        first = next(iter(providers), CPU)
        self.provider, given = first if isinstance(first, tuple) else (first, {})
        self.inner = make(model, options, providers=[CPU])
        self.device, self.stream, self.recorded = device, None, {}
        if self.provider != CPU:
            check_options(self.provider, given)
            if given.get("use_tf32") == "0" and is_half(model):
                raise BrokenRuleError("half precision without use_tf32 is kept off the tensor cores")
            self.captures = given.get("enable_cuda_graph") == "1"
            if address := given.get("user_compute_stream"):
                self.stream = next(each for each in device.streams.all if str(each.cuda_stream) == address)
        self.names = [each.name for each in self.inner.get_outputs()]

    def get_providers(self) -> list[str]:
        return [self.provider, CPU]

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def io_binding(self) -> object:
        return self.inner.io_binding() if self.provider == CPU else Binding()

    def run(self, names: Sequence[str] | None, feeds: dict, run_options: object = None) -> list[np.ndarray]:
        if self.provider != CPU:
            if self.captures:
                raise BrokenRuleError("a session that records a graph is run with arrays of the host")
            (self.stream or self.device.streams.default).launch()
        return self.inner.run(names, feeds)

    def run_with_iobinding(self, binding: Binding, run_options: onnxruntime.RunOptions | None = None) -> None:
        if self.provider == CPU:
            self.inner.run_with_iobinding(binding, run_options)
            return
        inputs, outputs = ({n: ref() for n, ref in bound.items()} for bound in (binding.inputs, binding.outputs))
        if None in inputs.values() or None in outputs.values():
            raise BrokenRuleError("a bound input or output was freed")
        entry = partial(entry_of, run_options)
        if self.captures:
            self.check_graph(entry("gpu_graph_id"), inputs, outputs)
        (self.stream or self.device.streams.default).launch()
        found = self.inner.run(list(outputs), {name: value.array for name, value in inputs.items()})
        queued = self.stream is not None and entry(WAITING) == "1"
        for value, array in zip(outputs.values(), found, strict=True):
            value.array[...] = array
            value.written = (self.stream.cuda_stream, self.stream.clock[self.stream.cuda_stream]) if queued else None

    def check_graph(self, number: str, inputs: dict, outputs: dict) -> None:
        """A graph is replayed with the buffers that it was recorded with, and is the only one of its session."""
        if self.recorded and number not in self.recorded:
            raise BrokenRuleError("a session records a second graph: at another shape it plans its convolutions anew")
        where = [id(value) for value in (*inputs.values(), *outputs.values())]
        if self.recorded.setdefault(number, where) != where:
            raise BrokenRuleError(f"graph {number} is replayed with other buffers than it was recorded with")


def entry_of(run_options: onnxruntime.RunOptions | None, name: str) -> str:
    """A run option, or an empty string."""
    try:
        return run_options.get_run_config_entry(name) if run_options else ""
    except RuntimeError:  # none of that name
        return ""
