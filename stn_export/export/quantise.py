"""Static int8 quantisation of an ONNX model by ONNX Runtime, calibrated on examples; what samples stays float32."""

import logging
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization

from stn_export.errors import UserError
from stn_export.graphs.graph import FLOATS
from stn_export.graphs.points import part_values, steps_of
from stn_export.graphs.saturation import REMEDY, saturates, saturating_layers
from stn_export.program.parts import parts_of
from stn_export.program.specs import Arrays

QUANTISED = ("Conv", "Gemm", "MatMul")
EXAMPLES, CALLS = 64, 8  # examples a call, and calls


@dataclass(frozen=True)
class Calibration:
    """Examples that int8 ranges are seen on and int8 is judged on.

    Attributes:
        batches: the first ``CALLS`` ones.
        scored: the output that has a number for each class; empty where there is none, or no labels.
        labels: of all examples of the batches where an output is scored.
    """

    batches: tuple[Arrays, ...]
    scored: str = ""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class _Reader(quantization.CalibrationDataReader):
    """Hand out batches once."""

    def __init__(self, batches: Sequence[Arrays]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Arrays | None:
        return next(self.batches, None)


def quantise(model: onnx.ModelProto, batches: Sequence[Arrays], floats: Sequence[str] = ()) -> onnx.ModelProto:
    """Quantise weights per channel to 7 bits of int8 and activations to uint8 (QDQ), with the batches' ranges.

    Seven bits, because products of more saturate on x86 without VNNI. What precision hangs on stays in float32, see
    ``sensitive_nodes``, and so do the nodes ``floats``.

    Raises:
        UserError: where nothing else is left, or the file would saturate all the same.
    """
    kept = {*sensitive_nodes(model), *floats}
    layers = [name for name in quantisable(model) if name not in kept]
    if not layers:
        raise UserError("no layer of it may compute in int8", "use fp32")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises its own preprocessing, which the exporter has done
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
    if found := saturating_layers(result):
        raise UserError(f"{saturates(found)}: not written", REMEDY)
    return result


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that int8 knows."""
    return [node.name for node in model.graph.node if node.op_type in QUANTISED]


def _from_zero(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, list[dict[str, np.float32]]]:
    """Ranges that start at zero, for the outputs of layers that reach nothing but ReLUs.

    What is below zero is cut off there anyhow, and half of all 256 steps would go to it.
    """
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)
    given = {each.name for each in model.graph.output}

    def cut_off(value: str) -> bool:
        after = consumers[value]
        passed_on = (
            node.op_type == "Relu" or (node.op_type == "MaxPool" and cut_off(node.output[0])) for node in after
        )
        return bool(after) and value not in given and all(passed_on)

    outputs = (node.output[0] for node in model.graph.node if node.name in layers)
    return {name: [{"rmin": np.float32(0)}] for name in outputs if cut_off(name)}


def sensitive_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of all nodes of grids and samplers, and of the last layers before each theta and floating output."""
    outputs, sites = model.graph.output, part_values(model)
    parts = parts_of(steps_of(model), sites, [each.name for each in outputs])
    ends = [site.theta or site.grid for site in sites]
    ends += [each.name for each in outputs if each.type.tensor_type.elem_type in FLOATS]
    last = {name for end in ends for name in _last_layers(model, end)}
    return [node.name for node in model.graph.node if parts[node.name] in ("grid", "sampler") or node.name in last]


def _last_layers(model: onnx.ModelProto, value: str) -> set[str]:
    """The nearest layers that a value comes from, on every way to it, and products of computed values on the way."""
    producers = {output: node for node in model.graph.node for output in node.output}
    waiting, seen, found = [value], set(), set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type in QUANTISED:
            found.add(node.name)
        if node.op_type not in QUANTISED or all(name in producers for name in node.input):
            waiting += node.input
    return found
