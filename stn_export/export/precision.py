"""Change a network's precision or feed it raw images; quantise to static int8, judged on the calibration examples."""

import logging
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.numpy_helper import to_array
from onnxruntime import quantization
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from stn_export.errors import UserError
from stn_export.native.writer import FloatLayer, Int8Layer
from stn_export.onnx_graph.model import FLOATS, as_array
from stn_export.onnx_graph.placement import cpu_session
from stn_export.onnx_graph.points import part_values, steps_of
from stn_export.onnx_graph.saturation import REMEDY, saturates, saturating_layers
from stn_export.program.passes import sharing_copy
from stn_export.program.program import Program
from stn_export.program.sites import parts_of
from stn_export.program.specs import Arrays, Contract, Pixels, TensorSpec
from stn_export.results.tolerances import TOLERANCES, Tolerance, beyond
from stn_export.run.records import finite

# Static int8 quantisation of an ONNX model by ONNX Runtime; grids and samplers stay in float32.


QUANTISED = ("Conv", "Gemm", "MatMul")
EXAMPLES, CALLS = 64, 8  # examples per call, and calls


@dataclass(frozen=True)
class Calibration:
    """Examples on which the ranges of int8 are measured and its cost is judged.

    Attributes:
        batches: the first ``CALLS`` batches.
        scored: the output with one score per class; empty if there is none, or no labels.
        labels: of all examples of the batches, if an output is scored.
    """

    batches: tuple[Arrays, ...]
    scored: str = ""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class _Reader(quantization.CalibrationDataReader):
    """Iterate over the batches once, as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[Arrays]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Arrays | None:
        """Return the next batch; None after the last."""
        return next(self.batches, None)


def quantise(model: onnx.ModelProto, batches: Sequence[Arrays], floats: Sequence[str] = ()) -> onnx.ModelProto:
    """Quantise weights per channel to 7 bits of int8 and activations to uint8 (QDQ), with the batches' ranges.

    Seven bits, because products of more saturate on x86 without VNNI. Nodes on which precision depends (see
    ``sensitive_nodes``) and the nodes in ``floats`` stay in float32.

    Raises:
        UserError: if no layer is left to quantise, or the quantised model would saturate all the same.
    """
    kept = {*sensitive_nodes(model), *floats}
    layers = [name for name in quantisable(model) if name not in kept]
    if not layers:
        raise UserError("the network has no layer that can be quantised to int8", "use fp32")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it recommends preprocessing that the exporter has done
        try:
            quantization.quantize_static(
                source,
                target,
                _Reader(batches),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=sorted(kept),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"TensorQuantOverrides": _from_zero(model, layers)},
            )
        finally:
            logging.getLogger().setLevel(level)
        result = onnx.load(target)
    if saturated := saturating_layers(result):
        raise UserError(f"{saturates(saturated)}: not written", REMEDY)
    return result


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that int8 supports."""
    return [node.name for node in model.graph.node if node.op_type in QUANTISED]


def _from_zero(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, list[dict[str, np.float32]]]:
    """Return ranges that start at zero, for the outputs of layers that reach nothing but ReLUs.

    The ReLUs cut off negative values anyway, which would otherwise take up half of the 256 steps.
    """
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
    names = {output.name for output in model.graph.output}

    def cut_off(value: str) -> bool:
        after = consumers[value]
        passed_on = (
            node.op_type == "Relu" or (node.op_type == "MaxPool" and cut_off(node.output[0])) for node in after
        )
        return bool(after) and value not in names and all(passed_on)

    outputs = (node.output[0] for node in model.graph.node if node.name in layers)
    return {name: [{"rmin": np.float32(0)}] for name in outputs if cut_off(name)}


def sensitive_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of all nodes of grids and samplers, and of the last layers before thetas and float outputs."""
    outputs, sites = model.graph.output, part_values(model)
    parts = parts_of(steps_of(model), sites, [output.name for output in outputs])
    ends = [site.theta or site.grid for site in sites]
    ends += [output.name for output in outputs if output.type.tensor_type.elem_type in FLOATS]
    last = {name for end in ends for name in _last_layers(model, end)}
    return [node.name for node in model.graph.node if parts[node.name] in ("grid", "sampler") or node.name in last]


def _last_layers(model: onnx.ModelProto, value: str) -> set[str]:
    """Return the nearest layers on every path to a value, and products of two computed values on the way."""
    producers = {output: node for node in model.graph.node for output in node.output}
    waiting, seen, reached = [value], set(), set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in QUANTISED:
            reached.add(node.name)
        if node.op_type not in QUANTISED or all(name in producers for name in node.input):
            waiting += node.input
    return reached


HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LINEAR = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm"}
CONVOLUTIONS = {"convolution", *(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3))}
FOLLOWING = {  # operators that compute in half precision if all their inputs do
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu", "silu_", "mish", "prelu", "tanh"),
    *("sigmoid", "hardtanh", "hardtanh_", "hardsigmoid", "hardswish", "hardswish_", "clamp", "batch_norm"),
    *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "contiguous", "cat", "add", "add_"),
}


def at_precision(program: Program, precision: str) -> GraphModule:
    """Return a copy of the network whose convolutions and linear layers of part ``rest`` compute in ``precision``.

    Raises:
        UserError: if it has no such layer.
    """
    dtype = HALVES.get(precision)
    if dtype is None:
        return program.module
    module, parts = sharing_copy(program.module), program.parts()
    halved: set[Node] = set()
    for node in module.graph.nodes:
        if _computes_in_half(node, parts.get(node.name), halved):
            halved.add(node)
    if not halved:
        raise UserError(f"no layer of it may compute in {precision}", "use fp32")
    _halve_weights(module, halved, dtype)
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(module.graph.nodes):
        for source in node.all_input_nodes:
            if _is_float32(source) and (node in halved) != (source in halved):
                dtype_wanted = source, dtype if node in halved else torch.float32
                if dtype_wanted not in casts:
                    casts[dtype_wanted] = _cast(node, *dtype_wanted)
                node.replace_input_with(source, casts[dtype_wanted])
    module.recompile()
    return module


def _computes_in_half(node: Node, part: str | None, halved: set[Node]) -> bool:
    if part not in ("localisation", "rest") or not _is_float32(node):
        return False
    operator = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    computed = [source for source in node.all_input_nodes if source.op != "get_attr" and _is_float32(source)]
    follows = operator in FOLLOWING and bool(computed) and halved.issuperset(computed)
    return operator in CONVOLUTIONS or (operator in LINEAR and part == "rest") or follows


def _is_float32(node: Node) -> bool:
    """Return whether a node's result is one float32 tensor in the captured network."""
    value = _held(node) if node.op == "get_attr" else node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _held(node: Node) -> Tensor | None:
    """Return the tensor that a ``get_attr`` node reads; None if it reads something else."""
    value = attrgetter(str(node.target))(node.graph.owning_module)
    return value if isinstance(value, Tensor) else None


def _halve_weights(module: GraphModule, halved: set[Node], dtype: torch.dtype) -> None:
    """Convert weights that only nodes in ``halved`` read to ``dtype``, and add them to ``halved``."""
    weights = [node for node in module.graph.find_nodes(op="get_attr") if _is_float32(node)]
    shared = {node.target for node in weights if not halved.issuperset(node.users)}
    for node in weights:
        value, (owner, _, name) = _held(node), str(node.target).rpartition(".")
        if value is not None and node.target not in shared:
            half = value.detach().to(dtype)
            half = nn.Parameter(half, requires_grad=False) if isinstance(value, nn.Parameter) else half
            setattr(module.get_submodule(owner), name, half)
            halved.add(node)


def _cast(user: Node, source: Node, dtype: torch.dtype) -> Node:
    with user.graph.inserting_before(user):
        cast = user.graph.call_function(torch.ops.aten.to.dtype, (source, dtype))
    cast.meta = {"val": source.meta.get("val")}  # only its shape is used
    return cast


class FromBytes(nn.Module):
    """Convert raw uint8 images, NCHW or NHWC, to normalised floats."""

    scale: Tensor
    shift: Tensor

    def __init__(self, pixels: Pixels, layout: str) -> None:
        super().__init__()
        self.layout = layout
        mean, std = pixels.tensors()
        self.register_buffer("scale", 255 * std)
        self.register_buffer("shift", mean / std)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the images normalised, N×C×H×W."""
        pictures = pictures.permute(0, 3, 1, 2) if self.layout == "NHWC" else pictures
        return pictures.float() / self.scale - self.shift


def from_bytes(module: GraphModule, contract: Contract, layout: str) -> GraphModule:
    """Return a copy that takes raw images, ``NCHW`` or ``NHWC``, at every input whose contract has a normalisation."""
    module = sharing_copy(module)
    for spec, node in zip(contract.inputs, module.graph.find_nodes(op="placeholder"), strict=True):
        if spec.pixels is not None:
            name = f"from_bytes_{node.name}"
            module.add_submodule(name, FromBytes(spec.pixels, layout))
            with module.graph.inserting_after(node):
                normalised = module.graph.call_module(name, (node,))
            normalised.meta = dict(node.meta)
            node.replace_all_uses_with(normalised, delete_user_cb=lambda user, new=normalised: user is not new)
    module.recompile()
    return module


def raw(contract: Contract, layout: str) -> Contract:
    """Return the contract of the copy that ``from_bytes`` makes."""
    return replace(contract, inputs=tuple(_raw(spec, layout) for spec in contract.inputs))


def _raw(spec: TensorSpec, layout: str) -> TensorSpec:
    if spec.pixels is None:
        return spec
    batch, channels, *sides = spec.shape
    shape = (batch, *sides, channels) if layout == "NHWC" else spec.shape
    return replace(spec, dtype="uint8", shape=shape, layout=layout, pixels=None)


# Search for the layers that int8 allows, judged on the calibration examples.


RETURNS = 4  # how many layers may go back to float32


@dataclass(frozen=True)
class Cost:
    """The cost of int8 against float32 on the calibration examples.

    Attributes:
        examples: how many have labels.
        agreement: the share of them with the same predicted class as in float32; NaN without labels.
        accuracy_loss: the fall in accuracy, a share in [0, 1]; NaN without labels.
        wrong: for each output of integers, how many differ and of how many.
        rms: for each other output, the root mean squared error divided by the root mean square.
    """

    examples: int
    agreement: float
    accuracy_loss: float
    wrong: dict[str, tuple[int, int]]
    rms: dict[str, float]

    def shortfall(self, tolerance: Tolerance) -> str:
        """Describe the first bound that is exceeded; an empty string if none is."""
        if beyond(self.examples * self.accuracy_loss, tolerance.accuracy_loss, self.examples):
            return f"loses {100 * self.accuracy_loss:.1f} points, more than {100 * tolerance.accuracy_loss:g}"
        if beyond(self.examples * (1 - self.agreement), 1 - tolerance.agreement, self.examples):
            return f"agrees with float32 on {self.agreement:.1%} of the examples, less than {tolerance.agreement:.0%}"
        for name, (wrong, count) in self.wrong.items():
            if beyond(wrong, 1 - tolerance.agreement, count):
                return f"gets {wrong} of {count} {name} wrong, more than {1 - tolerance.agreement:.0%}"
        for name, error in self.rms.items():
            if not error <= tolerance.rms:
                return f"is {error:.0%} off at {name} in root mean square, more than {tolerance.rms:.0%}"
        return ""


@dataclass(frozen=True)
class Quantised:
    """An int8 model, the layers returned to float32 for their cost, those that were never quantised, and the cost."""

    model: onnx.ModelProto
    returned: tuple[str, ...]
    kept: tuple[str, ...]
    cost: Cost

    def as_dict(self) -> dict:
        """Convert the result to JSON-ready values, without the model."""
        layers = {"returned_to_float32": list(self.returned), "kept_in_float32": list(self.kept)}
        return layers | {"calibration": finite(asdict(self.cost))}


def to_int8(model: onnx.ModelProto, calibration: Calibration, floats: Sequence[str] = ()) -> Quantised:
    """Quantise as many layers as the bounds of int8 allow on the calibration examples, and none in ``floats``.

    If the fully quantised model exceeds the bounds, up to ``RETURNS`` layers return to float32, the most sensitive
    first.

    Raises:
        UserError: if nothing can be quantised, or the cost is still too high.
    """
    if not calibration.batches:
        raise UserError(
            "no example that int8 is calibrated on has the sizes that it takes", "bring others, or use fp32"
        )
    kept = {*sensitive_nodes(model), *floats}
    layers = [name for name in quantisable(model) if name not in kept]
    expected = outputs(model, calibration.batches)
    ranked: list[str] = []
    shortfalls: list[str] = []
    for returns in range(min(RETURNS, max(0, len(layers) - 1)) + 1):
        ranked = by_sensitivity(model, layers, calibration, floats) if returns == 1 else ranked
        candidate = quantise(model, calibration.batches, [*floats, *ranked[:returns]])
        candidate_cost = cost(expected, outputs(candidate, calibration.batches), calibration)
        shortfalls.append(candidate_cost.shortfall(TOLERANCES["int8"]))
        if not shortfalls[-1]:
            never = tuple(name for name in quantisable(model) if name in kept)
            return Quantised(candidate, tuple(ranked[:returns]), never, candidate_cost)
    still = f"; with {', '.join(ranked[:returns])} in float32 it {shortfalls[-1]}" if returns else ""
    raise UserError(f"{shortfalls[0]}{still}: not written", "use fp32")


def by_sensitivity(
    model: onnx.ModelProto, layers: Sequence[str], calibration: Calibration, floats: Sequence[str] = ()
) -> list[str]:
    """Rank layers by the error over the first batch if only that layer is in int8, the largest first."""
    batches = calibration.batches[:1]
    expected, errors = outputs(model, batches), {}
    for layer in layers:
        others = [*floats, *(name for name in layers if name != layer)]
        alone = outputs(quantise(model, batches, others), batches)
        errors[layer] = sum(_relative(alone[name], expected[name]) for name in expected)
    return sorted(layers, key=lambda layer: -errors[layer])


def cost(expected: Arrays, actual: Arrays, calibration: Calibration) -> Cost:
    """Compare all outputs of an int8 model with those of its float32 model."""
    rest = [name for name in expected if name != calibration.scored]
    whole = [name for name in rest if expected[name].dtype.kind != "f"]
    labels, agreement, loss = calibration.labels, math.nan, math.nan
    if calibration.scored:
        scores = (values[calibration.scored].reshape(len(labels), -1) for values in (expected, actual))
        before, after = (rows.argmax(1) for rows in scores)
        agreement = float((before == after).mean())
        loss = float((before == labels).mean() - (after == labels).mean())
    return Cost(
        examples=len(labels),
        agreement=agreement,
        accuracy_loss=loss,
        wrong={name: (int((actual[name] != expected[name]).sum()), expected[name].size) for name in whole},
        rms={name: _relative(actual[name], expected[name]) for name in rest if name not in whole},
    )


def outputs(model: onnx.ModelProto, batches: Sequence[Arrays]) -> Arrays:
    """Run a model in ONNX Runtime on the CPU with one thread; return outputs by name, the batches concatenated."""
    session = cpu_session(model, intra_op_num_threads=1)
    names, parts = [output.name for output in session.get_outputs()], defaultdict(list)
    for batch in batches:
        for name, value in zip(names, session.run(names, batch), strict=True):
            parts[name].append(np.atleast_1d(as_array(value)))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the root mean squared error divided by the root mean square."""
    error = actual.astype(np.float64) - expected
    return float(np.sqrt(np.square(error).sum() / max(np.square(expected.astype(np.float64)).sum(), 1e-300)))


# What the C generator needs to know of an int8 model.


def floats_of_c(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers that C computes in float32 in any case.

    Depthwise convolutions would take as long in int8; matrix products other than linear layers are not written in it.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in QUANTISED]
    return [node.name for node in layers if not _in_c(node, shapes.get(node.input[1], ()))]


def _in_c(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    if node.op_type == "Conv":
        return len(shape) == 4 and shape[1] > 1
    numbers = {attribute.name: attribute.f or attribute.i for attribute in node.attribute}
    plain = numbers.get("transB") and not numbers.get("transA")
    scaled = any(numbers.get(name, 1) != 1 for name in ("alpha", "beta"))
    return node.op_type == "Gemm" and len(shape) == 2 and bool(plain) and not scaled


def int8_layers(model: onnx.ModelProto) -> list[Int8Layer | FloatLayer]:
    """Read the convolutions and linear layers of a QDQ model, in its order."""
    values = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    read = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}

    def constants(node: onnx.NodeProto) -> list[np.ndarray]:
        return [values[name] for name in node.input if name in values]

    def layer(node: onnx.NodeProto) -> Int8Layer | FloatLayer:
        if node.input[1] not in made:
            return FloatLayer(node.name, torch.tensor(values.get(node.input[1], np.empty(0))))
        weight, scales, _ = constants(made[node.input[1]])
        if node.input[0] not in made or node.output[0] not in read:  # it shares its weights with a quantised one
            return FloatLayer(node.name, torch.tensor(weight * scales.reshape(-1, *[1] * (weight.ndim - 1))))
        x, y = constants(made[node.input[0]]), constants(read[node.output[0]])
        steps, bias = x[0] * scales.astype(np.float64), np.zeros(len(weight))
        if len(node.input) > 2:
            whole, factors, _ = constants(made[node.input[2]])
            bias = np.rint(whole * factors.astype(np.float64) / steps)
        tensors = torch.tensor(weight), torch.tensor(scales), torch.tensor(bias.astype(np.int64))
        return Int8Layer(node.name, *tensors, (float(x[0]), int(x[1])), (float(y[0]), int(y[1])))

    return [layer(node) for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
