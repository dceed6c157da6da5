"""``export_onnx``: any module that calls ``F.affine_grid`` or ``F.grid_sample`` to ONNX, through a chosen lowering."""

import warnings
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from stn_export.errors import UserError, require_choice
from stn_export.export.lowering import LOWERINGS, Lowering
from stn_export.program.capture import capture, dynamic_shapes


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
    """Export a module, checked by ``onnx.checker``.

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
    rule = LOWERINGS[require_choice("lowering", lowering, list(LOWERINGS))]
    opset = _checked_opset(lowering, rule, opset)
    if dynamic_size and rule.affine_grid is None:
        raise UserError(
            f"lowering {lowering} cannot leave height and width open", "choose matmul, affinegrid or gather"
        )
    program = capture(module, inputs, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter's own making
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # likewise, torch 2.11
        warnings.filterwarnings("ignore", message=r"# The axis name: \w+ will not be used")  # two inputs share one
        exported = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes(inputs, dynamic_batch, dynamic_size),  # for the dimensions' names
            custom_translation_table=rule.translations,
        )
    notes = rule.rewrite(exported.model) if rule.rewrite else {}
    model = exported.model_proto
    strip_traces(model)
    onnx.helper.set_model_props(model, {"lowering": lowering} | notes)
    onnx.checker.check_model(model, full_check=True)
    return model


def export_default(
    module: nn.Module, images: Tensor, input_names: Sequence[str], output_names: Sequence[str]
) -> onnx.ModelProto:
    """What ``torch.onnx.export`` gives for a module when it is told nothing: an opset of its own, one batch size.

    The names are the only thing that it is told; they cost no time.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporter's own making
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")  # likewise, torch 2.11
        exported = torch.onnx.export(
            module, (images,), dynamo=True, verbose=False, input_names=input_names, output_names=output_names
        )
    model = exported.model_proto
    strip_traces(model)
    return model


def _checked_opset(lowering: str, rule: Lowering, opset: int | None) -> int:
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
