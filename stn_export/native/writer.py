"""Collect what C source is assembled from: values in one block of memory, constants, functions and steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from stn_export.native.graph import Example, Shape, arguments, name_of, refusal
from stn_export.program.capture import location

SLACK = 16  # floats after every value, as whole vectors are read and written
CLAMPS = {  # by operator, what a value is clamped to
    "relu": lambda _: (0, math.inf),
    "relu6": lambda _: (0, 6),
    "hardtanh": lambda args: (args.min_val, args.max_val),
}


@dataclass(frozen=True)
class Value:
    """One example's tensor in C: ``text`` points to its first element, ``root`` names its buffer."""

    text: str
    shape: Shape
    root: str = ""

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def at(self, place: int | torch.SymInt | str) -> str:
        """Return a pointer to the element at this offset."""
        return self.text if str(place) == "0" else f"{self.text} + {place}"


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A layer that an int8 ONNX file leaves in float32: the ONNX node's name, and its weights."""

    name: str
    weight: Tensor

    def has(self, weight: Tensor) -> bool:
        """Return whether these are its weights, but for roundings of float32."""
        return self.weight.shape == weight.shape and torch.allclose(self.weight.double(), weight, 1e-5, 1e-7)


@dataclass(frozen=True, eq=False)
class Int8Layer:
    """A convolution or linear layer of an int8 ONNX file: bytes by weights of seven bits, into bytes.

    Attributes:
        name: of the ONNX node.
        weight: int8, outputs × inputs (of a group × rows × columns of the kernel).
        scales: of the weights, per output channel.
        bias: whole numbers of steps, a step being a weight's scale times the input's.
        x: scale and zero point of the input.
        y: scale and zero point of the output.
    """

    name: str
    weight: Tensor
    scales: Tensor
    bias: Tensor
    x: tuple[float, int]
    y: tuple[float, int]

    def has(self, weight: Tensor) -> bool:
        """Return whether its weights are these, rounded."""
        if self.weight.shape != weight.shape:
            return False
        scales = self.scales.double().view(-1, *[1] * (weight.ndim - 1))
        return bool(((self.weight * scales - weight).abs() <= (0.5 + 1e-3) * scales).all())


@dataclass(frozen=True)
class Step:
    """A few lines of the run, the buffers they touch and the floats of scratch they need.

    The lines of a ``shared`` step give ``part`` and ``parts`` to a function that divides its work among threads; those
    of a ``joint`` step compute ``count`` examples at once, ``pitch_<buffer>`` apart.
    """

    comment: str
    lines: tuple[str, ...]
    touched: frozenset[str]
    scratch: int = 0
    multiply_adds: int = 0
    shared: bool = False
    joint: bool = False


@dataclass
class Writer:
    """Collects what operators write: ``values`` by node, ``absorbed`` nodes that were fused into another."""

    example: Example
    values: dict[Node, Value] = field(default_factory=dict)
    buffers: dict[str, Value] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    absorbed: set[Node] = field(default_factory=set)
    multiply_adds_saved: int = 0  # fewer than the network's convolutions state, for one example
    int8: list[Int8Layer | FloatLayer] = field(default_factory=list)  # layers of an int8 file, not written yet

    def value(self, node: Node) -> Value:
        """Return a node's tensor; a constant is written at its first use."""
        if node not in self.values:
            data = self.example.constants[node]
            self.values[node] = Value(self.constant(node.name, data), tuple(data.shape))
        return self.values[node]

    def constant(self, name: str, data: Tensor) -> str:
        """Add constant values, and return their name in C."""
        self.constants[f"c_{name}"] = data.detach().float().numpy().ravel()
        return f"c_{name}"

    def integers(self, name: str, data: np.ndarray) -> str:
        """Add constants of 32 bits, and return their name in C."""
        self.constants[f"c_{name}"] = data.astype(np.int32).ravel()
        return f"c_{name}"

    def int8_layer(self, weight: Tensor) -> Int8Layer | None:
        """Take the first layer of the int8 file that has these weights; None if that is in float32."""
        layer = next((layer for layer in self.int8 if layer.has(weight)), None)
        if layer is not None:
            self.int8.remove(layer)
        return layer if isinstance(layer, Int8Layer) else None

    def data(self, node: Node, user: Node) -> Tensor:
        """Return constant weights in float64; reject those that depend on inputs."""
        if node not in self.example.constants:
            raise refusal(user, "has weights that are computed from inputs")
        return self.example.constants[node].double()

    def new(self, node: Node) -> Value:
        """Allocate a buffer for a node's result."""
        value = Value(f"x_{node.name}", self.example.shapes[node], f"x_{node.name}")
        self.values[node] = self.buffers[value.root] = value
        return value

    def step(
        self,
        what: Node | str,
        lines: Sequence[str],
        values: Sequence[Value],
        scratch: int = 0,
        multiply_adds: int = 0,
        shared: bool = False,
        joint: bool = False,
    ) -> None:
        """Add lines to the run; ``values`` are read or written, and ``scratch`` in the lines points to scratch.

        ``multiply_adds`` are those that the network states for one example; see ``Step`` for the rest.
        """
        comment = what if isinstance(what, str) else f"{name_of(what)} at {location(what)}"
        comment += f", {multiply_adds:,} multiply-adds" if multiply_adds else ""
        touched = frozenset(value.root for value in values) - {""}
        self.steps.append(Step(comment, tuple(lines), touched, scratch, multiply_adds, shared, joint))

    def follower(self, node: Node, *names: str) -> Node | None:
        """Return a node's only reader if it is one of these operators, else None."""
        reader = next(iter(node.users))
        return reader if len(node.users) == 1 and reader.op == "call_function" and name_of(reader) in names else None

    def clamped(self, node: Node) -> tuple[Node, float, float]:
        """Absorb a clamp that alone reads a node, and return it with its bounds; else the node, unbounded."""
        reader = self.follower(node, *CLAMPS)
        if reader is None:
            return node, -math.inf, math.inf
        self.absorbed.add(reader)
        return reader, *CLAMPS[name_of(reader)](arguments(reader))

    def normalisation(self, node: Node) -> tuple[Tensor, Tensor]:
        """Return a batch norm as scale and shift per channel, in float64."""
        args = arguments(node)
        if args.training or args.running_mean is None:
            raise refusal(node, "normalises by the batch itself")
        mean, variance = self.data(args.running_mean, node), self.data(args.running_var, node)
        scale = (variance + args.eps).rsqrt() * (1 if args.weight is None else self.data(args.weight, node))
        return scale, (0 if args.bias is None else self.data(args.bias, node)) - mean * scale


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    return torch.empty(tuple(shape), device="meta").stride()


def loops(
    shape: Sequence[int],
    strides: Sequence[Sequence[int]],
    body: Callable[[list[str]], list[str]],
    names: str = "ijklmnop",
) -> list[str]:
    """Write nested loops over ``shape``; ``body`` gets the index into each tensor, whose ``strides`` are given."""
    dims: list[tuple[int, tuple[int, ...]]] = []
    for size, *steps in zip(shape, *strides, strict=True):
        if dims and all(outer == step * size for outer, step in zip(dims[-1][1], steps, strict=True)):
            dims[-1] = (dims[-1][0] * size, tuple(steps))
        elif size != 1:
            dims.append((size, tuple(steps)))
    places = []
    for axis in range(len(strides)):
        terms = [(name, steps[axis]) for name, (_, steps) in zip(names, dims, strict=False) if steps[axis]]
        places.append(" + ".join(name if step == 1 else f"{name} * {step}" for name, step in terms) or "0")
    heads = [
        f"for (int {name} = 0; {name} < {size}; {name}++) {{" for name, (size, _) in zip(names, dims, strict=False)
    ]
    inside = body(places)
    if not heads and len(inside) > 1:  # a scope of its own for what is declared there
        return ["{", *(f"    {line}" for line in inside), "}"]
    lines = ["    " * min(depth, len(dims)) + line for depth, line in enumerate([*heads, *inside])]
    return [*lines, *("    " * depth + "}" for depth in reversed(range(len(dims))))]


def scalar(number: float) -> str:
    """Format a number as a C literal."""
    if not math.isfinite(number):
        return "NAN" if math.isnan(number) else "INFINITY" if number > 0 else "-INFINITY"
    text = str(np.float32(number))
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


GROUP = 8  # examples that joint steps compute at once


@dataclass(frozen=True)
class Plan:
    """Where everything lies in the memory of a run, in floats.

    Attributes:
        runs: steps by index, in runs: of steps that are done for one example after the other, or a single joint step.
        places: where each buffer begins, scratch included, which is called ``scratch<index>``.
        pitches: how far the examples of a buffer are apart, for those that outlive a run; all others hold one example.
        size: of the whole.
    """

    runs: tuple[tuple[int, ...], ...]
    places: dict[str, int]
    pitches: dict[str, int]
    size: int

    @property
    def group(self) -> int:
        """The examples of one pass through the network."""
        return GROUP if self.pitches else 1


def planned(steps: Sequence[Step], sizes: dict[str, int]) -> Plan:
    """Place the buffers in one block, those never needed at the same time on top of each other."""
    runs = [tuple(run) for _, run in groupby(range(len(steps)), lambda index: index if steps[index].joint else -1)]
    names = [step.touched | ({f"scratch{index}"} if step.scratch else set()) for index, step in enumerate(steps)]
    users: dict[str, list[int]] = {}  # runs by buffer
    for number, run in enumerate(runs):
        for name in sorted(set().union(*(names[index] for index in run))):
            users.setdefault(name, []).append(number)
    pitches = {name: _whole(sizes[name]) for name, numbers in users.items() if len(numbers) > 1}
    rooms, lives = {}, {}
    for name, numbers in users.items():
        indices = [index for number in numbers for index in runs[number] if name in pitches or name in names[index]]
        lives[name] = indices[0], indices[-1]
        step = steps[indices[0]]
        size = sizes.get(name, step.scratch * (GROUP if step.joint else 1))
        rooms[name] = pitches[name] * GROUP if name in pitches else _whole(size)
    places: dict[str, int] = {}
    for name, (first, last) in sorted(lives.items(), key=lambda item: item[1][0]):
        place = 0
        for other in sorted(places, key=places.__getitem__):
            together = lives[other][0] <= last and first <= lives[other][1]
            if together and places[other] < place + rooms[name] and place < places[other] + rooms[other]:
                place = places[other] + rooms[other]
        places[name] = place
    return Plan(tuple(runs), places, pitches, max((places[name] + rooms[name] for name in places), default=0))


def _whole(size: int) -> int:
    """Return the room of a buffer: whole cache lines, and slack."""
    return -(-size // 16) * 16 + SLACK
