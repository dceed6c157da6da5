"""What an output is, by the captured graph: which tolerance it has follows from the operators behind it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from stn_export.comparison.tolerances import COUNT, OUTPUT, RESAMPLED, WARPED
from stn_export.program.program import Program
from stn_export.program.specs import TensorSpec


@dataclass(frozen=True)
class OutputKind:
    """The column of ``TOLERANCES`` that bounds an output; ``side`` is the longest size of the images resized for it."""

    kind: str
    side: int = 0


def output_kinds(program: Program) -> dict[str, OutputKind]:
    """Tell warped and resized images from all other outputs, by name."""
    results = next(iter(reversed(program.module.graph.nodes))).args[0]
    specs = program.contract.outputs
    return {spec.name: _kind(spec, node, program) for spec, node in zip(specs, results, strict=True)}


def _kind(spec: TensorSpec, node: Node, program: Program) -> OutputKind:
    if not spec.is_float:
        return OutputKind(COUNT)
    behind = list(_behind(node))
    samplers = {site.warped for site in program.sites}
    if _is_image(spec) and any(each.name in samplers for each in behind):
        return OutputKind(WARPED)
    resized = [each for each in behind if resizes(each)]
    if resized and any(size != 1 for size in spec.shape[2:]):
        return OutputKind(RESAMPLED, max(size for each in resized for size in (*_sizes(each), 1)))
    return OutputKind(OUTPUT)


def _is_image(spec: TensorSpec) -> bool:
    """Whether both height and width are more than 1: a vector of four dimensions is no image."""
    return spec.is_picture and 1 not in spec.shape[2:]


def resizes(node: Node) -> bool:
    """Whether a node blends neighbouring pixels by fractions of a pixel; the nearest pixel is taken as it is."""
    name = node.target._schema.name.partition("::")[2] if isinstance(node.target, OpOverload) else ""
    return name.lstrip("_").startswith("upsample_") and "nearest" not in name


def _behind(node: object) -> Iterator[Node]:
    """The nodes that a value is computed from, itself first."""
    seen: set[Node] = set()
    waiting = [node] if isinstance(node, Node) else []
    while waiting:
        if (each := waiting.pop()) not in seen:
            seen.add(each)
            waiting += each.all_input_nodes
            yield each


def _sizes(node: Node) -> Iterator[int]:
    """The sizes of a resized image before and after, as far as they are fixed."""
    for each in (node, *node.all_input_nodes):
        value = each.meta.get("val")
        if isinstance(value, Tensor):
            yield from (size for size in value.shape[2:] if isinstance(size, int))
