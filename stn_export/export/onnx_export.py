"""A network to ONNX through a chosen lowering; ``export_onnx`` for any module, ``to_onnx`` for a captured one."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from onnx.shape_inference import infer_shapes
from torch import Tensor, nn

from stn_export.errors import UserError, require_choice
from stn_export.export.lowering import LOWERINGS, Lowering
from stn_export.export.marks import TRANSLATIONS, marked_program, site_notes, take_marks
from stn_export.graphs.graph import without_weights
from stn_export.graphs.points import SITES
from stn_export.program.capture import AFFINE_GRIDS, capture, file_names
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import BATCH, Contract

SIZES = {2: "H", 3: "W"}  # of N×C×H×W


def export_onnx(
    module: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    lowering: str = "matmul",
    opset: int | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """Export a module, checked by ``onnx.checker``; where it samples stands in the file's metadata (``sites``).

    Args:
        module: in evaluation mode.
        example_inputs: what to call it with; a batch of at least 2 where the batch is to be dynamic.
        lowering: how the two operators are written, a key of ``lowering.LOWERINGS``.
        opset: the ONNX operator set; by default the lowering's own.
        dynamic_batch: whether the first dimension of every input is left open, one and the same for all.
        dynamic_size: whether height and width of every 4-D input are left open too.
        input_names: instead of the names of ``forward``'s parameters.
        output_names: instead of the exporter's own.

    Raises:
        UserError: for an unknown lowering, an opset it cannot have, an example batch of 1, 5-D sampling, or a module
            that ``torch.export`` cannot capture.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    _checked_opset(lowering, opset)
    named = ({0: BATCH} if dynamic_batch else {}) | (SIZES if dynamic_size else {})
    shapes = [
        tuple(
            named.get(axis, size) if axis == 0 or tensor.ndim == 4 else size for axis, size in enumerate(tensor.shape)
        )
        for tensor in inputs
    ]
    captured = capture(module, inputs, shapes)
    if list(captured.shapes) != shapes:
        raise UserError(
            f"torch.export cannot capture {type(module).__name__} with open dimensions: {captured.problem}",
            "shapes must not decide what forward does, or give dynamic_batch=False",
        )
    contract = contract_of(captured.exported, captured.shapes, input_names, output_names)
    return to_onnx(marked_program(Program(captured.exported, contract)), lowering, opset)


def to_onnx(program: Program, lowering: str, opset: int | None = None) -> onnx.ModelProto:
    """A program with marks (``marks.marked_program``) as ONNX; inputs, outputs and open sizes named by its contract.

    Raises:
        UserError: for an unknown lowering, or an opset or open sizes that it cannot have.
    """
    opset, rule = _checked_opset(lowering, opset), LOWERINGS[lowering]
    affine = any(node.target in AFFINE_GRIDS for node in program.exported.graph.nodes)
    if program.contract.open_sizes and affine and rule.affine_grid is None:
        raise UserError(
            f"lowering {lowering} cannot leave height and width open", "choose matmul, affinegrid or gather"
        )
    with _without_warnings():
        exported = torch.onnx.export(
            program.exported,
            program.values(program.contract.random(sizes=program.sizes)),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            **_names(program.contract),
            dynamic_shapes=file_names([spec.shape for spec in program.contract.inputs]),
            custom_translation_table=rule.translations | TRANSLATIONS,
        )
    found = take_marks(exported.model)
    notes = rule.rewrite(exported.model) if rule.rewrite else {}
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
    with _without_warnings():
        exported = torch.onnx.export(
            program.module,
            contract.values(contract.random()),
            dynamo=True,
            verbose=False,
            **_names(contract),
        )
    model = exported.model_proto
    strip_traces(model)
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    if samplers and len(samplers) == len(program.sites):
        sites = [{"image": n.input[0], "grid": n.input[1], "warped": n.output[0]} for n in samplers]
        onnx.helper.set_model_props(model, {SITES: json.dumps(sites)})
    return model


def _names(contract: Contract) -> dict[str, list[str]]:
    return {
        "input_names": [spec.name for spec in contract.inputs],
        "output_names": [spec.name for spec in contract.outputs],
    }


@contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("onnxscript")  # says what it did not fold
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter's own making
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # likewise, torch 2.11
        warnings.filterwarnings("ignore", message=r"# The axis name: \w+ will not be used")  # two inputs share one
        try:
            yield
        finally:
            logger.setLevel(level)


def _checked_opset(lowering: str, opset: int | None) -> int:
    rule: Lowering = LOWERINGS[require_choice("lowering", lowering, list(LOWERINGS))]
    opset = opset or rule.default_opset
    if opset not in rule.opsets:
        span = f"{rule.opsets[0]} to {rule.opsets[-1]}"
        raise UserError(f"lowering {lowering} cannot be written at opset {opset}", f"choose an opset from {span}")
    return opset


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's per-node notes, which hold file paths of this machine and outweigh the graph."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
