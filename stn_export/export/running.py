"""Run a model made by ``export_onnx`` on the example and on another batch; compare it with copies of the module."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from stn_export.errors import UserError, one_line
from stn_export.onnx_graph.placement import cpu_session
from stn_export.program.specs import BATCH, Contract, by
from stn_export.program.state import Batch, Copies, answer, told, trial

GROSS = 1e-4  # share of an output's largest value, far above rounding
ROUNDING = 1.2e-7  # relative rounding of an input; the outputs' response to it is no fault of a file
MAGNIFIED = 10.0  # multiple of that response which is allowed
SHADE = 0.75  # weight of an example when blended with the next one; factor of a darkened image
PICTURE = 2  # tensors with more dimensions are images
OTHER = 3  # examples of the other batch; 1 if the example has 3
LACKING = ("NOT_IMPLEMENTED", "NotImplemented", "INVALID_GRAPH", "is not a registered function/op", "unsupported")


@dataclass(frozen=True)
class Found:
    """The outcome of running a model: the reason if it is wrong, whether only at the ``other`` batch, and notes."""

    reason: str = ""
    other: bool = False
    notes: tuple[str, ...] = ()


def own_structure(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its parameters and buffers; the module itself if it cannot be copied."""
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    except Exception:  # the user's module may not be copyable
        return module


def run_against(
    module: nn.Module, first: Batch, tensors: Sequence[Tensor], model: onnx.ModelProto, contract: Contract
) -> Found:
    """Run a model on the example and on another batch, and compare each with the outputs of a copy of the module.

    Args:
        module: the module that was exported.
        first: the example, as arguments and keywords.
        tensors: those in it, in the contract's order.
        model: the exported model.
        contract: its inputs and outputs.

    Returns:
        An empty reason if both agree, or if they cannot be compared, which a note says.

    Raises:
        UserError: if the module's outputs depend on earlier calls.
    """
    copies = Copies(module)
    difference = None
    for second in _others(first, tensors, contract):
        try:
            difference = trial(copies, first, second.batch)
            break
        except UserError:  # it does not accept this batch size
            continue
    if difference is None:
        return Found(notes=("it could not be run on copies of the module: the file was not compared",))
    notes = [*told(module, difference.mutations), *([copies.note] if copies.note else [])]
    if not difference.steady:
        return Found(notes=(*notes, "it returns different outputs when it is called again: the file was not compared"))
    if any(spec.dtype == "bfloat16" for spec in (*contract.inputs, *contract.outputs)):
        return Found(notes=(*notes, "NumPy has no bfloat16: the file was not compared"))
    try:
        session = cpu_session(model, log_severity_level=4)
    except Exception as error:  # ONNX Runtime has no kernel, or rejects the file
        if any(word in str(error) for word in LACKING):
            return Found(notes=(*notes, f"ONNX Runtime cannot run the file, it was not compared: {one_line(error)}"))
        return Found(f"ONNX Runtime does not load it: {one_line(error)}", notes=tuple(notes))
    example = Tried(first, tuple(tensors))
    for tried, answers, other in ((example, difference.answers[0], False), (second, difference.answers[1], True)):
        if reason := _difference(session, copies, tried, answers, contract):
            return Found(reason, other, tuple(notes))
    return Found(notes=tuple(notes))


@dataclass(frozen=True)
class Tried:
    """A batch as arguments of the module, and its tensors as inputs of the model."""

    batch: Batch
    tensors: tuple[Tensor, ...]


def _others(first: Batch, tensors: Sequence[Tensor], contract: Contract) -> list[Tried]:
    """Return batches other than the example, another batch size first; inputs without a batch stay the same."""
    made = []
    for count in (OTHER, 1):
        values = tuple(_rows(tensor, spec.shape, count) for tensor, spec in zip(tensors, contract.inputs, strict=True))
        if any(a.shape != b.shape for a, b in zip(values, tensors, strict=True)):
            made.append(_with_tensors(first, tensors, values))
    most = max((len(tensor) for tensor in tensors if tensor.ndim), default=0)
    alike = [BATCH if tensor.ndim and len(tensor) == most else "" for tensor in tensors]
    return [*made, _with_tensors(first, tensors, tuple(map(_of_same_size, tensors, alike)))]


def _of_same_size(value: Tensor, batch: str) -> Tensor:
    """Return another tensor of the same size; a darker image if there is one example only."""
    if batch and len(value) > 1:
        return _rows(value, (BATCH,), len(value))
    return value.detach() * SHADE if value.is_floating_point() and value.ndim > PICTURE else value.detach()


def _rows(value: Tensor, shape: Sequence[int | str], count: int) -> Tensor:
    """Return a tensor of ``count`` examples, each between two given ones; unchanged if it has no dynamic batch."""
    value = value.detach()
    for axis, size in enumerate(shape):
        if size == BATCH:
            rows = torch.arange(count, device=value.device) + 1
            turned, next_to_it = (value.index_select(axis, (rows + step) % value.shape[axis]) for step in (0, 1))
            value = torch.lerp(turned, next_to_it, 1 - SHADE) if value.is_floating_point() else turned
    return value.contiguous()


def _with_tensors(first: Batch, tensors: Sequence[Tensor], values: tuple[Tensor, ...]) -> Tried:
    by_id = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
    return Tried(_pytree.tree_map(lambda leaf: by_id.get(id(leaf), leaf), first), values)


def _difference(
    session: onnxruntime.InferenceSession, copies: Copies, tried: Tried, expected: Sequence[Tensor], contract: Contract
) -> str:
    """Describe how a model's outputs differ from the module's; empty if they do not."""
    feeds = {
        spec.name: value.detach().cpu().contiguous().numpy()
        for spec, value in zip(contract.inputs, tried.tensors, strict=True)
    }
    try:
        actual = session.run(None, feeds)
    except Exception as error:  # ONNX Runtime may raise anything for a wrong graph
        return f"ONNX Runtime fails on it: {one_line(error)}"
    if len(actual) != len(expected):
        return f"it gives {len(actual)} outputs, the module {len(expected)}"
    moved: list[list[Tensor]] = []
    for index, (spec, ours, theirs) in enumerate(zip(contract.outputs, actual, expected, strict=True)):
        theirs_array = theirs.cpu().numpy()
        if tuple(ours.shape) != theirs_array.shape:
            return f"{spec.name} is {by(ours.shape)}, not {by(theirs_array.shape)}"
        worst, scale = _worst(ours, theirs_array)
        if worst <= GROSS * scale:
            continue
        moved = moved or [_moved(copies, tried.batch, seed) for seed in range(3)]
        allowed = MAGNIFIED * max(
            (_worst(arrays[index].cpu().numpy(), theirs_array)[0] for arrays in moved), default=0.0
        )
        if not worst <= allowed:
            return f"{spec.name} is {worst:.2g} off, where it is {scale:.2g} at most"
    return ""


def _worst(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Return the largest difference, infinite if only one of two elements is finite, and the largest finite value."""
    if not theirs.size:
        return 0.0, 0.0
    one, other = (array.astype(np.complex128 if np.iscomplexobj(array) else np.float64) for array in (ours, theirs))
    finite = np.isfinite(other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.where(finite & np.isfinite(one), np.abs(one - other), np.inf))
    return float(difference.max()), float(np.abs(other[finite]).max(initial=0.0))


def _moved(copies: Copies, batch: Batch, seed: int) -> list[Tensor]:
    """Return the outputs of a copy once every float input is off by a rounding."""
    random = torch.Generator().manual_seed(seed)

    def rounded(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        signs = torch.rand(value.shape, generator=random).sub_(0.5).sign_().to(value.device)
        step = max(ROUNDING, torch.finfo(value.dtype).eps) if value.dtype != torch.float64 else ROUNDING
        return (value.detach() * (1 + step * signs)).to(value.dtype)

    with copies.fresh() as module:
        return answer(module, _pytree.tree_map(rounded, batch))
