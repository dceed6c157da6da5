"""The sampler written as Gather against PyTorch's own on every kind of grid, and onnx's own tests of the operators."""

import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx.backend.test.case.test_case import TestCase
from torch import Tensor, nn

from stn_export.export.onnx import export_onnx
from stn_export.onnx_graph.model import attribute
from tests.test_onnx_export import session_of

MODES, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")
NAN, INF = float("nan"), float("inf")


def identity(n: int, h: int, w: int, align: bool) -> Tensor:
    return F.affine_grid(torch.eye(2, 3).expand(n, -1, -1), [n, 1, h, w], align_corners=align)


def turned(degrees: float, scale: float = 1.0) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = scale * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return torch.cat([matrix, torch.zeros(2, 1)], 1)


def affine(matrix: Tensor, h: int = 7, w: int = 9) -> Tensor:
    return F.affine_grid(matrix.expand(2, -1, -1), [2, 1, h, w], align_corners=False)


def spoilt(value: float, *places: int) -> Tensor:
    """The identity with one value in some coordinates: 0 for x, 1 for y."""
    grid = identity(2, 7, 9, False).clone()
    grid[:, ::2, ::3, list(places)] = value
    return grid


def pictures(h: int = 7, w: int = 9, c: int = 2) -> Tensor:
    return torch.rand(2, c, h, w, generator=torch.Generator().manual_seed(h * w))


noise = torch.Generator().manual_seed(0)
GROUPS: dict[str, tuple[Tensor, Tensor]] = {
    "identity": (pictures(), identity(2, 7, 9, False)),
    "identity, corners": (pictures(), identity(2, 7, 9, True)),
    "half a pixel right": (pictures(), identity(2, 7, 9, False) + torch.tensor([1 / 9, 0.0])),
    "a pixel down": (pictures(), identity(2, 7, 9, False) + torch.tensor([0.0, 2 / 7])),
    "far left": (pictures(), identity(2, 7, 9, False) - torch.tensor([1.3, 0.0])),
    "turned by 30": (pictures(), affine(turned(30))),
    "turned by 90": (pictures(9, 9), affine(turned(90), 9, 9)),
    "turned by 180": (pictures(), affine(turned(180))),
    "mirrored": (pictures(), identity(2, 7, 9, False) * torch.tensor([-1.0, 1.0])),
    "enlarged": (pictures(), affine(turned(0, 0.4))),
    "made small": (pictures(), affine(turned(0, 3.0))),
    "all outside": (pictures(), identity(2, 7, 9, False) + 5),
    "on the edges": (pictures(), torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1).expand(2, 3, 2, 2)),
    "just outside": (pictures(), 1.001 * identity(2, 7, 9, True)),
    "random": (pictures(), 3 * torch.rand(2, 5, 6, 2, generator=noise) - 1.5),
    "wide": (pictures(3, 31), 2.4 * torch.rand(2, 4, 8, 2, generator=noise) - 1.2),
    "a column": (pictures(11, 1), 2.4 * torch.rand(2, 4, 8, 2, generator=noise) - 1.2),
    "a row": (pictures(1, 11), 2.4 * torch.rand(2, 4, 8, 2, generator=noise) - 1.2),
    "one pixel": (pictures(1, 1), 2.4 * torch.rand(2, 3, 3, 2, generator=noise) - 1.2),
    "one place": (pictures(), torch.full((2, 1, 1, 2), 0.3)),
    "NaN": (pictures(), spoilt(NAN, 0)),
    "NaN in both": (pictures(), spoilt(NAN, 0, 1)),
    "infinite": (pictures(), spoilt(INF, 0)),
    "huge": (pictures(), spoilt(-1e20, 0, 1)),
}


def refused(mode: str, padding: str, group: str) -> bool:
    """What ``gather`` does not do as PyTorch: it gives NaN where a folded or clamped coordinate is no number."""
    return padding != "zeros" and (
        group.startswith("NaN") or (padding == "reflection" and group in ("infinite", "huge"))
    )


class Given(nn.Module):
    def __init__(self, mode: str, padding: str, align: bool) -> None:
        super().__init__()
        self.options = {"mode": mode, "padding_mode": padding, "align_corners": align}

    def forward(self, images: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(images, grid, **self.options)


def differing(session: onnxruntime.InferenceSession, module: nn.Module) -> Iterator[str]:
    """The groups whose values are not PyTorch's; a coordinate between two pixels may be rounded either way."""
    for group, (images, grid) in GROUPS.items():
        [actual] = session.run(None, {"images": images.numpy(), "grid": grid.contiguous().numpy()})
        wanted = module(images, grid).numpy()
        apart = ~np.isclose(actual, wanted, atol=2e-5, rtol=1e-5, equal_nan=True)
        if apart.mean() > (0.2 if module.options["mode"] == "nearest" and group in BORDERLINE else 0):
            yield group


BORDERLINE = {"half a pixel right", "turned by 90", "just outside", "identity, corners", "a pixel down"}
CASES = [
    each if each[1:] == ("zeros", False) else pytest.param(*each, marks=pytest.mark.slow)
    for each in product(MODES, PADDINGS, (False, True))
]


@pytest.mark.parametrize(("mode", "padding", "align"), CASES)
def test_gather_samples_every_grid_as_pytorch_does(mode: str, padding: str, align: bool):
    module, example = Given(mode, padding, align).eval(), (torch.rand(2, 2, 5, 6), torch.rand(2, 3, 4, 2))
    dims = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    shapes = {"images": dims, "grid": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
    session = session_of(export_onnx(module, example, lowering="gather", dynamic_shapes=shapes))
    assert not {group for group in differing(session, module) if not refused(mode, padding, group)}


@cache
def node_cases(operator: str) -> tuple[TestCase, ...]:
    """onnx's own, without those that expand the operator into others.

    Importing an operator's file makes its cases. ``collect_testcases`` would import those of all operators, which takes
    seven seconds.
    """
    importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
    cases = importlib.import_module("onnx.backend.test.case.node")._NodeTestCases
    return tuple(case for case in cases if [node.op_type for node in case.model.graph.node] == [operator])


class Sampled(nn.Module):
    """A sampler for every case, each of a picture and a grid of its own."""

    def __init__(self, options: Iterable[tuple[str, str, bool]]) -> None:
        super().__init__()
        self.samplers = nn.ModuleList(Given(*each) for each in options)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(given[::2], given[1::2], strict=True)
        return tuple(sampler(*pair) for sampler, pair in zip(self.samplers, pairs, strict=True))


def sampler_options(case: TestCase) -> tuple[str, str, bool]:
    """What ``grid_sample`` is told in PyTorch for a case."""
    [node] = case.model.graph.node
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = attribute(node, "mode", "linear")
    return names.get(mode, mode), attribute(node, "padding_mode", "zeros"), bool(attribute(node, "align_corners", 0))


def assert_cases(module: nn.Module, lowering: str, cases: Iterable[TestCase], feeds: Iterable, atol: float) -> None:
    """Export all cases as sites of one module, run it once, and compare each with what onnx says."""
    feeds = list(feeds)
    model = export_onnx(module.eval(), tuple(map(torch.from_numpy, feeds)), lowering=lowering, dynamic_batch=False)
    session = session_of(model)
    found = session.run(None, dict(zip((each.name for each in session.get_inputs()), feeds, strict=True)))
    for case, actual in zip(cases, found, strict=True):
        np.testing.assert_allclose(actual, case.data_sets[0][1][0], atol=atol, rtol=0, err_msg=case.name)


@pytest.mark.parametrize("ndim", [4, 5], ids=["pictures", "volumes"])
def test_gather_does_what_onnx_says_of_gridsample(ndim: int):
    cases = [case for case in node_cases("GridSample") if case.data_sets[0][0][0].ndim == ndim]
    feeds = (each for case in cases for each in case.data_sets[0][0])
    assert_cases(Sampled(map(sampler_options, cases)), "gather", cases, feeds, 1e-4)  # some are written to four digits


class Lowered(nn.Module):
    """``affine_grid`` of every case, each from a theta of its own."""

    def __init__(self, cases: Iterable[TestCase]) -> None:
        super().__init__()
        self.options = [
            (tuple(case.data_sets[0][0][1].tolist()), bool(attribute(case.model.graph.node[0], "align_corners", 0)))
            for case in cases
        ]

    def forward(self, *thetas: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.affine_grid(theta, *each) for theta, each in zip(thetas, self.options, strict=True))


@pytest.mark.parametrize("lowering", ["matmul", "affinegrid"])
def test_lowerings_do_what_onnx_says_of_affinegrid(lowering: str):
    cases = node_cases("AffineGrid")
    assert_cases(Lowered(cases), lowering, cases, (case.data_sets[0][0][0] for case in cases), 1e-5)


def test_there_are_cases():
    sizes = [case.data_sets[0][0][0].ndim for case in node_cases("GridSample")]
    assert (sizes.count(4) >= 14, sizes.count(5) >= 4) == (True, True)
    assert len(node_cases("AffineGrid")) == 4
    assert len(GROUPS) * len(CASES) == 432
