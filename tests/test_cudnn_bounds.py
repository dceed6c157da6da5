"""Float32 on a GPU: Winograd's convolutions pass where they are no fault, TF32 and wrong weights do not."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from stn_export.program.specs import Arrays
from stn_export.run.manifest import Artifact
from stn_export.run.records import Check
from stn_export.runners import RUNNERS
from stn_export.runners.pytorch import Captured
from stn_export.verify import challenges, oracle
from stn_export.verify.checks import check_artifact
from stn_export.verify.oracle import Reference, reference_of
from tests.captured_modules import examples_of, program_of
from tests.winograd import Winograd, convolve

PT2 = next(spec for spec in RUNNERS if spec.name == "pt2-cpu")
LARGE = {3: 6, 5: 6}  # tiles


class Transformer(nn.Module):
    """A spatial transformer whose convolutions are all of 5×5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.locate = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(392, 6))
        self.features = nn.Sequential(nn.Conv2d(3, 10, 5), nn.ReLU(), nn.Conv2d(10, 10, 5), nn.ReLU(), nn.Flatten())
        self.scores = nn.Linear(10 * 24 * 24, 10)

    def forward(self, images: Tensor) -> Tensor:
        theta = torch.eye(2, 3) + 0.1 * self.locate(images).view(-1, 2, 3)
        grid = F.affine_grid(theta, images.shape, align_corners=False)
        return self.scores(self.features(F.grid_sample(images, grid, align_corners=False)))


class Tf32(TorchDispatchMode):
    """In this block the operands of convolutions keep 11 bits, as TF32 does."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace one operator's operands."""
        if function in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            args = (*map(self.rounded, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))

    @staticmethod
    def rounded(values: Tensor) -> Tensor:
        """The nearest numbers with 11 bits."""
        bits = values.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture(scope="module")
def network() -> Reference:
    every = challenges.challenges
    with pytest.MonkeyPatch.context() as patch:
        chosen = "examples ×3"
        patch.setattr(
            oracle, "challenges", lambda *what: {name: batch for name, batch in every(*what).items() if name == chosen}
        )
        patch.setattr(oracle, "THETAS", {})
        program = program_of(Transformer(), {"images": ("N", 3, 32, 32)}, ["scores"])
        return reference_of(program, examples_of(8, images=(3, 32, 32)))


def check(network: Reference, folder: Path, mode: AbstractContextManager, bounds: str, bias: float = 0.0) -> Check:
    """The check of the network in this mode, by these bounds."""

    class Changed(Captured):
        def points(self, feeds: Arrays) -> Arrays:
            with mode:
                points = super().points(feeds)
            points["scores"] = points["scores"] + bias
            return points

        infer = points

    path = folder / "program.pt2"
    path.write_bytes(network.program.to_bytes({}))
    artifact = Artifact("program", path.name, "network", "pt2", "0", network.contract)
    return check_artifact(artifact, path, replace(PT2, load=Changed, bounds=bounds), network)


@pytest.fixture
def winograd(monkeypatch: pytest.MonkeyPatch) -> Winograd:
    monkeypatch.setattr(Winograd, "TILES", LARGE)
    return Winograd()


def test_winograds_convolution_is_no_fault_on_a_gpu(network: Reference, tmp_path: Path, winograd: Winograd):
    strict = check(network, tmp_path, winograd, "fp32")
    assert winograd.replaced
    assert strict.failure
    assert strict.multiple > 8
    assert check(network, tmp_path, winograd, "cudnn").failure == ""


def test_tf32_and_a_wrong_bias_are_still_found(network: Reference, tmp_path: Path, winograd: Winograd):
    assert check(network, tmp_path, Tf32(), "tf32").failure == ""
    assert check(network, tmp_path, Tf32(), "cudnn").failure
    assert check(network, tmp_path, winograd, "cudnn", bias=1e-3).failure


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("tile", [2, 4])
def test_the_planted_convolution_is_one(size: int, tile: int):
    generator = torch.Generator().manual_seed(0)
    image, weight = torch.rand(2, 3, 13, 17, generator=generator), torch.rand(4, 3, size, size, generator=generator)
    torch.testing.assert_close(convolve(image, weight, tile), F.conv2d(image, weight), atol=1e-4, rtol=1e-4)


def test_every_float32_row_of_a_gpu_has_these_bounds():
    bounds = {spec.name: spec.tolerance_of("fp32") for spec in RUNNERS if spec.device == "cuda"}
    assert {name for name, bound in bounds.items() if bound == "cudnn"} == {
        name for name in bounds if not next(spec for spec in RUNNERS if spec.name == name).tf32
    }
    assert {spec.tolerance_of("fp16") for spec in RUNNERS} == {"fp16"}
    assert {spec.tolerance_of("fp32") for spec in RUNNERS if spec.name in ("eager-cpu", "native-cpu")} == {"fp32"}
