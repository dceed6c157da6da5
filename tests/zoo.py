"""Ten small networks as other people bring them, written anew from their papers: each samples in its own way.

Weights are random but seeded and lively: theta, grid and outputs differ from image to image. ``ZOO`` lists them by
name; ``Foreign.program`` and ``enter_zoo`` put them where tests want them, ``python -m stn_export.adopt
tests/zoo.py:PlateRectifier`` does so from outside.
"""

from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from stn_export.program.specs import Pixels
from stn_export.run.examples import Examples
from stn_export.run.manifest import PLAIN, NetworkDirectory
from stn_export.run.network import enter, write_examples

IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def around_identity(values: Tensor, size: float = 0.3) -> Tensor:
    """N×6 numbers of any size to matrices N×2×3 near the identity."""
    return size * torch.tanh(values).view(-1, 2, 3) + torch.eye(2, 3)


def localisation(channels: int, outputs: int, pooled: tuple[int, int] = (4, 4)) -> nn.Sequential:
    """A small network from pictures to a few numbers; pooled sizes divide those of the pictures, less 4."""
    head = nn.Linear(8 * pooled[0] * pooled[1], outputs)
    nn.init.normal_(head.weight, std=0.3)
    return nn.Sequential(nn.Conv2d(channels, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), head)


class GreyDigits(nn.Module):
    """Digits behind a transformer; gives log-probabilities and theta.

    Source: M. Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, section 4.1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.localisation = localisation(1, 6)
        self.features = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(216, 10))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        theta = around_identity(self.localisation(images))
        grid = F.affine_grid(theta, images.size(), align_corners=False)
        warped = F.grid_sample(images, grid, align_corners=False)
        return self.head(self.features(warped)).log_softmax(1), theta


class PlateRectifier(nn.Module):
    """Licence plates 24×94 rectified with aligned corners and repeated edges, then read: log-probabilities a column.

    Source: S. Zherzdev, A. Gruzdev, "LPRNet: License Plate Recognition via Deep Neural Networks", arXiv 1806.10447.
    """

    def __init__(self) -> None:
        super().__init__()
        self.localisation = localisation(3, 6, (4, 9))
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(3))
        self.head = nn.Conv2d(12, 20, (8, 13), padding=(0, 6))

    def forward(self, plates: Tensor) -> Tensor:
        grid = F.affine_grid(around_identity(self.localisation(plates)), plates.shape, align_corners=True)
        rectified = F.grid_sample(plates, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return self.head(self.backbone(rectified)).squeeze(2).log_softmax(1)


class TextRectifier(nn.Module):
    """Lines of text 32×100 straightened by a thin-plate spline through 20 predicted control points: no affine grid.

    Source: B. Shi et al., "Robust Scene Text Recognition with Automatic Rectification", CVPR 2016, section 3.1.
    """

    def __init__(self, height: int = 32, width: int = 100, points: int = 20) -> None:
        super().__init__()
        self.size = height, width
        self.localisation = localisation(1, 2 * points, (2, 6))
        xs = torch.linspace(-1, 1, points // 2)
        control = torch.cat([torch.stack([xs, torch.full_like(xs, y)], 1) for y in (-1.0, 1.0)])  # both edges
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        pixels = torch.stack([xs, ys], -1).view(-1, 2)
        ones, zeros = torch.ones(points, 1), torch.zeros(3, 3)
        system = torch.cat(
            [
                torch.cat([_radial(control, control), ones, control], 1),
                torch.cat([torch.cat([ones, control], 1).T, zeros], 1),
            ]
        )
        basis = torch.cat([_radial(pixels, control), torch.ones(len(pixels), 1), pixels], 1)
        self.register_buffer("control", control)
        self.register_buffer("spline", (basis @ torch.linalg.inv(system))[:, :points])  # HW×points

    def forward(self, lines: Tensor) -> Tensor:
        moved = self.control + 0.15 * torch.tanh(self.localisation(lines)).view(-1, *self.control.shape)
        grid = (self.spline @ moved).view(-1, *self.size, 2)
        return F.grid_sample(lines, grid, padding_mode="border", align_corners=True)


def _radial(points: Tensor, centres: Tensor) -> Tensor:
    """r² log r of every pair."""
    squared = (points[:, None] - centres[None]).square().sum(-1)
    return 0.5 * squared * torch.log(squared.clamp_min(1e-12))


class TwoSteps(nn.Module):
    """The second theta looks at what the first one gave and is composed with it; the picture is sampled anew.

    Source: C.-H. Lin, S. Lucey, "Inverse Compositional Spatial Transformer Networks", CVPR 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = localisation(2, 6), localisation(2, 6)
        self.head = nn.Sequential(nn.Conv2d(2, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        self.register_buffer("bottom", torch.tensor([[[0.0, 0.0, 1.0]]]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = around_identity(self.first(images), 0.2)
        warped = F.grid_sample(images, F.affine_grid(first, images.shape, align_corners=False), align_corners=False)
        second = torch.cat([around_identity(self.second(warped), 0.2), self.bottom.expand(images.shape[0], -1, -1)], 1)
        grid = F.affine_grid(first @ second, images.shape, align_corners=False)
        aligned = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return self.head(aligned), aligned


class FlowWarp(nn.Module):
    """Brings a picture to where a flow field in pixels says, and gives what is left of the brightness; any size.

    Source: E. Ilg et al., "FlowNet 2.0", CVPR 2017, section 4 (warping and brightness error).
    """

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.Conv2d(5, 2, 3, padding=1)

    def forward(self, images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        ys = torch.arange(height, dtype=torch.float32).view(-1, 1)
        xs = torch.arange(width, dtype=torch.float32)
        flow = flow + self.refine(torch.cat([images, flow], 1))
        grid = torch.stack([2 * (xs + flow[:, 0]) / (width - 1) - 1, 2 * (ys + flow[:, 1]) / (height - 1) - 1], dim=-1)
        warped = F.grid_sample(images, grid, align_corners=True)
        return warped, (images - warped).square().sum(1, keepdim=True).add(1e-6).sqrt()


class DeformableAttention(nn.Module):
    """Every query samples 4 points on each of 3 levels of values and adds them up, weighted; any number of queries.

    Source: X. Zhu et al., "Deformable DETR", ICLR 2021, section 4.1 (multi-scale deformable attention).
    """

    LEVELS = ((8, 12), (4, 6), (2, 3))
    HEADS, POINTS, WIDTH = 2, 4, 16

    def __init__(self) -> None:
        super().__init__()
        samples = self.HEADS * len(self.LEVELS) * self.POINTS
        self.offsets, self.weights = nn.Linear(self.WIDTH, 2 * samples), nn.Linear(self.WIDTH, samples)
        self.value, self.output = nn.Linear(self.WIDTH, self.WIDTH), nn.Linear(self.WIDTH, self.WIDTH)
        self.register_buffer("normaliser", torch.tensor([[w, h] for h, w in self.LEVELS], dtype=torch.float32))

    def forward(self, queries: Tensor, points: Tensor, values: Tensor) -> Tensor:
        """N×Q×16 queries, N×Q×2 points in [0, 1] and N×126×16 values, level after level, to N×Q×16."""
        n, q, _ = queries.shape
        shape = n, q, self.HEADS, len(self.LEVELS), self.POINTS
        offsets = self.offsets(queries).view(*shape, 2) / self.normaliser[:, None]
        grids = 2 * (points[:, :, None, None, None] + offsets) - 1  # N×Q×heads×levels×points×2
        weights = self.weights(queries).view(*shape[:3], -1).softmax(-1).view(shape)
        levels = self.value(values).view(n, -1, self.HEADS, self.WIDTH // self.HEADS)
        sampled = []
        for level, (part, (height, width)) in enumerate(
            zip(levels.split([h * w for h, w in self.LEVELS], 1), self.LEVELS, strict=True)
        ):
            maps = part.permute(0, 2, 3, 1).reshape(n * self.HEADS, -1, height, width)
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # N·heads×Q×points×2
            sampled.append(F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
        weights = weights.permute(0, 2, 1, 3, 4).reshape(n * self.HEADS, 1, q, -1)
        mixed = (torch.stack(sampled, -2).flatten(-2) * weights).sum(-1)  # N·heads×8×Q
        return self.output(mixed.view(n, self.WIDTH, q).transpose(1, 2))


class Homography(nn.Module):
    """A picture seen from the side brought upright by a predicted 3×3 matrix, on a grid of its own.

    Source: D. DeTone et al., "Deep Image Homography Estimation", arXiv 1606.03798; normalised as ImageNet's pictures.
    """

    def __init__(self) -> None:
        super().__init__()
        self.localisation = localisation(3, 9, (4, 4))
        self.head = nn.Conv2d(3, 2, 5, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        matrix = torch.eye(3) + 0.15 * torch.tanh(self.localisation(images)).view(-1, 3, 3)
        height, width = images.shape[-2:]
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        places = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(-1, 3)
        moved = places @ matrix.transpose(1, 2)
        grid = (moved[..., :2] / moved[..., 2:]).view(-1, height, width, 2)
        return self.head(F.grid_sample(images, grid, padding_mode="zeros", align_corners=True)), matrix


class Transformer(nn.Module):
    """A spatial transformer for any number of channels; its output may be smaller than what it looks at."""

    def __init__(self, channels: int, scale: int = 1) -> None:
        super().__init__()
        self.localisation, self.scale = localisation(channels, 6, (2, 2)), scale

    def forward(self, images: Tensor) -> Tensor:
        n, c, height, width = images.shape
        size = [n, c, height // self.scale, width // self.scale]
        grid = F.affine_grid(around_identity(self.localisation(images)), size, align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


class Pyramid(nn.Module):
    """House numbers: transformers before several layers, on pictures and on feature maps of ever smaller size.

    Source: M. Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, section 4.2 (ST-CNN Multi).
    """

    def __init__(self) -> None:
        super().__init__()
        self.warps = nn.ModuleList([Transformer(3, scale=2), Transformer(6), Transformer(8)])
        self.layers = nn.ModuleList([nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 8, 3, padding=1)])
        self.head = nn.Linear(8 * 6 * 6, 11)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.layers[0](self.warps[0](images)))  # 48×48 to 24×24, then 12×12
        x = F.relu(self.layers[1](self.warps[1](x)))
        return self.head(F.max_pool2d(self.warps[2](x), 2).flatten(1)).log_softmax(1)


class Glimpses(nn.Module):
    """Reads three digits, one a glimpse, in a loop; gives a dictionary, whole numbers in it.

    Source: S. K. Sønderby et al., "Recurrent Spatial Transformer Networks", arXiv 1509.05329.
    """

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.look = localisation(1, 24, (2, 4))
        self.memory = nn.GRUCell(24, 24)
        self.theta = nn.Linear(24, 6)
        self.read = nn.Sequential(nn.Flatten(), nn.Linear(144, 10))
        self.register_buffer("attention", torch.tensor([0.5, 0.5]).view(2, 1).expand(2, 3).clone())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen = self.look(images)
        state, scores = torch.zeros_like(seen), []
        for _ in range(self.steps):
            state = self.memory(seen, state)
            theta = self.attention * around_identity(6 * self.theta(state), 0.8)
            grid = F.affine_grid(theta, [images.shape[0], 1, 12, 12], align_corners=False)
            scores.append(self.read(F.grid_sample(images, grid, mode="bilinear", align_corners=False)))
        log_probs = torch.stack(scores, 1).log_softmax(-1)
        return {"log_probs": log_probs, "digits": log_probs.argmax(-1), "state": state}


class NoSampler(nn.Module):
    """A small residual network: nothing is sampled.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
        nn.init.normal_(self.head.weight, std=2.0)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem(images))
        x = F.relu(x + self.norm(self.inner(x)))
        return self.head(x.mean((2, 3)))


@dataclass(frozen=True)
class Foreign:
    """One network of the zoo.

    Attributes:
        module: makes it, with random weights.
        shapes: of its inputs by name, as ``--input`` takes them.
        outputs: their names.
        sites: how many samplers.
        classes: how many its first output tells apart; 0 where it is no classifier.
        pixels: how the bytes of its pictures are normalised, where its examples are bytes.
    """

    module: type[nn.Module]
    shapes: Mapping[str, tuple[int | str, ...]]
    outputs: tuple[str, ...]
    sites: int = 1
    classes: int = 0
    pixels: Pixels | None = field(default_factory=Pixels)

    def build(self) -> nn.Module:
        """With the same random weights every time, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(4)
            return self.module().eval()

    def inputs(self, count: int, seed: int = 0, size: int = 40) -> dict[str, Tensor]:
        """Smooth pictures, and other values uniform in [0, 1); pictures are bytes where ``pixels`` says so."""
        random = torch.Generator().manual_seed(seed)
        made = {}
        for name, shape in self.shapes.items():
            sizes = {"N": count, "H": size, "W": size + 8, "Q": 7}
            wanted = [sizes.get(each, each) for each in shape]
            coarse = [max(2, each // 5) for each in wanted[2:]] if len(wanted) == 4 else None
            values = torch.rand([*wanted[:2], *coarse] if coarse else wanted, generator=random)
            if coarse:
                values = F.interpolate(values, wanted[2:], mode="bilinear", align_corners=True)
            if coarse and self.pixels:
                values = values.mul(255).round().to(torch.uint8)
            made[name] = values
        return made

    def values(self, count: int, seed: int = 0, size: int = 40) -> tuple[Tensor, ...]:
        """The same as the module takes them."""
        inputs = self.inputs(count, seed, size).values()
        return tuple(
            self.pixels.normalise(each) if self.pixels and each.dtype == torch.uint8 else each for each in inputs
        )

    def examples(self, count: int = 24) -> Examples:
        """Its inputs, and labels where it is a classifier: mostly what it says itself, some wrong."""
        labels, inputs = None, self.inputs(count)
        if self.classes:
            with torch.no_grad():
                answers = self.build()(*self.values(count))
            found = answers if isinstance(answers, Tensor) else next(iter(answers))
            labels = found.argmax(1)
            labels[::5] = (labels[::5] + 1) % self.classes
        names = tuple(str(index) for index in range(self.classes))
        return Examples(inputs, tuple(inputs), labels, names, source="smooth random pictures")

    def program(self) -> Program:
        """Captured once a process; a copy, so that a test may spoil its weights."""
        return copy_of(_captured(self.module.__name__))

    def capture(self) -> Program:
        """Capture it anew, its shapes open where ``shapes`` says so."""
        captured = capture(self.build(), self.values(2), list(self.shapes.values()))
        contract = contract_of(captured.exported, captured.shapes, list(self.shapes), self.outputs)
        inputs = tuple(replace(spec, pixels=self.pixels if len(spec.shape) == 4 else None) for spec in contract.inputs)
        origin = {"callable": f"{__name__}:{self.module.__name__}", "arguments": {}}
        return Program(captured.exported, replace(contract, inputs=inputs), origin)


ZOO = {
    foreign.module.__name__: foreign
    for foreign in (
        Foreign(GreyDigits, {"images": ("N", 1, 28, 28)}, ("log_probs", "theta"), classes=10),
        Foreign(PlateRectifier, {"plates": ("N", 3, 24, 94)}, ("characters",)),
        Foreign(TextRectifier, {"lines": ("N", 1, 32, 100)}, ("rectified",)),
        Foreign(TwoSteps, {"images": ("N", 2, 20, 20)}, ("scores", "aligned"), sites=2, classes=5),
        Foreign(
            FlowWarp,
            {"images": ("N", 3, "H", "W"), "flow": ("N", 2, "H", "W")},
            ("warped", "brightness"),
            pixels=None,
        ),
        Foreign(
            DeformableAttention,
            {"queries": ("N", "Q", 16), "points": ("N", "Q", 2), "values": ("N", 126, 16)},
            ("attended",),
            sites=3,
            pixels=None,
        ),
        Foreign(Homography, {"images": ("N", 3, 48, 64)}, ("features", "matrix"), pixels=IMAGENET),
        Foreign(Pyramid, {"images": ("N", 3, 48, 48)}, ("log_probs",), sites=3, classes=11),
        Foreign(Glimpses, {"images": ("N", 1, 30, 60)}, ("log_probs", "digits", "state"), sites=3),
        Foreign(NoSampler, {"images": ("N", 3, 32, 32)}, ("scores",), sites=0, classes=4),
    )
}


def copy_of(program: Program) -> Program:
    """Copy a captured program: its weights are its own, the graph, which nothing writes to, is shared."""
    exported = copy(program.exported)
    exported._state_dict = deepcopy(exported._state_dict)  # tensors under two names stay one
    exported._constants = deepcopy(exported._constants)
    return replace(program, exported=exported)


@cache
def _captured(name: str) -> Program:
    return ZOO[name].capture()


def enter_zoo(run: Path, name: str) -> NetworkDirectory:
    """A run with one network of the zoo and, where it samples, its plain twin; not exported yet."""
    foreign, program = ZOO[name], ZOO[name].program()
    examples = foreign.examples()
    file = write_examples(run, examples)
    said = {"source": examples.source, "classes": examples.classes}
    directory = NetworkDirectory(run / name)
    enter(directory, program, file, label=name, **said)
    if foreign.sites:
        label = f"{name}, samplers bypassed"
        enter(NetworkDirectory(run / f"{name}-plain"), program.bypassed, file, label=label, role=PLAIN, **said)
    return directory


def command(foreign: Foreign, folder: Path, *more: str) -> list[str]:
    """What a person types to adopt a network of the zoo into ``folder/run``, its weights and examples in files."""
    name = foreign.module.__name__
    examples, weights = foreign.examples(8), folder / f"{name}.pt"
    torch.save({"state_dict": foreign.build().state_dict()}, weights)
    labels = {} if examples.labels is None else {"labels": examples.labels.numpy()}
    np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in examples.inputs.items()}, **labels)
    inputs = [f"--input={key}={','.join(map(str, shape))}" for key, shape in foreign.shapes.items()]
    outputs = [f"--output={output}" for output in foreign.outputs]
    pixels = foreign.pixels or Pixels()
    normalised = ["--mean", *map(str, pixels.mean), "--std", *map(str, pixels.std)] if foreign.pixels else []
    files = ["--weights", f"{weights}", "--examples", str(folder / f"{name}.npz"), "--run", str(folder / "run")]
    return [f"{__file__}:{name}", *files, *inputs, *outputs, *normalised, "--eval", *more]
