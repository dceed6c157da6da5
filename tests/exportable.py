"""Small networks that exports were lost or wrong on, a few lines each: the kinds of what public networks do.

``EXPORTABLE`` lists them by name; ``example(n)`` gives the arguments of a call with a batch of ``n``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.public import smooth, values


class Applied(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class Siamese(nn.Module):
    """Two pictures joined to one batch, and taken apart again. Z. Teed, J. Deng, "RAFT", 2020."""

    def __init__(self, apart: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.features, self.apart = nn.Conv2d(3, 4, 3, padding=1), apart

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        one, other = self.apart(self.features(torch.cat([first, second])))
        n, c, h, w = one.shape
        return one.view(n, c, h * w).transpose(1, 2) @ other.reshape(n, c, h * w)


class Weighted(nn.Module):
    """Its input is called as its parameter is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(4, 4))
        self.register_buffer("output", values(4))

    def forward(self, weight: Tensor) -> Tensor:
        return weight @ self.weight + self.output


class Upsampled(nn.Module):
    """Upsampled at predicted places, group after group. W. Liu et al., "DySample", 2023."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Conv2d(4, 16, 1)
        self.register_buffer("start", values(1, 16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        offset = (self.offset(x) * 0.25 + self.start).view(n, 2, -1, h, w)
        ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        places = torch.stack([xs, ys])[None, :, None].type(x.dtype)
        places = 2 * (places + offset) / torch.tensor([w, h], dtype=x.dtype).view(1, 2, 1, 1, 1) - 1
        places = F.pixel_shuffle(places.view(n, -1, h, w), 2).view(n, 2, -1, 2 * h, 2 * w)
        places = places.permute(0, 2, 3, 4, 1).contiguous().flatten(0, 1)
        groups = x.reshape(n * 2, -1, h, w)
        return F.grid_sample(groups, places, padding_mode="border", align_corners=False).view(n, -1, 2 * h, 2 * w)


class CostVolume(nn.Module):
    """Written slice by slice. J.-R. Chang, Y.-S. Chen, "Pyramid Stereo Matching Network", 2018."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        cost = left.new_zeros(left.shape[0], 2 * left.shape[1], 3, *left.shape[2:])
        for shift in range(3):
            cost[:, : left.shape[1], shift, :, shift:] = left[..., shift:]
            cost[:, left.shape[1] :, shift, :, shift:] = right[..., : right.shape[-1] - shift]
        return cost


class Points(nn.Module):
    """Scores with their border taken out, and descriptors sampled. D. DeTone et al., "SuperPoint", 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.find, self.describe = nn.Conv2d(1, 65, 8, stride=8), nn.Conv2d(1, 6, 8, stride=8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        n, _, h, w = images.shape
        scores = self.find(images).softmax(1)[:, :-1].permute(0, 2, 3, 1).reshape(n, h // 8, w // 8, 8, 8)
        scores = scores.permute(0, 1, 3, 2, 4).reshape(n, h, w)
        scores[:, :2] = -1
        best, at = scores.flatten(1).topk(5)
        places = torch.stack([at % w / w, at // w / h], -1)[:, None] * 2 - 1
        found = F.grid_sample(F.normalize(self.describe(images)), places, align_corners=False)
        return {"scores": best, "images": found[:, :, 0]}  # an output that is called as the input is


class SplinePoints(nn.Module):
    """A thin-plate spline solved inside; its system has zeros on the diagonal. F. Bookstein, 1989."""

    def forward(self, points: Tensor) -> Tensor:
        n, k, _ = points.shape
        squared = (points[:, :, None] - points[:, None]).square().sum(-1)
        edge = torch.cat([points.new_ones(n, k, 1), points], -1)
        top = torch.cat([squared * torch.log(squared + 1e-6), edge], 2)
        system = torch.cat([top, torch.cat([edge.transpose(1, 2), points.new_zeros(n, 3, 3)], 2)], 1)
        wanted = torch.cat([points.flip(1), points.new_zeros(n, 3, 2)], 1)
        return torch.linalg.solve(system, wanted)


def overwritten(x: Tensor) -> Tensor:
    y = x + 1
    y[:, 0] = 0
    return y


def rewritten(x: Tensor) -> Tensor:
    grid = torch.empty(1, 6, 7, 3)
    grid[..., 0].copy_(torch.linspace(-1, 1, 7))
    grid[..., 1].copy_(torch.linspace(-1, 1, 6).unsqueeze(-1))
    grid[..., 2].fill_(1)
    places = (grid.view(1, 42, 3) @ torch.eye(3, 2)).view(1, 6, 7, 2)
    return F.grid_sample(x, places.expand(x.shape[0], -1, -1, -1), align_corners=False)


def masked(x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3)[None].repeat(x.shape[0], 1, 1) * 1.3, x.shape, align_corners=False)
    mask = F.grid_sample(torch.ones_like(x), grid, align_corners=False)
    mask[mask < 0.9999] = 0
    mask[mask > 0] = 1
    return mask * x


def attended(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).tril()
    return (
        F.scaled_dot_product_attention(x, x, x),
        F.scaled_dot_product_attention(x, x, x, is_causal=True),
        F.scaled_dot_product_attention(x, x + 1, x, attn_mask=mask, scale=0.5),
    )


OFFSET, KERNEL, DISPLACEMENT = values(1, 18, 8, 9), values(4, 3, 3, 3), values(1, 8, 9, 2, scale=0.2)


def deformed(x: Tensor) -> Tensor:
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, OFFSET.expand(x.shape[0], -1, -1, -1), KERNEL, padding=1)


def moved(x: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.affine(x, 30.0, [1, 2], 1.1, [0.0, 0.0])


def bent(x: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return functional.elastic(x, DISPLACEMENT)


@dataclass(frozen=True)
class Row:
    """A network, how its example is made, and what is wanted of it.

    Attributes:
        build: makes it.
        shapes: of its inputs, without the batch.
        options: of ``export_onnx``.
        refused: what ``export_onnx`` says, where no file can be right.
        fixed: whether its batch cannot be open.
        package: that it needs.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 9),)
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    fixed: bool = False
    package: str = ""

    def module(self) -> nn.Module:
        """With the same weights every time, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(6)
            return self.build().eval()

    def example(self, n: int) -> tuple[Tensor, ...]:
        """Inputs of a call with a batch of ``n``; matrices are well conditioned."""
        made = (smooth(n, *shape) if len(shape) > 2 else values(n, *shape) for shape in self.shapes)
        return tuple(value.flip(-1) if index else value for index, value in enumerate(made))


def of(function: Callable[[Tensor], Any], *shape: int, **facts: Any) -> Row:
    """A row for a function of one tensor."""
    return Row(lambda: Applied(function), (shape or (3, 8, 9),), **facts)


def matrices(size: int, function: Callable[[Tensor], Any], **facts: Any) -> Row:
    """A row for a function of n×n matrices that are made from numbers, and have zeros on the diagonal."""
    ring = torch.eye(size).roll(1, 0) * 2 + 0.3 * values(size, size)
    return of(lambda x: function(ring + 0.2 * x), size, size, **facts)


PAIR = ((3, 8, 9), (3, 8, 9))


def promised(x: Tensor) -> Tensor:
    """What is checked of values, as transformers does before it samples: ``torch_compilable_check``."""
    torch._check_tensor_all(x.sum() < 1e9)
    torch._check_tensor_all(x < 1e9)
    return x * 2


def unsquashed(x: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of a sigmoid, taken twice of one value, as DETR's decoders refine boxes."""

    def inverse(y: Tensor) -> Tensor:
        y = y.clamp(min=0, max=1)
        return torch.log(y.clamp(min=1e-5) / (1 - y).clamp(min=1e-5))

    squashed = x.sigmoid()
    return inverse(squashed) + x, inverse(squashed) * 2


EXPORTABLE = {
    "overwritten": of(overwritten),
    "input given back": of(lambda x: (x * 2, x)),
    "output given twice": of(lambda x: [x * 3] * 2),
    "view given back": of(lambda x: (x.view(x.shape), x[:])),
    "constant given back": of(lambda x: (x + 1, torch.arange(3.0))),
    "named as a node": of(lambda x: (x.relu() + 1).relu() * 2, options={"output_names": ["relu"]}),
    "named as another node": of(lambda x: (x.relu(), x.sigmoid()), options={"output_names": ["sigmoid", "relu"]}),
    "named as a weight": Row(Weighted, ((3, 4),)),
    "named as its input": of(lambda x: {"x": x + 1, "a b": x, "a_b": x * 2}),
    "input named as a node": of(lambda x: x.relu() * 2, options={"input_names": ["mul"], "output_names": ["relu"]}),
    "nested": of(lambda x: {"a": [x, {"b": x.exp()}], "c": (x,)}),
    "dysample": Row(Upsampled, ((4, 6, 8),)),
    "cost volume": Row(CostVolume, ((2, 4, 7), (2, 4, 7))),
    "superpoint": Row(Points, ((1, 32, 40),)),
    "masked": of(masked),
    "chunked": Row(lambda: Siamese(lambda x: x.chunk(2)), PAIR),
    "split": Row(lambda: Siamese(lambda x: x.split(x.shape[0] // 2)), PAIR),
    "tensor split": Row(lambda: Siamese(lambda x: torch.tensor_split(x, 2)), PAIR),
    "halved": Row(lambda: Siamese(lambda x: (x[: x.shape[0] // 2], x[x.shape[0] // 2 :])), PAIR),
    "counted": Row(lambda: Siamese(lambda x: (x[: len(x) // 2], x[len(x) // 2 :])), PAIR, fixed=True),
    "unflattened": Row(lambda: Siamese(lambda x: x.unflatten(0, (2, -1)).unbind(0)), PAIR),
    "copied into": of(rewritten),
    "promised": of(promised),
    "unsquashed": of(unsquashed),
    "attention": of(attended, 5, 8),
    "inverse 1": matrices(1, torch.linalg.inv),
    "inverse 2": matrices(2, torch.linalg.inv),
    "inverse 3": matrices(3, torch.inverse),
    "inverse 4": matrices(4, lambda x: torch.linalg.inv_ex(x)[0]),
    "inverse 7": matrices(7, torch.linalg.inv),
    "solve": matrices(5, lambda x: (torch.linalg.solve(x, x[..., :2] + 1), torch.linalg.solve(x, x[..., 0]))),
    "inverse 33": matrices(33, torch.linalg.inv, refused="matrices of size 33"),
    "spline": Row(SplinePoints, ((6, 2),)),
    "branch on export": of(lambda x: x * 1.2 if torch.onnx.is_in_onnx_export() else x),
    "antialiased": of(
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bicubic", antialias=True), refused="answers otherwise"
    ),
    "batch decides": of(lambda x: x * 2 if x.shape[0] == 2 else x, fixed=True),
    "no translation": of(lambda x: torch.linalg.eigh(x @ x.mT)[0], 3, 3, refused="no translation of"),
    "not finite": of(lambda x: (1 / (x - x).clamp(min=0), (x > 0.5).float().log(), x)),
    "integers": of(lambda x: (x.argmax(1), x > 0.5, x.long())),
    "deformed": of(deformed, package="torchvision"),
    "affine of torchvision": of(moved, package="torchvision"),
    "elastic of torchvision": of(bent, package="torchvision"),
}
