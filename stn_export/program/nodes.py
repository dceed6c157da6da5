"""What the nodes of a captured graph are given and give, in the types that such a graph promises."""

from torch._ops import OpOverload
from torch.fx import Node


def operand(node: Node, index: int = 0) -> Node:
    """Return the node that gives an operator's argument ``index``.

    Raises:
        TypeError: where that argument is a constant.
    """
    source = node.args[index]
    if not isinstance(source, Node):
        raise TypeError(f"argument {index} of {node.target} is {source!r}, which no node gives")
    return source


def number(node: Node, index: int) -> int:
    """Return an operator's argument ``index``, which is written into the graph as a whole number.

    Raises:
        TypeError: where it is anything else.
    """
    value = node.args[index]
    if not isinstance(value, int):
        raise TypeError(f"argument {index} of {node.target} is {value!r}, which is no whole number")
    return value


def outputs_of(result: Node) -> tuple[Node, ...]:
    """Return the nodes that a graph's last one hands out, in order.

    Raises:
        TypeError: where the graph hands out a constant, or no tuple.
    """
    given = result.args[0]
    nodes = tuple(each for each in given if isinstance(each, Node)) if isinstance(given, tuple | list) else ()
    if not isinstance(given, tuple | list) or len(nodes) != len(given):
        raise TypeError(f"{result.name} gives {given!r}, which are not all nodes")
    return nodes


def operator_of(node: Node) -> OpOverload:
    """Return the operator that a node calls.

    Raises:
        TypeError: where it calls none of PyTorch's.
    """
    if not isinstance(node.target, OpOverload):
        raise TypeError(f"{node.target} of {node.name} is no operator of PyTorch's")
    return node.target
