"""A network to ONNX through a chosen lowering; ``export_onnx`` for any module, ``to_onnx`` for a captured one."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx.shape_inference import infer_shapes
from torch import Tensor, nn

from stn_export.errors import UserError, require_choice
from stn_export.export.ends import name_ends, require_distinct
from stn_export.export.lowering import LOWERINGS, Lowering
from stn_export.export.marks import TRANSLATIONS, marked_program, site_notes, take_marks
from stn_export.export.plain import plain
from stn_export.export.registry import read_once
from stn_export.graphs.graph import without_weights
from stn_export.graphs.points import SITES
from stn_export.program.calls import call_of
from stn_export.program.capture import (
    AFFINE_GRIDS,
    GRID_SAMPLES,
    NAMES,
    VOLUMES,
    Captured,
    Shape,
    capture,
    file_names,
)
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import BATCH, Contract

SIZES = {2: "H", 3: "W"}  # of N×C×H×W


def export_onnx(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    lowering: str = "matmul",
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Export a module, checked by ``onnx.checker``; where it samples stands in the file's metadata (``sites``).

    What the module cannot keep open is fixed as it is in the example, with a ``UserWarning`` that says so.

    Args:
        module: in evaluation mode.
        example_inputs: what to call it with, by position or by name: tensors, dictionaries and lists of them, and what
            the file is to hold fixed: None, numbers, words. A batch of at least 2 where that is to be open.
        example_kwargs: what to call it with by name besides.
        lowering: how the two operators are written, a key of ``lowering.LOWERINGS``.
        opset: the ONNX operator set; by default the lowering's own, at least 20 for volumes and float64.
        dynamic_batch: whether the first dimension is left open, of every input that has as many as the first one.
        dynamic_size: whether height and width of every 4-D input are left open too.
        dynamic_shapes: what is open, as ``torch.export.export`` takes it, instead of the two above.
        input_names: instead of the names of ``forward``'s parameters; of tensors only.
        output_names: instead of the exporter's own.

    Raises:
        UserError: for an unknown lowering, an opset it cannot have, an example batch of 1, or a module that
            ``torch.export`` cannot capture.
    """
    _checked_opset(lowering, opset)
    if isinstance(example_inputs, Mapping):
        example_inputs, example_kwargs = (), {**example_inputs, **(example_kwargs or {})}
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    call = call_of(module, given, example_kwargs)
    dims = None if dynamic_shapes is None else call.dims(dynamic_shapes)
    shapes = _shapes(call.tensors, dynamic_batch, dynamic_size) if dims is None else _open(call.tensors, dims)
    captured = capture(call.module, call.tensors, shapes, dims)
    for name, size in _closed(call.names, shapes, captured):
        warnings.warn(f"{type(module).__name__}: {name} {size}: {captured.problem}".rstrip(": "), stacklevel=2)
    contract = contract_of(captured.exported, captured.shapes, input_names or call.names, output_names)
    return to_onnx(marked_program(Program(captured.exported, contract)), lowering, opset)


def _shapes(tensors: Sequence[Tensor], batch: bool, size: bool) -> list[Shape]:
    """Every input's shape with what is to be open; the first dimension of the first input that has one is the batch."""
    count = next((len(tensor) for tensor in tensors if tensor.ndim), 1)
    return [
        tuple(
            BATCH if axis == 0 and batch and each == count
            else SIZES[axis] if size and tensor.ndim == 4 and axis in SIZES else each
            for axis, each in enumerate(tensor.shape)
        )
        for tensor in tensors
    ]  # fmt: skip


def _open(tensors: Sequence[Tensor], dims: Sequence[Mapping[int, Any]]) -> list[Shape]:
    """Every input's shape with the names of what PyTorch's ``dynamic_shapes`` leave open; ``N`` is the batch."""
    ours = {name: short for short, name in NAMES.items()}
    shapes = []
    for index, (tensor, open_axes) in enumerate(zip(tensors, dims, strict=True)):
        names = {
            axis: getattr(dim, "__name__", f"size{index}_{axis}" if axis else BATCH) for axis, dim in open_axes.items()
        }
        named = {axis: ours.get(name, name) for axis, name in names.items()}
        shapes.append(tuple(named.get(axis % tensor.ndim, size) for axis, size in enumerate(tensor.shape)))
    return shapes


def _closed(names: Sequence[str], shapes: Sequence[Shape], captured: Captured) -> Iterator[tuple[str, str]]:
    """What was to be open and is not, or not wholly: which, and how far."""
    for name, shape, kept in zip(names, shapes, captured.shapes, strict=True):
        for wanted, size in zip(shape, kept, strict=True):
            if isinstance(wanted, str) and isinstance(size, int):
                yield f"{NAMES.get(wanted, wanted)} of {name}", f"is fixed at {size}"
    yield from ((NAMES.get(name, name), f"is at most {most}") for name, most in captured.limits.items())


def to_onnx(program: Program, lowering: str, opset: int | None = None) -> onnx.ModelProto:
    """A program with marks (``marks.marked_program``) as ONNX; inputs, outputs and open sizes named by its contract.

    Raises:
        UserError: for an unknown lowering, or an opset or open sizes that it cannot have.
    """
    opset, rule = _checked_opset(lowering, opset, least_opset(program)), LOWERINGS[lowering]
    affine = any(node.target in AFFINE_GRIDS for node in program.exported.graph.nodes)
    if program.contract.open_sizes and affine and rule.affine_grid is None:
        raise UserError(
            f"lowering {lowering} cannot leave height and width open", "choose matmul, affinegrid or gather"
        )
    with _quietly():
        exported = torch.onnx.export(
            program.exported,
            program.values(program.contract.random(sizes=program.sizes)),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=file_names([spec.shape for spec in program.contract.inputs]),
            custom_translation_table=rule.translations | TRANSLATIONS,
        )
    found = take_marks(exported.model)
    notes = rule.rewrite(exported.model) if rule.rewrite else {}
    plain(exported.model)
    name_ends(exported.model, *_names(program.contract))
    notes |= {"lowering": lowering} | site_notes(exported.model, found)
    model = exported.model_proto
    strip_traces(model)
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model)
    infer_shapes(without_weights(model), check_type=True, strict_mode=True)
    return model


def export_default(program: Program, contract: Contract) -> onnx.ModelProto:
    """What ``torch.onnx.export`` gives for the module when it is told nothing: an opset of its own, one batch size.

    The contract's names are the only thing that it is told; they cost no time. The sites are found by the order of the
    samplers.
    """
    with _quietly():
        exported = torch.onnx.export(
            program.module,
            contract.values(contract.random()),
            dynamo=True,
            verbose=False,
        )
    name_ends(exported.model, *_names(contract))
    model = exported.model_proto
    strip_traces(model)
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    if samplers and len(samplers) == len(program.sites):
        sites = [{"image": n.input[0], "grid": n.input[1], "warped": n.output[0]} for n in samplers]
        onnx.helper.set_model_props(model, {SITES: json.dumps(sites)})
    return model


def _names(contract: Contract) -> tuple[list[str], list[str]]:
    return [spec.name for spec in contract.inputs], [spec.name for spec in contract.outputs]


@contextmanager
def _quietly() -> Iterator[None]:
    logger = logging.getLogger("onnxscript")  # says what it did not fold
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), read_once():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter's own making
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # likewise, torch 2.11
        warnings.filterwarnings("ignore", message=r"# The axis name: \w+ will not be used")  # two inputs share one
        try:
            yield
        finally:
            logger.setLevel(level)


def _checked_opset(lowering: str, opset: int | None, least: int = 0) -> int:
    rule: Lowering = LOWERINGS[require_choice("lowering", lowering, list(LOWERINGS))]
    lowest, highest = max(rule.opsets[0], least), max(rule.opsets[-1], least)
    opset = opset or max(rule.default_opset, least)
    if least and opset < least:
        raise UserError(f"opset {opset} samples no volumes and no float64", f"choose an opset from {least}")
    if not lowest <= opset <= highest:
        raise UserError(
            f"lowering {lowering} cannot be written at opset {opset}", f"choose an opset from {lowest} to {highest}"
        )
    return opset


def least_opset(program: Program) -> int:
    """The first opset whose operators sample what the program does: images of float32 with any, else ``VOLUMES``."""
    images = [node.args[0].meta["val"] for node in program.exported.graph.nodes if node.target in GRID_SAMPLES]
    return VOLUMES if any(image.ndim == 5 or image.dtype == torch.float64 for image in images) else 0


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's per-node notes, which hold file paths of this machine and outweigh the graph."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
