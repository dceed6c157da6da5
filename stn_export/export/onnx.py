"""Export a network to ONNX with a chosen lowering: ``export_onnx`` for a module, ``to_onnx`` for a captured program."""

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from onnx.shape_inference import infer_shapes
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.onnx import ONNXProgram

from stn_export.errors import UserError, one_line, require_choice
from stn_export.export.finish import name_ends, plain, require_distinct
from stn_export.export.lowerings import LOWERINGS, Lowering
from stn_export.export.marks import TRANSLATIONS, marked_program, site_notes, take_marks
from stn_export.export.registry import read_once
from stn_export.export.running import Found, called, frozen_by, own_structure, run_against
from stn_export.onnx_graph.model import without_weights
from stn_export.onnx_graph.points import SITES
from stn_export.program.capture import (
    AFFINE_GRIDS,
    GRID_SAMPLES,
    NAMES,
    VOLUMES,
    Captured,
    Shape,
    capture,
    file_names,
    location,
)
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import BATCH, Contract, call_of, distinct, output_names

BFLOAT = 22  # the first ONNX opset whose Conv, pooling and GridSample take bfloat16
SINCE_BFLOAT = re.compile(  # operators of PyTorch that become such
    r"aten\.(\w*conv\w*|\w*pool\w*|grid_sampler\w*|instance_norm|[sc]?elu|mish|softplus|hard\w+|a?sinh?|a?cosh?|a?tan|round)\b"
)
DEFORMED = 19  # the first ONNX opset with DeformConv
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
    verify: bool = True,
) -> onnx.ModelProto:
    """Export a module to an ONNX model that passes ``onnx.checker``; its metadata (``sites``) names the sampling sites.

    The model is run in ONNX Runtime on the example, one other batch and, with further dynamic sizes, smaller, odd and
    larger ones, and compared with copies of the module; sizes that the module itself does not take are left out.
    Sizes that the module cannot keep dynamic are static, as in the example, with a ``UserWarning`` that says so.

    Args:
        module: in evaluation mode.
        example_inputs: arguments to call it with, by position or by name: tensors, dictionaries and lists of them, and
            constants for the file: None, numbers, strings. The batch must be at least 2 if it is to be dynamic.
        example_kwargs: further keyword arguments of the call.
        lowering: how the two operators are written, a key of ``LOWERINGS``.
        opset: the ONNX operator set; by default the lowering's own, at least 20 for volumes and float64.
        dynamic_batch: whether the first dimension is dynamic, for every input as long as the first one.
        dynamic_size: whether height and width of every 4-D input are dynamic too.
        dynamic_shapes: dynamic sizes as for ``torch.export.export``, instead of the two above.
        input_names: instead of the names of ``forward``'s parameters; of tensors only.
        output_names: instead of the keys of what ``forward`` returns, else ``output``, or ``output0`` and so on.
        verify: whether to run the file, at the cost of one call of ONNX Runtime and of the module per batch and size.

    Raises:
        UserError: for an unknown lowering, an opset it cannot have, an example batch of 1, a module that
            ``torch.export`` cannot capture or ONNX cannot represent, or a file whose outputs differ from the module's.
    """
    _checked_opset(lowering, opset)
    if isinstance(example_inputs, Mapping):
        arguments: tuple[Any, ...] = ()
        example_kwargs = {**example_inputs, **(example_kwargs or {})}
    else:
        arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    options = Options(lowering, opset, dynamic_batch, dynamic_size, dynamic_shapes, input_names, output_names)
    made = _written(module, arguments, example_kwargs, options)
    if verify:
        made = _run(module, arguments, example_kwargs, options, made)
    kind = type(module).__name__
    for sentence in made.notes:
        warnings.warn(sentence if sentence.startswith(kind) else f"{kind}: {sentence}", stacklevel=2)
    return made.model


@dataclass(frozen=True)
class Options:
    """Options of ``export_onnx`` beside the module and its example."""

    lowering: str
    opset: int | None
    dynamic_batch: bool
    dynamic_size: bool
    dynamic_shapes: Any
    input_names: Sequence[str] | None
    output_names: Sequence[str] | None


@dataclass(frozen=True)
class Written:
    """A written model, the captured module, the example's tensors, and notes for the user."""

    model: onnx.ModelProto
    program: Program
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...]


def _written(module: nn.Module, arguments: tuple, keywords: Mapping[str, Any] | None, options: Options) -> Written:
    call = call_of(own_structure(module), arguments, keywords)
    dims = None if options.dynamic_shapes is None else call.dims(options.dynamic_shapes)
    shapes = (
        _shapes(call.tensors, options.dynamic_batch, options.dynamic_size)
        if dims is None
        else _open(call.tensors, dims)
    )
    captured = capture(call.module, call.tensors, shapes, dims)
    closed = _closed(call.names, shapes, captured)
    notes = tuple(f"{name} {size}: {captured.problem}".rstrip(": ") for name, size in closed)
    inputs = list(options.input_names or distinct(call.names))
    outputs = list(options.output_names or distinct(output_names(captured.exported), inputs))
    _require_names(captured.exported, inputs, outputs)
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes, inputs, outputs))
    model = to_onnx(marked_program(program), options.lowering, options.opset)
    return Written(model, program, call.tensors, notes)


def _require_names(exported: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Require one name for every input and output, and no name twice.

    Raises:
        UserError: if there are too many or too few, or two are the same.
    """
    signature = exported.graph_signature
    for side, names, nodes in (("inputs", inputs, signature.user_inputs), ("outputs", outputs, signature.user_outputs)):
        if len(names) != len(nodes):
            raise UserError(f"{len(names)} {side} are named, there are {len(nodes)}", f"name all {side}, in order")
    require_distinct(inputs, outputs)


def _run(
    module: nn.Module, arguments: tuple, keywords: Mapping[str, Any] | None, options: Options, made: Written
) -> Written:
    """Run the model and compare it with the module; if only the other batch differs, export again with a static batch.

    Raises:
        UserError: if its outputs for the example, or at other sizes, differ from the module's.
    """
    difference = run_against(module, (arguments, dict(keywords or {})), made.tensors, made.model, made.program)
    made = replace(made, notes=(*made.notes, *difference.notes))
    if not difference.reason:
        return made
    opened = any(size == BATCH for spec in made.program.contract.inputs for size in spec.shape)
    if difference.other and opened and options.dynamic_shapes is None:
        fixed = _run(module, arguments, keywords, replace(options, dynamic_batch=False),
                     _written(module, arguments, keywords, replace(options, dynamic_batch=False)))  # fmt: skip
        return replace(fixed, notes=(*fixed.notes, f"its batch is fixed: at another one {difference.reason}"))
    kind = type(module).__name__
    if difference.size:
        own = called(made.program, tuple(tuple(tensor.shape) for tensor in made.tensors))
        raise UserError(
            f"{kind} in ONNX answers as in PyTorch at {own}, but not at {difference.size}: {difference.reason}",
            _size_remedy(made.program, options),
        )
    raise UserError(
        f"{kind} in ONNX answers otherwise than in PyTorch: {difference.reason}", _remedy(difference, options)
    )


def _size_remedy(program: Program, options: Options) -> str:
    remedy = "leave dynamic_size away" if options.dynamic_shapes is None else "leave them out of dynamic_shapes"
    cause = frozen_by(program)
    return f"these sizes must be fixed: {remedy}" + (f"; {cause}" if cause else "; verify=False gives the file")


def _remedy(difference: Found, options: Options) -> str:
    if difference.other:
        return "leave less open with dynamic_shapes, or compute without what the example decides"
    return "PyTorch's exporter writes an operator of it wrongly: compute it otherwise; verify=False gives the file"


def _shapes(tensors: Sequence[Tensor], batch: bool, size: bool) -> list[Shape]:
    """Return every input's shape with its dynamic sizes.

    The batch is the first dimension of the first input that has one, and every first dimension of the same length.
    """
    count = next((len(tensor) for tensor in tensors if tensor.ndim), 1)
    return [
        tuple(
            BATCH if axis == 0 and batch and length == count
            else SIZES[axis] if size and tensor.ndim == 4 and axis in SIZES else length
            for axis, length in enumerate(tensor.shape)
        )
        for tensor in tensors
    ]  # fmt: skip


def _open(tensors: Sequence[Tensor], dims: Sequence[Mapping[int, Any]]) -> list[Shape]:
    """Return every input's shape with the names of sizes that ``dynamic_shapes`` makes dynamic; ``N`` is the batch."""
    ours = {name: short for short, name in NAMES.items()}
    shapes: list[Shape] = []
    for index, (tensor, open_axes) in enumerate(zip(tensors, dims, strict=True)):
        names = {
            axis: getattr(dim, "__name__", f"size{index}_{axis}" if axis else BATCH) for axis, dim in open_axes.items()
        }
        named = {axis: ours.get(name, name) for axis, name in names.items()}
        shapes.append(tuple(named.get(axis % tensor.ndim, size) for axis, size in enumerate(tensor.shape)))
    return shapes


def _closed(names: Sequence[str], shapes: Sequence[Shape], captured: Captured) -> Iterator[tuple[str, str]]:
    """Yield each size that was to be dynamic and is static or limited, and what became of it."""
    for name, shape, kept in zip(names, shapes, captured.shapes, strict=True):
        for declared, size in zip(shape, kept, strict=True):
            if isinstance(declared, str) and isinstance(size, int):
                yield f"{NAMES.get(declared, declared)} of {name}", f"is fixed at {size}"
    yield from ((NAMES.get(name, name), f"is at most {most}") for name, most in captured.limits.items())


def to_onnx(program: Program, lowering: str, opset: int | None = None) -> onnx.ModelProto:
    """Convert a program with marks (``marks.marked_program``) to ONNX, with its contract's names and dynamic sizes.

    Raises:
        UserError: for an unknown lowering, or an opset or dynamic sizes that it cannot have.
    """
    opset, rule = _checked_opset(lowering, opset, least_opset(program)), LOWERINGS[lowering]
    affine = any(node.target in AFFINE_GRIDS for node in program.exported.graph.nodes)
    if program.contract.open_sizes and affine and rule.affine_grid is None:
        raise UserError(
            f"lowering {lowering} cannot leave height and width open", "choose matmul, affinegrid or gather"
        )
    with _quietly(), _exporters_errors(program):
        exported = torch.onnx.export(
            program.exported,
            program.values(program.contract.random(sizes=program.sizes)),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=file_names([spec.shape for spec in program.contract.inputs]),
            custom_translation_table=rule.translations | TRANSLATIONS,
        )
        graph = _made(exported)
        marked = take_marks(graph.model)
        notes = rule.rewrite(graph.model) if rule.rewrite else {}
        plain(graph.model)
        name_ends(graph.model, *_names(program.contract))
        notes |= {"lowering": lowering} | site_notes(graph.model, marked)
        model = graph.model_proto
        strip_traces(model)
        onnx.helper.set_model_props(model, notes)
        onnx.checker.check_model(model)
        infer_shapes(without_weights(model), check_type=True, strict_mode=True)
    return model


def _made(exported: ONNXProgram | None) -> ONNXProgram:
    """Return the program that PyTorch's exporter returned.

    Raises:
        RuntimeError: if it returned nothing.
    """
    if exported is None:
        raise RuntimeError("torch.onnx.export gave no model")
    return exported


@contextmanager
def _exporters_errors(program: Program) -> Iterator[None]:
    """Turn errors of PyTorch's exporter, or of ONNX's checker, into one line.

    Raises:
        UserError: for any exception; one that already is a ``UserError`` passes unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # translations may raise anything
        reasons = list(_reasons(error))
        if refused := next((reason for reason in reasons if isinstance(reason, UserError)), None):
            raise UserError(refused.message, refused.hint) from error
        text = _plain_text(reasons[-1])
        if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)', overload='(\w+)'", text):
            operator = missing[1]
            raise UserError(
                f"ONNX has no translation of {operator}{_where(program, operator)}",
                "compute it otherwise, or leave it to what comes before or after the file",
            ) from error
        if untyped := re.search(r"op_type:(\w+).*unsupported type: tensor\((\w+)\)", text):
            raise UserError(
                f"ONNX has no {untyped[1]} of {untyped[2]} at this opset",
                "choose a later opset, or compute that part in float32",
            ) from error
        node = next(
            (match[1] for reason in reasons if (match := re.search(r"translating node %(\w+)", str(reason)))), ""
        )
        where = _where(program, node)
        raise UserError(f"PyTorch's exporter fails{where}: {text}", "compute that part otherwise") from error


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, the root cause last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _plain_text(error: BaseException) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))


def _where(program: Program, name: str) -> str:
    """Return `` at module (file:line)`` of the first node with this name or operator; empty if there is none."""
    name = name.rpartition(".")[2].strip("_")

    def is_it(node: Node) -> bool:
        operator = getattr(node.target, "__name__", "").split(".")[0].strip("_")
        return bool(name) and (node.name == name or operator == name)

    node = next(
        (
            candidate
            for candidate in program.exported.graph.nodes
            if candidate.op == "call_function" and is_it(candidate)
        ),
        None,
    )
    return f" at {location(node)}" if node is not None else ""


def export_default(program: Program, contract: Contract) -> onnx.ModelProto:
    """Export the module with ``torch.onnx.export`` and its default options: its own opset, one batch size.

    Only the contract's names are applied, at no cost in time. Sampling sites are matched by the order of the samplers.
    """
    with _quietly():
        exported = torch.onnx.export(
            program.module,
            contract.values(contract.random()),
            dynamo=True,
            verbose=False,
        )
    graph = _made(exported)
    name_ends(graph.model, *_names(contract))
    model = graph.model_proto
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
    logger = logging.getLogger("onnxscript")  # it reports what it did not fold
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), read_once():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # caused by the exporter itself
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
        lacks = {DEFORMED: "has no DeformConv", BFLOAT: "has not all of its operators in bfloat16"}.get(
            least, "samples no volumes and no float64"
        )
        raise UserError(f"opset {opset} {lacks}", f"choose an opset from {least}")
    if not lowest <= opset <= highest:
        raise UserError(
            f"lowering {lowering} cannot be written at opset {opset}", f"choose an opset from {lowest} to {highest}"
        )
    return opset


def least_opset(program: Program) -> int:
    """Return the lowest opset with the program's operators: ``VOLUMES`` for samplers of volumes or float64.

    ``BFLOAT`` for convolutions, pooling and samplers in bfloat16, ``DEFORMED`` for deformable convolutions; 0 if any
    opset will do.
    """
    nodes = program.exported.graph.nodes
    if any(_is_bfloat16(node) and SINCE_BFLOAT.match(str(node.target)) for node in nodes):
        return BFLOAT
    images = [node.args[0].meta["val"] for node in nodes if node.target in GRID_SAMPLES]
    if any(image.ndim == 5 or image.dtype == torch.float64 for image in images):
        return VOLUMES
    return DEFORMED if any(str(node.target).startswith("torchvision.deform_conv2d") for node in nodes) else 0


def _is_bfloat16(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's per-node notes, which contain file paths of this machine and outweigh the graph."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
