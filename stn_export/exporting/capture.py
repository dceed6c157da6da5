"""``torch.export`` of modules that sample: in 2-D only, and with an open height and width where they are asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor, nn

from stn_export.errors import UserError

Shapes = tuple[dict[int, object], ...]
SIZES = {2: "height", 3: "width"}


@torch.library.custom_op("stn_export::affine_grid", mutates_args=())
def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """``F.affine_grid`` as one opaque operator: PyTorch's own makes constants of height and width when captured."""
    return torch.ops.aten.affine_grid_generator.default(theta, size, align_corners)


@affine_grid.register_fake
def _(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return theta.new_empty(size[0], size[2], size[3], 2)


@contextmanager
def _opaque_affine_grid() -> Iterator[None]:
    def replacement(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
        return torch.ops.stn_export.affine_grid(theta, list(size), bool(align_corners))

    with mock.patch.object(torch.nn.functional, "affine_grid", replacement):
        yield


def dynamic_shapes(inputs: tuple[Tensor, ...], batch: bool, size: bool) -> Shapes:
    """Which dimensions stay open, as ``torch.export`` takes it; height and width from 2, for 1 has rules of its own.

    Raises:
        UserError: where the batch is to stay open and an example has fewer than 2.
    """
    if batch and any(tensor.ndim == 0 or len(tensor) < 2 for tensor in inputs):
        raise UserError("an example batch of 1 would be taken for a constant", "give example inputs of batch 2 or more")
    named = {0: torch.export.Dim("batch")} if batch else {}
    if size:
        named |= {axis: torch.export.Dim(name, min=2) for axis, name in SIZES.items()}
    return tuple({axis: dim for axis, dim in named.items() if axis == 0 or tensor.ndim == 4} for tensor in inputs)


def capture(
    module: nn.Module, inputs: tuple[Tensor, ...], *, dynamic_batch: bool = True, dynamic_size: bool = False
) -> torch.export.ExportedProgram:
    """Capture a module in evaluation mode.

    Raises:
        UserError: where the module cannot be captured, or samples 5-D images.
    """
    shapes = dynamic_shapes(inputs, dynamic_batch, dynamic_size)
    try:
        with _opaque_affine_grid() if dynamic_size else nullcontext():
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    except (torch._dynamo.exc.UserError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"torch.export cannot capture {type(module).__name__}: {reason}",
            "shapes must not decide what forward does; call F.affine_grid as such where sizes are to stay open",
        ) from error
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.grid_sampler.default and node.args[0].meta["val"].ndim == 5:
            raise UserError("grid_sample of 5-D images cannot be exported", "few runtimes run it; use 4-D images")
    return program
