"""Theta taken apart, and what its parts mean on the screen."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stn_export.report.charts_training import Affine, Frame
from stn_export.train.data import affine_matrices
from stn_export.train.recipes import AffineRange

SQUARE = Frame(32, 32)
FRAMES = (SQUARE, Frame(24, 94), Frame(24, 94, align_corners=True), Frame(28, 28, align_corners=True))
IDENTITY = {"rotation": 0.0, "scale_x": 1.0, "scale_y": 1.0, "shear": 0.0, "shift_x": 0.0, "shift_y": 0.0}


def parts(**values: float) -> Affine:
    """One map: the identity but for these parts."""
    return Affine(**{name: torch.tensor([value], dtype=torch.double) for name, value in (IDENTITY | values).items()})


def compose(frame: Frame, parts: Affine) -> Tensor:
    """Theta, N×2×3, put together from its parts as ``Frame.decompose`` says."""
    angle, (across, down) = parts.rotation.deg2rad(), frame.half
    cosine, sine = angle.cos(), angle.sin()
    first = torch.stack([cosine, sine * across / down], dim=1) * parts.scale_x[:, None]
    second = torch.stack([(cosine * parts.shear - sine) * down / across, sine * parts.shear + cosine], dim=1)
    shift = torch.stack([parts.shift_x, parts.shift_y], dim=1) / frame.half
    return torch.stack([first, second * parts.scale_y[:, None], shift], dim=2)


def sample(image: Tensor, frame: Frame = SQUARE, **values: float) -> Tensor:
    """The H×W image as a transformer samples it through these parts."""
    align = frame.align_corners
    grid = F.affine_grid(compose(frame, parts(**values)).float(), [1, 1, *image.shape], align_corners=align)
    return F.grid_sample(image[None, None], grid, align_corners=align)[0, 0]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_any_map_is_put_together_again(frame: Frame):
    theta = torch.randn(2000, 2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    determinants = theta[:, :, :2].det()
    assert (determinants < 0).any()
    found = frame.decompose(theta)
    torch.testing.assert_close(compose(frame, found), theta, rtol=1e-9, atol=1e-9)
    assert (found.scale_x >= 0).all()
    assert torch.equal(found.scale_y < 0, determinants < 0)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_the_parts_come_back(frame: Frame):
    draw = torch.Generator().manual_seed(1)
    turn, x, y, shear, right, down = torch.rand(6, 500, dtype=torch.double, generator=draw)
    given = Affine(360 * turn - 180, 0.2 + x, 0.2 + y, 2 * shear - 1, 20 * right - 10, 20 * down - 10)
    found = frame.decompose(compose(frame, given)).as_dict()
    for name, values in given.as_dict().items():
        torch.testing.assert_close(found[name], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_the_identity_does_nothing(frame: Frame):
    theta = torch.eye(2, 3).double()[None]
    assert {name: value.item() for name, value in frame.decompose(theta).as_dict().items()} == IDENTITY
    inset = 0.5 if frame.align_corners else 0.0  # there a window ends in the middle of the outer pixels
    right, lower = frame.width - inset, frame.height - inset
    expected = torch.tensor([[inset, inset], [right, inset], [right, lower], [inset, lower]]).double()
    torch.testing.assert_close(frame.windows(theta)[0], expected)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_a_turn_keeps_distances_in_pixels_whatever_the_shape_of_the_image(frame: Frame):
    [corners] = frame.windows(compose(frame, parts(rotation=30)))
    whole = frame.windows(torch.eye(2, 3).double()[None])[0]
    torch.testing.assert_close(torch.cdist(corners, corners), torch.cdist(whole, whole))


@pytest.mark.parametrize("frame", [Frame(32, 24), Frame(32, 24, align_corners=True)], ids=str)
def test_pixels_are_those_of_the_image(frame: Frame):
    image = torch.rand(frame.height, frame.width, generator=torch.Generator().manual_seed(0))
    moved = sample(image, frame, shift_x=3, shift_y=1)
    torch.testing.assert_close(moved[:31, :21], image[1:, 3:], atol=1e-4, rtol=0)


def test_random_warps_are_turns_and_sizes_without_shear():
    found = SQUARE.decompose(affine_matrices(500, AffineRange(45, (0.5, 2.0), 5), 32, torch.device("cpu")))
    assert 40 < found.rotation.abs().max() <= 45
    assert found.shear.abs().max() < 1e-5
    torch.testing.assert_close(found.scale_x, found.scale_y)
    assert 0.5 <= found.scale_x.min() < found.scale_x.max() <= 2


def test_a_shift_moves_the_window_right_and_down(image: Tensor):
    torch.testing.assert_close(sample(image, shift_x=3, shift_y=1)[:31, :29], image[1:, 3:])
    assert SQUARE.windows(compose(SQUARE, parts(shift_x=3, shift_y=1)))[0, 0].tolist() == [3, 1]


def test_a_positive_rotation_shows_the_picture_turned_anticlockwise(image: Tensor):
    torch.testing.assert_close(sample(image, rotation=90), image.rot90(1), atol=1e-4, rtol=0)
    [corners] = SQUARE.windows(compose(SQUARE, parts(rotation=90)))
    torch.testing.assert_close(corners[0], torch.tensor([32.0, 0.0], dtype=torch.double))  # upper left goes upper right


def test_a_scale_of_half_is_a_window_half_as_large():
    assert SQUARE.windows(compose(SQUARE, parts(scale_x=0.5)))[0].tolist() == [[8, 0], [24, 0], [24, 32], [8, 32]]


def test_a_negative_scale_mirrors(image: Tensor):
    torch.testing.assert_close(sample(image, scale_y=-1), image.flip(0), atol=1e-5, rtol=0)
