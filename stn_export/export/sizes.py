"""Choose other sizes that a file with dynamic sizes must be right at, and find operators that keep the example's."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from stn_export.program.capture import SMALLEST, location
from stn_export.program.program import Program
from stn_export.program.specs import BATCH, by

Shapes = tuple[tuple[int, ...], ...]  # one per input
TRIES: tuple[tuple[Callable[[int, int], int], ...], ...] = (  # of a size and its place; the first that the module takes
    (lambda size, place: 3 * size // 4, lambda size, place: size // 2),
    (lambda size, place: (5 * size // 4 + 2 * place) | 1,),  # odd, and of other proportions
    (lambda size, place: 2 * size,),
)
POOLING = re.compile(r"aten\._?(adaptive_(?:avg|max)_pool[123]d)\b")


@dataclass(frozen=True)
class OpenSize:
    """A dynamic size other than the batch: its value in the example, and the least and largest that it may have."""

    value: int
    least: int
    most: int | None

    def near(self, size: int) -> int:
        """Return the allowed size that is nearest."""
        return max(self.least, size if self.most is None else min(size, self.most))


def other_shapes(program: Program, tensors: Sequence[Tensor]) -> list[list[Shapes]]:
    """Return shapes of the inputs with every dynamic size but the batch smaller, odd, and larger.

    Each of the three is a list, of which the first that the module takes is meant. Empty where no size is dynamic.
    """
    opened = _open_sizes(program, tensors)
    every, seen = [], {tuple(tuple(tensor.shape) for tensor in tensors)}
    for tries in TRIES if opened else ():
        chosen = []
        for resize in tries:
            sizes = {
                symbol: size.near(resize(size.value, place)) for place, (symbol, size) in enumerate(opened.items())
            }
            shapes = tuple(
                tuple(_at(size, sizes, own) for size, own in zip(symbolic, tensor.shape, strict=True))
                for symbolic, tensor in zip(_symbolic(program), tensors, strict=True)
            )
            if shapes not in seen:
                seen.add(shapes)
                chosen.append(shapes)
        every.append(chosen)
    return every


def resized(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of another shape, whose elements are the nearest ones of a given tensor."""
    value = value.detach()
    for axis, side in enumerate(shape):
        if side != value.shape[axis]:
            nearest = torch.arange(side, device=value.device) * value.shape[axis] // side
            value = value.index_select(axis, nearest)
    return value.contiguous()


def called(program: Program, shapes: Shapes) -> str:
    """Return the shapes of the inputs that have dynamic sizes, for people: ``images 2×1×12×14``."""
    pairs = zip(program.contract.inputs, shapes, strict=True)
    return ", ".join(f"{spec.name} {by(shape)}" for spec, shape in pairs if any(isinstance(n, str) for n in spec.shape))


def frozen_by(program: Program) -> str:
    """Name the adaptive pooling whose windows an exporter computes from the example's size; empty where there is none.

    Pooling to one value is a mean, which is right at any size.
    """
    for node in program.exported.graph.nodes:
        pooling = POOLING.match(str(node.target))
        if pooling and any(side != 1 for side in _sides(node)):
            area = ", which interpolate(mode='area') is too," if "avg" in pooling[1] else ""
            return f"{pooling[1]}{area} at {location(node)} is written for the example's size"
    return ""


def _sides(node: Node) -> Sequence[Any]:
    sides = node.args[1]
    return sides if isinstance(sides, list | tuple) else (sides,)


def _symbolic(program: Program) -> list[Sequence[int | torch.SymInt]]:
    """Return the shapes of the inputs in the captured graph, where dynamic sizes are expressions of symbols."""
    values = {node.name: node.meta.get("val") for node in program.exported.graph.nodes if node.op == "placeholder"}
    return [values[name].shape for name in program.exported.graph_signature.user_inputs]


def _open_sizes(program: Program, tensors: Sequence[Tensor]) -> dict[Any, OpenSize]:
    """Return the dynamic sizes other than the batch, by their symbols."""
    found: dict[Any, OpenSize] = {}
    batches: set[Any] = set()
    for size, name, own in _dimensions(program, tensors):
        symbols = size.node.expr.free_symbols
        if name == BATCH:
            batches |= symbols
        elif len(symbols) == 1:
            (symbol,) = symbols
            first, second = (size.node.expr.subs({symbol: value}) for value in (0, 1))
            limits = program.exported.range_constraints.get(symbol)
            found[symbol] = OpenSize(
                int((own - first) // (second - first)),
                max(SMALLEST, int(limits.lower)) if limits and limits.lower.is_Integer else SMALLEST,
                int(limits.upper) if limits and limits.upper.is_Integer else None,
            )
    return {symbol: size for symbol, size in found.items() if symbol not in batches}


def _dimensions(program: Program, tensors: Sequence[Tensor]) -> Iterator[tuple[Any, int | str, int]]:
    """Yield each dynamic size of the inputs: as a symbol, its name, and its value in the example."""
    for symbolic, spec, tensor in zip(_symbolic(program), program.contract.inputs, tensors, strict=True):
        for size, name, own in zip(symbolic, spec.shape, tensor.shape, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(name, str):
                yield size, name, own


def _at(size: int | torch.SymInt, sizes: Mapping[Any, int], own: int) -> int:
    """Return a dimension's size where symbols have these values; its own where it depends on others."""
    if not isinstance(size, torch.SymInt):
        return size
    expression = size.node.expr
    return int(expression.subs(sizes)) if expression.free_symbols <= set(sizes) else own
