"""Winograd's convolution in float32, as GPU libraries compute small filters: faster, and less exact than eager."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 4.0, -4.0)  # where the polynomials are evaluated, besides at infinity


def transforms(outputs: int, filters: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three matrices of a 1-D correlation by Toom and Cook's method: of the filter, the data and the products.

    A product of polynomials is found from its values at as many points as it has coefficients; a correlation is the
    transposed product.
    """
    count = outputs + filters - 1
    powers = np.vander(POINTS[: count - 1], count, increasing=True)
    infinity = np.zeros((1, count))
    infinity[0, -1] = 1

    def values(length: int) -> np.ndarray:
        last = np.zeros((1, length))
        last[0, -1] = 1
        return np.concatenate([powers[:, :length], last])

    inverse = np.linalg.inv(np.concatenate([powers, infinity]))
    return tuple(torch.from_numpy(each).float() for each in (values(filters), inverse.T, values(outputs).T))  # type: ignore[return-value]


def convolve(image: Tensor, weight: Tensor, tile: int) -> Tensor:
    """Correlate N×C×H×W with O×C×K×K, without padding, in tiles of ``tile`` × ``tile`` outputs."""
    size = weight.shape[-1]
    of_filter, of_data, of_products = transforms(tile, size)
    height, width = (length - size + 1 for length in image.shape[-2:])
    rows, columns = -(-height // tile), -(-width // tile)
    padded = functional.pad(
        image, (0, columns * tile + size - 1 - image.shape[-1], 0, rows * tile + size - 1 - image.shape[-2])
    )
    tiles = padded.unfold(2, tile + size - 1, tile).unfold(3, tile + size - 1, tile)
    data = torch.einsum("ai,nchwij,bj->nchwab", of_data, tiles, of_data)
    filters = torch.einsum("ai,ocij,bj->ocab", of_filter, weight, of_filter)
    products = torch.einsum("nchwab,ocab->nohwab", data, filters)
    results = torch.einsum("ia,nohwab,jb->nohwij", of_products, products, of_products)
    whole = results.permute(0, 1, 2, 4, 3, 5).reshape(len(image), len(weight), rows * tile, columns * tile)
    return whole[..., :height, :width]


class Winograd(TorchDispatchMode):
    """In this block convolutions with filters of 3×3 and 5×5, stride 1, are Winograd's."""

    TILES = {3: 4, 5: 4}  # outputs of a tile by the filter's size
    replaced = 0

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace one operator."""
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            image, weight, bias, stride, padding, dilation, groups = self._plain(function, *args)
            fits = weight.shape[-1] in self.TILES and weight.shape[-1] == weight.shape[-2]
            if fits and (stride, dilation, groups, image.dtype) == ([1, 1], [1, 1], 1, torch.float32):
                padded = functional.pad(image, (padding[1], padding[1], padding[0], padding[0]))
                result = convolve(padded, weight, self.TILES[weight.shape[-1]])
                self.replaced += 1
                return result if bias is None else result + bias.view(1, -1, 1, 1)
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _plain(
        function: Any,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        *others: Any,
    ) -> tuple[Tensor, Tensor, Tensor | None, list[int], Sequence[int], list[int], int]:
        """The arguments of either operator; a transposed convolution is of 0 groups, which none is."""
        transposed = function is torch.ops.aten.convolution.default and others[0]
        groups = 0 if transposed else others[-1] if others else 1
        return image, weight, bias, list(stride), padding, list(dilation), groups
