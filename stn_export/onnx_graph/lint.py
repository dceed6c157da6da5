"""Lint an ONNX file for what makes it fail, slow down or give wrong results in some runtime: the table ``RULES``.

A rule looks at the file and, for some, at what runs of it in ONNX Runtime on the CPU showed. It reports ``Finding``s;
none of them is an error by itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto, helper

from stn_export.onnx_graph.inputs import Asked, declared_inputs, settled
from stn_export.onnx_graph.model import (
    CUBIC,
    HALVES,
    UNKNOWN,
    TensorInfo,
    attribute,
    flat,
    infer,
    inputs_of,
    opset_of,
    since_version,
    used_names,
    walk,
)
from stn_export.onnx_graph.placement import lacks_kernel
from stn_export.onnx_graph.records import Finding
from stn_export.onnx_graph.saturation import REMEDY, saturating_layers
from stn_export.onnx_graph.trial import ANOTHER_BATCH, ASKED, Step, Trial, here, observed, try_model

METADATA = ("contract", "classes")
OURS = {*METADATA, "program_sha256"}  # metadata keys that mark a file of a run; ``export_onnx`` writes none of them


Found = Iterator[tuple[str, str]]  # (node or tensor, detail)


class Subject:
    """A model to lint, and facts that several rules need, computed once.

    Args:
        model: any ONNX model. Where its external data is not loaded, nothing is run.
        external: initialisers that were outside the file before they were loaded.
        asked: shapes and arrays of its inputs that a user asks for.
        step: calls a function that runs the model.
    """

    def __init__(
        self, model: onnx.ModelProto, external: Sequence[str] = (), asked: Asked = ASKED, step: Step = here
    ) -> None:
        still = (tensor.name for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
        self.model = flat(model)
        self.loaded = not (unloaded := tuple(still))
        self.external = tuple(external) or unloaded
        self.asked, self.step = asked, step
        self.opset = opset_of(model)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}

    @cached_property
    def trial(self) -> Trial:
        """The outcome of running the model."""
        if not self.loaded:
            return Trial(settled(declared_inputs(self.model), self.asked), "its external data is not loaded")
        return try_model(self.model, self.asked, self.step)

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Types and shapes of its tensors at the sizes that it was tried at."""
        return observed(infer(self.model, self.trial.inputs.sizes), self.model, self.trial.runs)

    def nodes(self, *operators: str) -> list[NodeProto]:
        """Return the nodes of these operators, or all nodes, including those inside control flow."""
        return [node for node in walk(self.model.graph) if not operators or node.op_type in operators]

    def info(self, node: NodeProto, index: int) -> TensorInfo:
        """Return what is known of a node's input."""
        return self.infos.get(node.input[index], UNKNOWN) if index < len(node.input) else UNKNOWN

    def rank(self, node: NodeProto) -> int:
        """Return the rank of a node's first input; 0 where unknown."""
        return len(self.info(node, 0).shape or ())


def _nodes(*operators: str, since: int = 0, where: Callable[[Subject, NodeProto], str] | None = None) -> Callable:
    """Make a check that reports these operators from opset ``since`` on, where ``where`` returns a detail."""

    def check(subject: Subject) -> Found:
        for node in subject.nodes(*operators) if subject.opset >= since else ():
            detail = where(subject, node) if where else f"{node.op_type} at opset {subject.opset}"
            if detail:
                yield node.name or node.op_type, detail

    return check


def _interpolates(subject: Subject, node: NodeProto) -> str:
    mode = attribute(node, "mode", "linear")
    return "" if mode == "nearest" else f"mode {mode} at opset {subject.opset}"


def _half_grid(subject: Subject, node: NodeProto) -> str:
    dtype = subject.info(node, 1 if node.op_type == "GridSample" else 0).dtype
    return f"coordinates in {TensorProto.DataType.Name(dtype).lower()}" if dtype in HALVES else ""


def _odd_mode(subject: Subject, node: NodeProto) -> str:
    mode, padding = attribute(node, "mode", "linear"), attribute(node, "padding_mode", "zeros")
    if mode in CUBIC:
        return f"mode {mode}" + (", which ONNX Runtime does not do in 3-D" if subject.rank(node) == 5 else "")
    return "padding_mode reflection" if padding == "reflection" else ""


def _wide_average(subject: Subject, node: NodeProto) -> str:
    window = math.prod(attribute(node, "kernel_shape", ()))
    results = subject.infos.get(node.output[0], UNKNOWN).elements or 0
    if not attribute(node, "count_include_pad", 0) or window < WIDE or results > WIDE:
        return ""
    return f"{results or 'an unknown number of'} averages of {window} values"


def _frozen_batch(subject: Subject) -> Found:
    """Report inputs with a static batch: a first dimension that all outputs share, scalars aside."""
    shapes = [value.type.tensor_type.shape.dim for value in subject.model.graph.output]
    firsts = {dims[0].dim_value for dims in shapes if dims}
    for value in inputs_of(subject.model.graph):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and dims[0].HasField("dim_value") and firsts == {dims[0].dim_value}:
            yield value.name, f"its first dimension is {dims[0].dim_value}"


def _late_kernels(subject: Subject) -> Found:
    versions = {node.op_type: since_version(node, subject.opset) for node in subject.nodes()}
    late = {name: version for name, version in sorted(versions.items()) if version >= 22}
    if late:
        nodes = subject.nodes(*late)
        lacking = sorted({node.op_type for node in nodes if lacks_kernel(node, subject.opset, subject.infos)})
        kernels = f"lacks {', '.join(lacking)}" if lacking else "has all of them"
        changed = ", ".join(f"{name} changed in opset {version}" for name, version in late.items())
        yield "opset", f"{changed}; ONNX Runtime's newest table of CUDA kernels {kernels}"


def _missing_metadata(subject: Subject) -> Found:
    ours = OURS & set(subject.metadata)
    if missing := [key for key in METADATA if ours and key not in subject.metadata]:
        yield "metadata", f"lacks {', '.join(missing)}"


def _align_corners(subject: Subject) -> Found:
    aligned = {
        node.name: bool(attribute(node, "align_corners", 0)) for node in subject.nodes("GridSample", "AffineGrid")
    }
    if "align_corners" in subject.metadata:
        aligned["the metadata"] = subject.metadata["align_corners"].lower() in ("true", "1")
    if len(set(aligned.values())) > 1:
        yield ", ".join(name for name, value in aligned.items() if value), "align_corners here and not elsewhere"


def _dead_outputs(subject: Subject) -> Found:
    reached = {value.name for value in inputs_of(subject.model.graph)}
    for node in subject.model.graph.node:
        if node.op_type not in ("Shape", "Size") and (_reads(node) & reached):
            reached.update(node.output)
    outputs = [output.name for output in subject.model.graph.output]
    unreachable = [name for name in outputs if name not in reached]
    yield from ((name, "it does not depend on the data of any input") for name in unreachable)
    yield from ((name, "other inputs gave the same") for name in subject.trial.constant if name in reached)


def _reads(node: NodeProto) -> set[str]:
    bodies = (
        helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
    )
    return {*node.input, *(name for body in bodies for inner in walk(body) for name in inner.input)}


def _batches(subject: Subject) -> Found:
    if subject.trial.batch and not any(_frozen_batch(subject)):
        yield "a run", f"at batch {ANOTHER_BATCH}: {subject.trial.batch}"


def _not_loaded(subject: Subject) -> Found:
    if not subject.trial.loads:
        yield "the file", str(subject.trial.outputs)


def _external(subject: Subject) -> Found:
    if subject.external:
        yield subject.external[0], f"{len(subject.external)} initialisers lie in another file"


def _unused(subject: Subject) -> Found:
    used = used_names(subject.model.graph)
    for tensor in subject.model.graph.initializer:
        if tensor.name not in used:
            yield tensor.name, "an initialiser that nothing reads"


def _saturating(subject: Subject) -> Found:
    yield from ((layer.node, str(layer)) for layer in saturating_layers(subject.model))


@dataclass(frozen=True)
class Rule:
    """One lint rule; ``summary`` says what goes wrong, with the source."""

    id: str
    summary: str
    remedy: str
    check: Callable[[Subject], Found]


WIDE = 128  # values
OPSET_16 = "export at opset 16 to 19"
MATMUL = "export the grid as a MatMul (lowering matmul)"

RULES = (
    Rule(
        "STN001",
        "TensorRT silently samples with nearest (NVIDIA/TensorRT#4646)",
        OPSET_16,
        _nodes("GridSample", since=20, where=_interpolates),
    ),
    Rule(
        "STN002",
        "AffineGrid runs on the CPU only in ONNX Runtime, and TensorRT's parser lacks it (onnx-tensorrt, operators.md)",
        MATMUL,
        _nodes("AffineGrid"),
    ),
    Rule(
        "STN003",
        "coordinates in half precision are off by pixels (pytorch#89836)",
        "keep theta, grid and sampler in float32",
        _nodes("GridSample", "AffineGrid", where=_half_grid),
    ),
    Rule("STN004", "the batch is frozen", "export with a dynamic first dimension, from a batch of 2", _frozen_batch),
    Rule(
        "STN005",
        "DirectML and WebGPU have kernels for opset 16 to 19 only (onnxruntime#28264)",
        OPSET_16,
        _nodes("GridSample", since=20),
    ),
    Rule(
        "STN006",
        "ONNX Runtimes without CUDA kernels of opset 22 run these on the CPU (onnxruntime#26065)",
        "export at opset 21 or below",
        _late_kernels,
    ),
    Rule(
        "STN007",
        "TensorRT and ONNX Runtime have it, others differ or lack it: compare the outputs (onnxruntime#27639, #28302)",
        "sample with bilinear and pad with zeros or border",
        _nodes("GridSample", where=_odd_mode),
    ),
    Rule(
        "STN008",
        "few runtimes sample volumes; TensorRT wants 4-D (onnx-tensorrt, operators.md; onnxruntime#21382)",
        "sample slices in 2-D",
        _nodes("GridSample", where=lambda subject, node: "a 5-D input" if subject.rank(node) == 5 else ""),
    ),
    Rule(
        "STN009", "the metadata does not say how to feed the file", "write these keys when exporting", _missing_metadata
    ),
    Rule(
        "STN010",
        "an output does not depend on the input (deep-text-recognition-benchmark#76)",
        "export again and look for a branch that tracing froze",
        _dead_outputs,
    ),
    Rule("STN011", "the weights lie outside the file", "ship both files, or save them as one", _external),
    Rule("STN012", "dead weight", "remove it", _unused),
    Rule(
        "STN013",
        "ONNX Runtime on the CPU cannot run the file at this batch",
        "export with a dynamic batch from a batch of 2",
        _batches,
    ),
    Rule(
        "STN014",
        "conventions of align_corners differ, which shifts the image by up to half a pixel (pytorch#24929)",
        "state one align_corners for affine_grid, grid_sample and the metadata",
        _align_corners,
    ),
    Rule(
        "STN015",
        "saturates on x86 without VNNI, which adds two products of bytes in 16 bits: other numbers than elsewhere "
        "(ONNX Runtime's and OpenVINO's documentation of quantisation)",
        REMEDY,
        _saturating,
    ),
    Rule(
        "STN016",
        "DeformConv samples at offsets that it is given: no verification looks inside, its outputs are compared, and "
        "few runtimes have it (ONNX has it from opset 19)",
        "try every runtime that the file is meant for",
        _nodes("DeformConv"),
    ),
    Rule(
        "STN017",
        "ONNX Runtime's WebGPU 1.27 silently divides up to 128 averages of 128 and more values by 128 once more, where "
        "padding counts (docs/upstream.md)",
        "export with count_include_pad=False where nothing is padded, or as a GlobalAveragePool",
        _nodes("AveragePool", where=_wide_average),
    ),
    Rule(
        "STN018",
        "ONNX Runtime on the CPU of this machine does not load the file",
        "export it again; operators of another domain need their library, a newer opset a newer ONNX Runtime",
        _not_loaded,
    ),
)


def lint(model: onnx.ModelProto, external: Sequence[str] = ()) -> list[Finding]:
    """Return what ``RULES`` find in a model, in their order.

    Args:
        model: any ONNX model. Where its external data is not loaded, nothing is run.
        external: initialisers that were outside the file before they were loaded.

    Raises:
        UserError: where the graph's types contradict each other.
    """
    return findings(Subject(model, external))


def findings(subject: Subject) -> list[Finding]:
    """Lint a model that may have been examined already."""
    return [
        Finding(rule.id, where, detail, rule.summary, rule.remedy)
        for rule in RULES
        for where, detail in rule.check(subject)
    ]
