"""The reference of any program: what is compared, in which units, and what is left out with a note."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.results.tolerances import TOLERANCES
from stn_export.verify.oracle import Reference, reference_of, scored_output
from tests.captured_modules import examples_of, program_of
from tests.zoo import ZOO

FP32 = TOLERANCES["fp32"]


class Warp(nn.Module):
    """Samples pictures by a given theta."""

    def __init__(self, mode: str = "bilinear", align_corners: bool = False) -> None:
        super().__init__()
        self.mode, self.align = mode, align_corners

    def forward(self, images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, images.shape, align_corners=self.align)
        return F.grid_sample(images, grid, mode=self.mode, align_corners=self.align)


def warped(shape: tuple[int | str, ...], **options: object) -> Reference:
    program = program_of(Warp(**options), {"images": shape, "theta": ("N", 2, 3)}, ["warped"])
    sizes = [size if isinstance(size, int) else {"H": 12, "W": 20}[size] for size in shape[1:]]
    return reference_of(program, examples_of(images=tuple(sizes), theta=(2, 3)))


def unit(reference: Reference, name: str) -> list[float]:
    return reference.challenges[name].units["site0/grid"].tolist()


def test_grids_are_in_pixels_of_the_sampled_image():
    reference = warped(("N", 1, 24, 94))
    assert unit(reference, "examples ×1") == [47.0, 12.0]
    assert unit(warped(("N", 1, 24, 94), align_corners=True), "noise ×64") == [46.5, 11.5]
    identity = reference.challenges["theta identity"].true["site0/grid"][0]
    np.testing.assert_allclose(identity[0, :3], [[-46.5, -11.5], [-45.5, -11.5], [-44.5, -11.5]])
    third = reference.challenges["theta a third of a pixel right"].true["site0/grid"][0]
    np.testing.assert_allclose(third - identity, np.broadcast_to([1 / 3, 0.0], third.shape), atol=1e-5)
    assert reference.points["site0/grid"].scale == 47 / 16


def test_pixels_follow_an_open_size():
    reference = warped(("N", 1, "H", "W"))
    assert unit(reference, "examples ×1") == [10.0, 6.0]
    assert (unit(reference, "smaller size"), unit(reference, "larger size")) == ([7.5, 4.5], [12.5, 7.5])


def test_every_site_is_forced_by_itself():
    reference = reference_of(ZOO["TwoSteps"].program(), ZOO["TwoSteps"].examples())
    one, two = (reference.challenges[f"{site}/theta upside down"].true for site in ("site0", "site1"))
    upside_down = [[1, 0, 0], [0, -1, 0]]
    assert one["site0/theta"][0].tolist() == two["site1/theta"][3].tolist() == upside_down
    usual = reference.challenges["examples ×7"].true
    np.testing.assert_array_equal(two["site0/grid"][:7], usual["site0/grid"])
    assert np.abs(one["site1/theta"][:7] - usual["site1/theta"]).max() > 0.1  # what comes later is not forced


def test_rows_of_several_heads_belong_to_one_example():
    points = reference_of(ZOO["DeformableAttention"].program(), ZOO["DeformableAttention"].examples()).points
    assert {name: point.rows for name, point in points.items()} == {
        **{f"site{site}/{kind}": 2 for site in range(3) for kind in ("grid", "warped")},
        "attended": 1,
    }


class Several(nn.Module):
    """Outputs of every kind: one example's own, mixed over the batch, not batched, whole numbers."""

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return values.exp(), values - values.mean(0), values.max(0).values, values.argmax(1)


def test_what_mixes_its_batch_is_noted_and_what_has_none_is_not():
    program = program_of(Several(), {"values": ("N", 5)}, ["own", "mixed", "whole batch", "best"])
    reference = reference_of(program, examples_of(values=(5,)))
    assert {name: point.rows for name, point in reference.points.items()} == {
        "own": 1,
        "mixed": 0,
        "whole batch": 0,
        "best": 1,
    }
    assert [note.split(" in ")[0] for note in reference.notes] == ["mixed mixes the examples of a batch"]
    assert [point.kind for point in reference.points.values()] == ["output"] * 3 + ["count"]


def test_scales_are_those_of_the_examples():
    program = program_of(Several(), {"values": ("N", 5)}, ["own", "mixed", "whole batch", "best"])
    reference = reference_of(program, examples_of(values=torch.linspace(0, 3, 50).view(10, 5)))
    assert reference.points["own"].scale == pytest.approx(np.exp(3), rel=1e-6)
    bound = reference.points["own"].bound(FP32)
    assert bound.absolute == max(
        FP32.output.absolute * reference.points["own"].scale, 4 * reference.points["own"].eager_error
    )


def test_behind_the_nearest_pixel_some_elements_may_be_anything():
    reference = warped(("N", 1, 12, 20), mode="nearest")
    assert [point.steady for point in reference.points.values()] == [True, True, False, False]
    challenge = reference.challenges["examples ×64"]
    assert challenge.strays(reference.points["site0/warped"], FP32) == np.ceil(0.002 * 64 * 240)
    assert challenge.strays(reference.points["site0/grid"], FP32) == 0
    assert reference.points["warped"].eager_error < 1e-3  # another pixel of float32 eager's does not make the bound


class Refusing(nn.Module):
    """Takes no other size than that of its weight, and gives no number for dark values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 1, 12, 20))

    def forward(self, images: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)), (pose - 0.5).log()


def test_what_is_not_finite_in_pytorch_itself_is_noted():
    program = program_of(Refusing(), {"images": ("N", 1, 12, 20), "pose": ("N", 2)}, ["mean", "log"])
    reference = reference_of(program, examples_of(images=(1, 12, 20), pose=torch.linspace(0.6, 0.9, 20).view(10, 2)))
    assert reference.notes == ()
    reference = reference_of(program, examples_of(images=(1, 12, 20), pose=torch.linspace(0.1, 0.9, 20).view(10, 2)))
    assert reference.notes[0] == "examples ×1: log not compared: empty, or not finite in PyTorch itself"
    assert set(reference.challenges["examples ×257"].true) == {"mean", "log"}  # some are finite: these are compared


def test_a_size_that_the_network_cannot_take_is_noted(monkeypatch: pytest.MonkeyPatch):
    program = program_of(Warp(), {"images": ("N", 1, "H", "W"), "theta": ("N", 2, 3)}, ["warped"])
    exact, usual = program.exact, program.exact.points

    def picky(values: tuple[Tensor, ...], *others: object) -> dict[str, Tensor]:
        assert values[0].shape[-1] != 15
        return usual(values, *others)

    monkeypatch.setattr(exact, "points", picky)
    reference = reference_of(program, examples_of(images=(1, 12, 20), theta=(2, 3)))
    assert reference.notes == ("smaller size: the network itself cannot take it (AssertionError)",)
    assert "larger size" in reference.challenges


def test_the_output_that_predicts_is_told_by_its_classes():
    glimpses, pyramid = ZOO["Glimpses"], ZOO["Pyramid"]
    assert scored_output(pyramid.program().contract, pyramid.examples()).name == "log_probs"
    assert scored_output(glimpses.program().contract, glimpses.examples()) is None  # no labels
    contract = program_of(Several(), {"values": ("N", 5)}, ["own", "mixed", "whole batch", "best"]).contract
    assert scored_output(contract, examples_of(labels=torch.arange(10) % 5, values=(5,))).name == "own"
    assert scored_output(contract, examples_of(labels=torch.arange(10), values=(5,))) is None  # more classes than that


def test_all_examples_are_run_in_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stn_export.verify.oracle.PART", 4)
    reference = warped(("N", 1, 12, 20))
    assert [len(part["warped"]) for part in reference.parts] == [4, 4, 2]
    whole = np.concatenate([part["site0/grid"] for part in reference.parts])
    np.testing.assert_allclose(whole[:7], reference.challenges["examples ×7"].true["site0/grid"], atol=1e-5)
    assert whole.dtype == np.float32


def test_a_fixed_batch_is_filled_up_and_cut_again():
    program = program_of(Warp(), {"images": (4, 1, 12, 20), "theta": (4, 2, 3)}, ["warped"])
    reference = reference_of(program, examples_of(images=(1, 12, 20), theta=(2, 3)))
    assert [len(part["warped"]) for part in reference.parts] == [4, 4, 2]
