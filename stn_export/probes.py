"""The points inside a network at which artifacts are compared: theta, grid, warped image, log-probabilities.

The grid is given in pixels: how far from where it should an output pixel is sampled.
"""

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.config import ALIGN_CORNERS, IMAGE_SHAPE, OUTPUT_NAME

POINTS = ("theta", "grid", "warped", OUTPUT_NAME)
PIXELS_PER_UNIT = IMAGE_SHAPE[-1] / 2  # the grid's [-1, 1] spans the image
FX_NAMES = {"grid": "affine_grid_generator", "warped": "grid_sampler"}  # what the exporter calls their values


def eager_points(model: nn.Module, images: Tensor) -> dict[str, np.ndarray]:
    """All points of a model of ours, in its own precision; the plain CNN has only the last.

    Args:
        model: as ``build_model`` makes it, in evaluation mode.
        images: normalised, N×3×32×32, of the model's type.
    """
    points, transformer = {}, getattr(model, "transformer", None)
    with torch.inference_mode():
        if transformer is not None:
            points["theta"] = transformer.theta(images)
            points["grid"] = F.affine_grid(points["theta"], images.shape, align_corners=ALIGN_CORNERS)
            points["warped"] = images = transformer(images)
        points[OUTPUT_NAME] = model.classifier(images)
    return in_pixels({name: value.cpu().numpy() for name, value in points.items()})


def in_pixels(points: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same points, a raw grid scaled to pixels."""
    return {name: value * PIXELS_PER_UNIT if name == "grid" else value for name, value in points.items()}


def onnx_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The graph's initialisers by name, as ``state_dict`` calls them: without the name of a wrapper around it all."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name.removeprefix("model."): array for name, array in arrays.items()}


def onnx_points(model: onnx.ModelProto) -> dict[str, str]:
    """The names of the values that are the points, as far as the lowering left them in the graph."""
    made = {output: node for node in model.graph.node for output in node.output}
    found = {point: name for point, name in FX_NAMES.items() if name in made}
    for node in model.graph.node:
        if node.op_type == "GridSample":
            found |= {"grid": node.input[1], "warped": node.output[0]}
    for node in model.graph.node:
        if node.op_type == "AffineGrid" or (
            node.op_type == "MatMul" and made.get(node.input[0], node).op_type == "Reshape"
        ):
            found["theta"] = node.input[0]
    return found | {OUTPUT_NAME: OUTPUT_NAME}


def with_points(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy of the model that gives all its points, and their names by point."""
    names = onnx_points(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = {output.name for output in copy.graph.output}
    for name in names.values():
        if name not in outputs:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return copy, names
