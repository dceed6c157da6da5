"""Make concrete inputs for any ONNX file: given shapes and arrays are kept, dynamic sizes are found by running it.

Sizes are searched because the file does not state them: a speech network may need 512 samples, a detector 640 pixels.
A failed run names a node and often a number that was expected there; those numbers are tried next.
"""

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, TypeProto, helper

from stn_export.errors import UserError
from stn_export.limits import require
from stn_export.onnx_graph.model import Shape, as_array, inputs_of, walk
from stn_export.onnx_graph.placement import REFUSALS, reason_of
from stn_export.onnx_graph.records import Tried

if TYPE_CHECKING:
    import openvino

Value = np.ndarray | list[np.ndarray]
Feeds = dict[str, Value]
Outputs = dict[str, np.ndarray]
Run = Callable[[Feeds], Outputs | str]  # the outputs, or why there are none

LENGTHS = (16, 1, 512, 128, 1024, 16000, 2, 4, 64, 256, 3, 80)  # candidates for dynamic axes other than image sides
SIDES = (64, 224, 256, 640, 32, 28, 512, 1024)  # candidates for image sides, in pixels
CHANNELS = (1, 3, 4)  # static sizes of the last axis that mean channels, in NHWC
TRIES = 80
SECONDS = 3.0  # after this no further sizes are tried
LARGEST = 2**17  # largest size that is read from an error
SAMPLE_RATE = 16000  # in hertz, for an input that is named a rate
RANKS = (2, 4, 3, 1, 0)  # to try, for inputs without a declared rank
PACKED = {"int4": 2, "uint4": 2, "int2": 4, "uint2": 4}  # values per byte
BITS = ("bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", *PACKED)  # unknown to NumPy
OPENVINO = {"bf16": TensorProto.BFLOAT16, "f8e4m3": TensorProto.FLOAT8E4M3FN, "f8e5m2": TensorProto.FLOAT8E5M2}
UNCASTABLE = (TensorProto.UNDEFINED, TensorProto.COMPLEX64, TensorProto.COMPLEX128)


@dataclass(frozen=True)
class Declared:
    """An input as a file declares it: a dynamic size is a name, equal names are one size; tensor or sequence."""

    name: str
    kind: str  # tensor or sequence
    dtype: int
    dims: tuple[int | str, ...]
    ranked: bool = True

    @property
    def sides(self) -> range:
        """The axes that are sides of an image or a volume: after the channels, or before them in NHWC."""
        if len(self.dims) < 4:
            return range(0)
        last, second = self.dims[-1] in CHANNELS, self.dims[1] in CHANNELS
        return range(1, len(self.dims) - 1) if last and not second else range(2, len(self.dims))


@dataclass(frozen=True)
class Asked:
    """Shapes and arrays by input that the user asks for, and the ``length`` that a search begins with."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    length: int = LENGTHS[0]


@dataclass(frozen=True)
class Inputs:
    """Concrete inputs: ``draw`` makes them, ``sizes`` are their shapes, ``origin`` says where those come from.

    ``problem`` says why the file did not run on them and is empty where it did; otherwise the file counts as not tried.
    """

    declared: tuple[Declared, ...]
    chosen: Mapping[str, int]
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    origin: str = "declared"
    problem: str = ""

    @property
    def batches(self) -> list[str]:
        """The dynamic sizes that are first axes."""
        return [declared.dims[0] for declared in self.declared if declared.dims and isinstance(declared.dims[0], str)]

    @property
    def sizes(self) -> dict[str, Shape]:
        """The shape of every input; for a sequence, the shape of its parts."""
        return self.at()

    def at(self, batch: int | None = None) -> dict[str, Shape]:
        """Return the shapes, with another batch if given."""
        sizes = dict(self.chosen) | dict.fromkeys(self.batches if batch else (), batch or 0)
        shapes = {declared.name: tuple(_size(dim, sizes) for dim in declared.dims) for declared in self.declared}
        return shapes | {name: array.shape for name, array in self.given.items()}

    def draw(self, seed: int = 0, batch: int | None = None, scale: float = 1.0) -> Feeds:
        """Draw the inputs: floats from -scale to scale, integers 0 and 1, lengths the longest size; or those given.

        Raises:
            UserError: for an input that no array can hold, or one that is too large.
        """
        generator, shapes = np.random.default_rng(seed), self.at(batch)
        longest = max((n for name, n in self.chosen.items() if name not in self.batches), default=1)
        drawn: Feeds = {}
        for declared in self.declared:
            require("tensors", prod(shapes[declared.name]), f"input {declared.name}")
            one = _drawn(declared, shapes[declared.name], generator, scale, longest)
            drawn[declared.name] = one if declared.kind == "tensor" else [one, one.copy()]
        return drawn | dict(self.given)

    @property
    def tried(self) -> Tried:
        """The shapes, their origin and the problem as a record."""
        return Tried(self.sizes, self.origin, self.problem)

    def __str__(self) -> str:
        return str(self.tried)


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    return sizes[dim] if isinstance(dim, str) else dim


def _drawn(declared: Declared, shape: Shape, generator: np.random.Generator, scale: float, longest: int) -> np.ndarray:
    """Draw one array; inputs named as a length or a sample rate get plausible values."""
    if declared.dtype == TensorProto.STRING:
        return np.array([f"{n % 10}" for n in range(prod(shape))], object).reshape(shape)
    if declared.dtype in UNCASTABLE:
        raise UserError(f"input {declared.name} holds what this cannot draw", "give it with --inputs FILE.npz")
    dtype = helper.tensor_dtype_to_np_dtype(declared.dtype)
    if dtype.kind in "iu" and dtype.itemsize >= 4:
        if re.search(r"len(gth)?s?\b|_len", declared.name.lower()):
            return np.full(shape, longest, dtype)
        if re.fullmatch(r"sr|.*rate", declared.name.lower()):
            return np.full(shape, SAMPLE_RATE, dtype)
    whole = dtype.kind in "iub" or np.dtype(dtype).name.startswith(("int", "uint"))
    return (generator.integers(0, 2, shape) if whole else generator.uniform(-scale, scale, shape)).astype(dtype)


def declared_inputs(model: onnx.ModelProto) -> tuple[Declared, ...]:
    """Return the inputs that a caller has to feed.

    Raises:
        UserError: for an input that is neither a tensor nor a sequence of tensors.
    """
    return tuple(_declared(value) for value in inputs_of(model.graph))


def _declared(value: onnx.ValueInfoProto) -> Declared:
    held, kind = value.type, "tensor"
    if held.WhichOneof("value") == "optional_type":
        held = held.optional_type.elem_type
    if held.WhichOneof("value") == "sequence_type":
        held, kind = held.sequence_type.elem_type, "sequence"
    if held.WhichOneof("value") != "tensor_type":
        raise UserError(f"input {value.name} is no tensor", "such a file cannot be run here")
    return Declared(value.name, kind, held.tensor_type.elem_type, *_dims(value.name, held))


def _dims(name: str, held: TypeProto) -> tuple[tuple[int | str, ...], bool]:
    """Return the sizes, dynamic ones as names, and whether the file states the rank."""
    dims = held.tensor_type.shape.dim
    open_names = [dim.dim_param or f"{name}.{axis}" for axis, dim in enumerate(dims)]
    sizes = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else open_names[axis]
        for axis, dim in enumerate(dims)
    ]
    return tuple(sizes), held.tensor_type.HasField("shape")


def settled(declared: Sequence[Declared], asked: Asked) -> Inputs:
    """Keep the sizes that were asked for, and give every other dynamic size its first candidate.

    Raises:
        UserError: where what was asked for contradicts the file.
    """
    shapes = dict(asked.shapes) | {name: array.shape for name, array in asked.arrays.items()}
    by_name, fixed = {entry.name: entry for entry in declared}, dict[str, int]()
    for name, shape in shapes.items():
        if name not in by_name:
            raise UserError(f"there is no input {name}", f"the inputs are {', '.join(by_name) or 'none'}")
        entry = by_name[name] = _at_rank(by_name[name], len(shape))
        if len(entry.dims) != len(shape):
            raise UserError(f"input {name} has {len(entry.dims)} sizes, not {len(shape)}", f"it is {_words(entry)}")
        for dim, size in zip(entry.dims, shape, strict=True):
            if size != (dim if isinstance(dim, int) else fixed.setdefault(dim, size)):
                raise UserError(f"input {name} cannot be {shape}", f"it is {_words(entry)}, and equal names are equal")
    for name, array in asked.arrays.items():
        dtype = helper.tensor_dtype_to_np_dtype(by_name[name].dtype)
        if array.dtype != dtype and by_name[name].dtype != TensorProto.STRING:
            raise UserError(f"input {name} is {array.dtype}, and the file takes {dtype}", "save it as that")
    rows = tuple(by_name.values())
    first = {name: asked.length if sizes == LENGTHS else sizes[0] for name, sizes in _candidates(rows).items()}
    chosen = first | fixed
    origin = "given" if shapes else "declared"
    return Inputs(rows, chosen, dict(asked.arrays), origin if set(chosen) <= set(fixed) else "chosen")


def _at_rank(declared: Declared, rank: int) -> Declared:
    """Return the input with a rank, where the file does not state one."""
    return (
        declared
        if declared.ranked
        else replace(declared, dims=tuple(f"{declared.name}.{axis}" for axis in range(rank)))
    )


def _words(declared: Declared) -> str:
    return "×".join(map(str, declared.dims)) or "a scalar"


def _candidates(declared: Sequence[Declared]) -> dict[str, tuple[int, ...]]:
    """Return candidates for each dynamic size, the likeliest first; a first axis counts as a batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in declared:
        if entry.dims and isinstance(entry.dims[0], str):
            shapes[entry.dims[0]] = (1, 2)
    for entry in declared:
        for axis, dim in enumerate(entry.dims):
            channels = len(entry.dims) > 3 and axis == 1
            sizes = SIDES if axis in entry.sides else (3, 1, 4) if channels else LENGTHS
            if isinstance(dim, str):
                shapes.setdefault(dim, sizes)
    return shapes


def concrete_inputs(model: onnx.ModelProto, run: Run, asked: Asked = Asked()) -> Inputs:
    """Find inputs that a file runs on.

    Args:
        model: as ``model.flat`` returns it: node names show how far a run came.
        run: runs the model on inputs.
        asked: shapes and arrays that the user asks for.

    Returns:
        The inputs; where nothing ran, the first that were tried, with the problem.

    Raises:
        UserError: where what was asked for contradicts the file.
    """
    order = {node.name: index for index, node in enumerate(walk(model.graph))}
    declared, first = declared_inputs(model), None
    for rank in RANKS if any(not entry.ranked for entry in declared) else RANKS[:1]:
        inputs = settled([entry if entry.name in asked.shapes else _at_rank(entry, rank) for entry in declared], asked)
        result = _searched(inputs, run, asked, order)
        if not result.problem:
            return result
        first = first or result
    assert first  # RANKS is not empty
    return first


def _searched(inputs: Inputs, run: Run, asked: Asked, order: Mapping[str, int]) -> Inputs:
    """Try sizes until a run gives output; a run with empty outputs is the fallback."""
    end, first, empty = time.monotonic() + SECONDS, replace(inputs, problem="it was not run"), None
    search = _Search(inputs, {name for name in inputs.chosen if not _is_fixed(name, inputs, asked)}, order)
    for count, attempt in enumerate(search):
        outputs = _attempt(run, attempt)
        if not isinstance(outputs, str):
            tried = attempt if attempt.chosen == inputs.chosen else replace(attempt, origin="found by running it")
            if any(output.size for output in outputs.values()):
                return tried
            empty = empty or tried
        elif count == 0:
            first = replace(attempt, problem=outputs)
        search.learn(attempt, outputs if isinstance(outputs, str) else "")
        if count + 1 >= TRIES or time.monotonic() > end:
            break
    return empty or first


def _is_fixed(name: str, inputs: Inputs, asked: Asked) -> bool:
    """Return whether a dynamic size follows from a given shape or array."""
    return any(name in entry.dims for entry in inputs.declared if entry.name in {*asked.shapes, *asked.arrays})


def _attempt(run: Run, inputs: Inputs) -> Outputs | str:
    try:
        return run(inputs.draw())
    except UserError as error:
        return error.message


class _Search:
    """The sizes to try: numbers that an error named, then ladders of common sizes, from the run that came furthest."""

    def __init__(self, inputs: Inputs, free: set[str], order: Mapping[str, int]) -> None:
        self.inputs, self.free, self.order = inputs, sorted(free), order
        self.candidates = _candidates(inputs.declared)
        self.best, self.furthest, self.numbers = inputs, -1, list[int]()
        self.seen: list[Mapping[str, int]] = []

    def __iter__(self) -> Iterator[Inputs]:
        yield from self._new(self.inputs.chosen)
        while True:
            before = len(self.seen)
            for name in self.free:
                for size in tuple(self.numbers):
                    yield from self._new(dict(self.best.chosen) | {name: size})
            if len(self.seen) == before:
                break
        for ladder in (LENGTHS, SIDES):
            names = [name for name in self.free if self.candidates[name] == ladder]
            for size in ladder if names else ():
                yield from self._new(dict(self.inputs.chosen) | dict.fromkeys(names, size))
        lengths = [name for name in self.free if self.candidates[name] == LENGTHS]
        for name in lengths if len(lengths) > 1 else ():  # the others may be batches by another name
            for size in LENGTHS:
                yield from self._new(dict(self.inputs.chosen) | dict.fromkeys(lengths, 1) | {name: size})
        for name in self.free:
            for size in (*self.candidates[name], *self.numbers):
                yield from self._new(dict(self.best.chosen) | {name: size})

    def _new(self, chosen: Mapping[str, int]) -> Iterator[Inputs]:
        if chosen not in self.seen:
            self.seen.append(chosen)
            yield replace(self.inputs, chosen=dict(chosen))

    def learn(self, attempt: Inputs, message: str) -> None:
        """Remember the attempt that came furthest, and the numbers in its error."""
        place = max((self.order.get(name, 0) for name in re.findall(r"Name:'([^']*)'", message)), default=0)
        if message and place > self.furthest:
            named = (int(word) for word in re.findall(r"(?<![\w.])\d+(?![\w.])", message))
            self.numbers = [number for number in dict.fromkeys(named) if 1 < number <= LARGEST]
            self.best, self.furthest = attempt, place


def session_run(session: onnxruntime.InferenceSession) -> Run:
    """Return a function that runs a session: every output as an array, or ONNX Runtime's message."""
    names = [output.name for output in session.get_outputs()]
    session_outputs = runs_of(session)

    def run(feeds: Feeds) -> Outputs | str:
        try:
            outputs = session_outputs(names, feeds)
        except (*REFUSALS, RuntimeError, ValueError, TypeError) as error:  # its binding cannot pass some values
            return reason_of(error)
        return {name: as_array(value) for name, value in zip(names, outputs, strict=True) if value is not None}

    return run


def runs_of(session: onnxruntime.InferenceSession) -> Callable[..., list[Any]]:
    """Return a function that runs a session as its own ``run`` does, also with types that only ml_dtypes provides."""
    taken, got = (any(map(_has_bits, values)) for values in (session.get_inputs(), session.get_outputs()))
    return partial(_read_by_bits, session) if got else partial(_fed_by_bits, session) if taken else session.run


def _has_bits(value: onnxruntime.NodeArg) -> bool:
    return value.type.removeprefix("tensor(").removesuffix(")") in BITS


def _fed_by_bits(session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Mapping[str, Value]) -> list[Any]:
    return session.run(names, {name: _handed_over(value) for name, value in feeds.items()})


def _read_by_bits(session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Mapping[str, Value]) -> list[Any]:
    handed = ((name, _handed_over(value)) for name, value in feeds.items())
    values = {
        name: value if isinstance(value, onnxruntime.OrtValue) else onnxruntime.OrtValue.ortvalue_from_numpy(value)
        for name, value in handed
    }
    return [_read(value) for value in session.run_with_ort_values(names, values)]


def _handed_over(value: Value) -> Value | onnxruntime.OrtValue:
    """Convert a value for ONNX Runtime: types that only ml_dtypes provides are passed as raw bits."""
    if isinstance(value, list) or value.dtype.isbuiltin == 1:
        return value
    bits = value.view({1: np.uint8, 2: np.uint16}[value.dtype.itemsize])
    if (numbers := PACKED.get(value.dtype.name)) is not None:
        bits = _packed(bits, numbers)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _packed(values: np.ndarray, numbers: int) -> np.ndarray:
    """Pack several numbers per byte, the first in the lowest bits, at the head of an array of the same shape."""
    bits = 8 // numbers
    rows = np.zeros((-(-values.size // numbers), numbers), np.uint8)
    rows.reshape(-1)[: values.size] = values.reshape(-1) & (2**bits - 1)
    packed = np.zeros(values.shape, np.uint8)
    packed.reshape(-1)[: len(rows)] = (rows << (bits * np.arange(numbers, dtype=np.uint8))).sum(1)
    return packed


def openvino_core() -> "openvino.Core":
    """Return the one OpenVINO core of this process, which lives as long as the process; a fork has one of its own.

    A core gives the thread that loads its CPU plugin an alternate signal stack, and restores the previous one when it
    is freed. Two cores that are freed in the order of their making leave a stack that is unmapped: from then on any
    signal, Ctrl-C too, ends the process with a segmentation fault.
    """
    return _core_of(os.getpid())


@cache
def _core_of(process: int) -> "openvino.Core":
    import openvino  # optional: only where it is installed

    return openvino.Core()


def of_openvino(result: np.ndarray, kind: str) -> np.ndarray:
    """Convert an output of OpenVINO, which returns types that NumPy lacks as others of the same width.

    Args:
        result: the array that it returned.
        kind: the element type, as OpenVINO calls it.
    """
    return result.view(helper.tensor_dtype_to_np_dtype(OPENVINO[kind])) if kind in OPENVINO else result


def _read(value: onnxruntime.OrtValue) -> np.ndarray:
    """Convert an output to an array; for types of less than a byte, the packed bytes."""
    kind = value.data_type().removeprefix("tensor(").removesuffix(")")
    if kind not in BITS:
        return value.numpy()
    shape, dtype = tuple(value.shape()), helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind.upper()))
    if kind in PACKED:
        return np.frombuffer(ctypes.string_at(value.data_ptr(), -(-prod(shape) // PACKED[kind])), np.uint8)
    content = ctypes.string_at(value.data_ptr(), prod(shape) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)
