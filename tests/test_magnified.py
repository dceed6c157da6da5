"""Networks that normalise: on pictures of one grey they divide roundings by next to no variance."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.program.specs import Arrays
from stn_export.verify import challenges, oracle
from stn_export.verify.challenges import FAR
from stn_export.verify.oracle import Reference, reference_of
from tests.captured_modules import examples_of, program_of
from tests.test_verify_holes import OnnxRuntime, changed, judged


class Normalised(nn.Module):
    """Samples features that an InstanceNorm made, by a given theta."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16))

    def forward(self, images: Tensor, theta: Tensor) -> Tensor:
        features = self.features(images)
        return F.grid_sample(features, F.affine_grid(theta, features.shape, align_corners=False), align_corners=False)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Reference:
    chosen = ("examples ×3", *FAR)
    every = challenges.challenges
    monkeypatch.setattr(
        oracle, "challenges", lambda *what: {name: batch for name, batch in every(*what).items() if name in chosen}
    )
    monkeypatch.setattr(oracle, "THETAS", {})
    program = program_of(Normalised(), {"images": ("N", 3, 64, 68), "theta": ("N", 2, 3)}, ["features"])
    theta = torch.eye(2, 3) + 0.1 * torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(3))
    return reference_of(program, examples_of(8, images=(3, 64, 68), theta=theta))


def test_a_right_file_that_normalises_pictures_of_one_grey_passes(network: Reference, tmp_path: Path):
    check = judged(network, tmp_path, OnnxRuntime)
    assert check.failure == ""
    assert {"constants", "examples ×3"} <= set(check.comparisons)


@pytest.mark.parametrize("grey", [True, False])
def test_a_wrong_one_does_not(network: Reference, tmp_path: Path, grey: bool):
    """Neither where the error is on pictures of one grey alone, nor a tenth of it on the others."""

    def spoil(points: Arrays) -> None:
        if (len(points["features"]) == 6) == grey:  # the greys are six
            points["features"][:, :, 5:9] += 0.1 if grey else 0.01

    check = judged(network, tmp_path, changed(spoil, OnnxRuntime))
    assert check.failure.startswith("constants: first wrong" if grey else "examples ×3: first wrong")
