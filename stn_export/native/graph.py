"""View a program at one example of a batch: sizes are numbers, and what depends on no input is computed in advance."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from stn_export.errors import UserError
from stn_export.program.capture import location, operator_of
from stn_export.program.program import Program

Shape = tuple[int, ...]
SHAPES_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")  # read only shapes


@dataclass(frozen=True)
class Example:
    """The graph at batch 1: ``shapes`` of tensors, ``constants``, and ``batched`` tensors that differ per example."""

    nodes: tuple[Node, ...]
    shapes: Mapping[Node, Shape]
    constants: Mapping[Node, Tensor]
    batched: frozenset[Node]


def refusal(node: Node, why: str) -> UserError:
    """Make the error for a node that cannot be written in C, with its operator and its line of the module."""
    return UserError(
        f"{node.target} at {location(node)} {why}", "use another format, or change that line of the module"
    )


def name_of(node: Node) -> str:
    """Return an operator's name, without the underscore of in-place operators."""
    if isinstance(node.target, str):
        raise TypeError(f"{node.op} {node.target} calls no operator")
    return getattr(node.target, "overloadpacket", node.target).__name__.rstrip("_")


def one_example(program: Program) -> Example:
    """View a program at batch 1.

    Raises:
        UserError: where the batch is static, other sizes are dynamic, or examples depend on each other.
    """
    if program.contract.batch is not None or program.contract.open_sizes:
        raise UserError("C is written for an open batch and fixed sizes", "capture it with N as its only open size")
    nodes = tuple(program.module.graph.nodes)
    sizes = [size for node in nodes if node.op == "placeholder" for size in node.meta["val"].shape[:1]]
    symbols = set().union(*map(_symbols, sizes))
    shapes: dict[Node, Shape] = {}
    computed: set[Node] = set()
    batched: set[Node] = set()
    for node in nodes[:-1]:
        value, sources = node.meta.get("val"), node.all_input_nodes
        if isinstance(value, Tensor):
            shapes[node] = _shape(node)
            if any(map(_symbols, value.shape)):
                batched.add(node)
            elif batched.intersection(sources):
                raise refusal(node, "mixes the examples of a batch")
        elif isinstance(value, torch.SymInt) and not _symbols(value) <= symbols:
            raise refusal(node, "makes a size of values")
        looks = not isinstance(value, torch.SymInt) and not (sources and name_of(node) in SHAPES_ONLY)
        if node.op == "placeholder" or (looks and computed.intersection(sources)):
            computed.add(node)
    constants = _constants(program, [node for node in shapes if node not in computed])
    return Example(nodes, shapes, constants, frozenset(batched))


def _shape(node: Node) -> Shape:
    """Return a tensor's sizes at batch 1; only the first size may depend on the batch, as a multiple of it."""
    for axis, size in enumerate(node.meta["val"].shape):
        if _symbols(size) and (axis or integer(size, 6) != 6 * integer(size)):
            raise refusal(node, "moves the batch or mixes its examples")
    return tuple(map(integer, node.meta["val"].shape))


def integer(size: int | torch.SymInt, batch: int = 1) -> int:
    """Return a size at a batch."""
    return size if isinstance(size, int) else int(size.node.expr.subs(dict.fromkeys(_symbols(size), batch)))


def _symbols(size: int | torch.SymInt) -> set:
    """Return the symbols in a size."""
    return set() if isinstance(size, int) else size.node.expr.free_symbols


class _Recorder(Interpreter):
    def __init__(self, program: Program, batch: int) -> None:
        super().__init__(program.module)
        self.found: dict[Node, Tensor] = {}
        with torch.no_grad():
            self.run(*program.values(program.contract.random(batch)))

    def run_node(self, node: Node) -> object:
        """Run a node and record its tensor."""
        result = super().run_node(node)
        if isinstance(result, Tensor):
            self.found[node] = result
        return result


def _constants(program: Program, fixed: list[Node]) -> dict[Node, Tensor]:
    """Compute the tensors that no input value affects, and the batch only by repetition."""
    one, three = (_Recorder(program, batch).found for batch in (1, 3))
    for node in fixed:
        same = one[node].shape == three[node].shape
        if not torch.equal(one[node] if same else one[node].repeat(3, *[1] * (one[node].ndim - 1)), three[node]):
            raise refusal(node, "computes with the size of the batch")
    return {node: one[node].detach() for node in fixed}


def arguments(node: Node) -> SimpleNamespace:
    """Return an operator's arguments by name, sizes as numbers at batch 1."""
    schema = operator_of(node)._schema.arguments
    arguments = dict(zip([argument.name for argument in schema], node.args, strict=False)) | node.kwargs
    return SimpleNamespace(
        **{argument.name: _plain(arguments.get(argument.name, argument.default_value)) for argument in schema}
    )


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    size = value.meta.get("val") if isinstance(value, Node) else None
    return integer(size) if isinstance(size, torch.SymInt) else value


def axes_of(example: Example, node: Node, source: Node, dims: int | list[int] | None) -> list[int]:
    """Return dimensions counted from the front, by default all; reject the batch's."""
    rank = len(example.shapes[source])
    listed = dims if isinstance(dims, list) else [] if dims is None else [dims]
    axes = [dim % rank for dim in listed] or list(range(rank))
    if 0 in axes and source in example.batched:
        raise refusal(node, "works across the examples of a batch")
    return axes
