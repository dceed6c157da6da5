"""Static int8 quantisation of an ONNX model by ONNX Runtime, calibrated on real images; the sampler stays float32."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnxruntime import quantization
from torch import Tensor

from stn_export.config import INPUT_NAME
from stn_export.train.data import normalise

QUANTISED = ("Conv", "Gemm", "MatMul")
BATCH = 64


class _Reader(quantization.CalibrationDataReader):
    """Normalised batches, once."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(images.split(BATCH))

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT_NAME: normalise(batch).numpy()}


def quantise(model: onnx.ModelProto, images: Tensor) -> onnx.ModelProto:
    """Weights per channel to int8, activations to uint8 (QDQ), with ranges seen on uint8 N×3×32×32 ``images``.

    What precision hangs on stays in float32: the sampler, theta and the grid, and the layer that gives the logits.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it advises its own preprocessing, which the exporter has done
        try:
            quantization.quantize_static(
                source,
                target,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=sensitive_nodes(model),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(level)
        return onnx.load(target)


def sensitive_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the samplers, of every linear layer from theta to a grid, and of the one that gives the logits."""
    producers = {output: node for node in model.graph.node for output in node.output}
    samplers = [node for node in model.graph.node if node.op_type == "GridSample"]
    names = [node.name for node in samplers]
    for value in (*(node.input[1] for node in samplers), model.graph.output[0].name):
        linear = _linear_before(value, producers)
        names.append(linear.name)
        if linear.op_type == "MatMul":  # the base grid; theta's own layer comes before it
            names.append(_linear_before(linear.input[0], producers).name)
    return names


def _linear_before(value: str, producers: dict[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The nearest quantisable node that ``value`` comes from, along first inputs."""
    node = producers[value]
    while node.op_type not in QUANTISED:
        node = producers[node.input[0]]
    return node
