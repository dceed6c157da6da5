"""Static int8 quantisation of an ONNX model by ONNX Runtime, calibrated on examples; what samples stays float32."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import onnx
from onnxruntime import quantization

from stn_export.errors import UserError
from stn_export.graphs.graph import FLOATS
from stn_export.graphs.points import part_values, steps_of
from stn_export.program.parts import parts_of
from stn_export.program.specs import Arrays

QUANTISED = ("Conv", "Gemm", "MatMul")
EXAMPLES, CALLS = 64, 8  # examples a call, and calls


class _Reader(quantization.CalibrationDataReader):
    """The first batches, once."""

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self.batches: Iterator[Arrays] = islice(batches, CALLS)

    def get_next(self) -> Arrays | None:
        return next(self.batches, None)


def quantise(model: onnx.ModelProto, batches: Iterable[Arrays]) -> onnx.ModelProto:
    """Weights per channel to int8, activations to uint8 (QDQ), with ranges seen on the first ``CALLS`` batches.

    What precision hangs on stays in float32: see ``sensitive_nodes``.

    Raises:
        UserError: where nothing else is left.
    """
    kept = sensitive_nodes(model)
    if all(node.name in kept for node in model.graph.node if node.op_type in QUANTISED):
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
                nodes_to_exclude=kept,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(level)
        return onnx.load(target)


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
