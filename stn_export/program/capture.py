"""``torch.export`` of modules that sample in 2-D, with open dimensions where they are asked for and can be kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from stn_export.errors import UserError
from stn_export.program.specs import BATCH

Shape = Sequence[int | str]  # sizes, and names of open dimensions
NAMES = {BATCH: "batch", "H": "height", "W": "width"}  # what a file calls them
SMALLEST = 2  # of an open size: 1 has rules of its own
TRIES = (Dim, lambda *_, **__: Dim.AUTO)  # named dimensions first, then whatever the module can keep open


@torch.library.custom_op("stn_export::affine_grid", mutates_args=())
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """``F.affine_grid`` as one opaque operator: PyTorch's own makes constants of height and width when captured."""
    return torch.ops.aten.affine_grid_generator.default(theta, size, align_corners)


@affine_grid.register_fake
def _(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return theta.new_empty(size[0], size[2], size[3], 2)


AFFINE_GRIDS = (torch.ops.aten.affine_grid_generator.default, torch.ops.stn_export.affine_grid.default)
GRID_SAMPLE = torch.ops.aten.grid_sampler.default


@contextmanager
def _opaque_affine_grid() -> Iterator[None]:
    def replacement(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
        return torch.ops.stn_export.affine_grid(theta, list(size), bool(align_corners))

    with mock.patch.object(torch.nn.functional, "affine_grid", replacement):
        yield


@dataclass(frozen=True)
class Captured:
    """A captured module, and the shapes that its inputs have there: what could not be kept open is a number."""

    exported: ExportedProgram
    shapes: tuple[tuple[int | str, ...], ...]


def capture(module: nn.Module, inputs: tuple[Tensor, ...], shapes: Sequence[Shape]) -> Captured:
    """Capture a module in evaluation mode with one example of its inputs.

    Args:
        module: its forward takes the inputs by position.
        inputs: an example; of an open dimension 2 or more.
        shapes: of each input; one name is one size wherever it stands.

    Raises:
        UserError: where the module is in training mode, an example is too small, the module cannot be captured, or it
            samples 5-D images.
    """
    if module.training:
        raise UserError(f"{type(module).__name__} is in training mode", "call module.eval() first")
    _check_sizes(inputs, shapes)
    sizes_open = any(name != BATCH for shape in shapes for name in shape if isinstance(name, str))
    problem: Exception | None = None
    for make in TRIES:
        try:
            with _opaque_affine_grid() if sizes_open else nullcontext():
                exported = torch.export.export(module, inputs, dynamic_shapes=_dynamic(shapes, make))
            return _checked(exported, shapes)
        except (torch._dynamo.exc.UserError, ValueError, RuntimeError) as error:
            problem = problem or error
    reason = " ".join(str(problem).split())[:300]
    raise UserError(
        f"torch.export cannot capture {type(module).__name__}: {reason}",
        "shapes must not decide what forward does; call F.affine_grid as such where sizes are to stay open",
    ) from problem


def _check_sizes(inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> None:
    if len(inputs) != len(shapes):
        raise UserError(f"{len(inputs)} inputs have {len(shapes)} shapes", "give every input its shape")
    for tensor, shape in zip(inputs, shapes, strict=True):
        if tensor.ndim != len(shape) or any(
            isinstance(wanted, int) and wanted != size for wanted, size in zip(shape, tensor.shape, strict=True)
        ):
            raise UserError(
                f"an example of shape {tuple(tensor.shape)} is not {'×'.join(map(str, shape))}",
                "give one of that shape",
            )
        if any(isinstance(name, str) and size < SMALLEST for name, size in zip(shape, tensor.shape, strict=True)):
            raise UserError(
                "an example batch of 1 would be taken for a constant", "give example inputs of batch 2 or more"
            )


def _dynamic(shapes: Sequence[Shape], make: type) -> tuple[dict[int, object] | None, ...]:
    """Which dimensions stay open, as ``torch.export`` takes it."""
    names = dict.fromkeys(name for shape in shapes for name in shape if isinstance(name, str))
    dims = {name: make(NAMES.get(name, name), **({} if name == BATCH else {"min": SMALLEST})) for name in names}
    return tuple({axis: dims[name] for axis, name in enumerate(shape) if isinstance(name, str)} for shape in shapes)


def _checked(exported: ExportedProgram, shapes: Sequence[Shape]) -> Captured:
    for node in exported.graph.nodes:
        if node.target is GRID_SAMPLE and node.args[0].meta["val"].ndim == 5:
            raise UserError("grid_sample of 5-D images cannot be exported", "few runtimes run it; use 4-D images")
    found = {node.name: node.meta["val"].shape for node in exported.graph.nodes if node.op == "placeholder"}
    kept = tuple(
        tuple(size if isinstance(size, int) else wanted for size, wanted in zip(found[name], shape, strict=True))
        for name, shape in zip(exported.graph_signature.user_inputs, shapes, strict=True)
    )
    return Captured(exported, kept)


def file_names(shapes: Sequence[Shape]) -> tuple[dict[int, str], ...]:
    """The names that open dimensions bear in a file, by axis, for each input."""
    return tuple(
        {axis: NAMES.get(name, name) for axis, name in enumerate(shape) if isinstance(name, str)} for shape in shapes
    )
