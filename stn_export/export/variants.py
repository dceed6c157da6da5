"""The same network at another precision, or fed with another input: wrappers around a trained model.

Half-precision grids are off by pixels, so theta, grid and sampler stay in float32 whatever the body computes in.
"""

import copy

import torch
from torch import Tensor, nn

from stn_export.config import InputContract
from stn_export.train.data import normalise

BODY_TYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Body(nn.Module):
    """A part that computes in ``dtype`` between float32 inputs and outputs."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part, self.dtype = part.to(dtype), dtype

    def forward(self, values: Tensor) -> Tensor:
        """``part`` at its own precision."""
        return self.part(values.to(self.dtype)).float()


class FromBytes(nn.Module):
    """A model that takes raw uint8 images, NCHW or NHWC, and normalises them itself."""

    def __init__(self, model: nn.Module, layout: str) -> None:
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities of uint8 images."""
        if self.layout == "NHWC":
            images = images.permute(0, 3, 1, 2)
        return self.model(normalise(images))


def at_precision(model: nn.Module, precision: str) -> nn.Module:
    """A copy whose convolutions and linear layers compute in ``precision``, but for the one that gives theta."""
    dtype = BODY_TYPES[precision]
    if dtype is None:
        return model
    model = copy.deepcopy(model)
    if hasattr(model, "transformer"):
        model.transformer.localisation = Body(model.transformer.localisation, dtype)
    model.classifier.features = Body(model.classifier.features, dtype)
    model.classifier.head = Body(model.classifier.head, dtype)
    return model


def with_contract(model: nn.Module, contract: InputContract) -> nn.Module:
    """The model as ``contract`` feeds it."""
    return model if contract.dtype == "float32" else FromBytes(model, contract.layout).eval()
