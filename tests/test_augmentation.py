import pytest
import torch
import torch.nn.functional as F

from stn_export.train.data import affine_matrices, flip_and_crop, random_affine
from stn_export.train.recipes import AffineRange

IMAGES = torch.randint(1, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nothing_asked_for_changes_nothing():
    assert flip_and_crop(IMAGES, flip=False, crop=0) is IMAGES


def test_a_flip_gives_the_image_or_its_mirror_image():
    torch.manual_seed(0)
    flipped = flip_and_crop(IMAGES, flip=True, crop=0)
    same = (flipped == IMAGES).flatten(1).all(1)
    mirrored = (flipped == IMAGES.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_a_crop_is_a_shift_with_black_borders():
    torch.manual_seed(0)
    padded, seen = F.pad(IMAGES, (2, 2, 2, 2)), set()
    for image, whole in zip(flip_and_crop(IMAGES, flip=False, crop=2), padded, strict=True):
        shifts = [(y, x) for y in range(5) for x in range(5) if image.equal(whole[:, y : y + 32, x : x + 32])]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (AffineRange(0, (1, 1), 0), [[1, 0, 0], [0, 1, 0]]),
        (AffineRange(0, (0.5, 0.5), 0), [[2, 0, 0], [0, 2, 0]]),  # half as large: sampled twice as wide
    ],
)
def test_ranges_of_one_point_give_that_map(limits: AffineRange, expected: list[list[float]]):
    theta = affine_matrices(3, limits, 32, torch.device("cpu"))
    torch.testing.assert_close(theta, torch.tensor(expected, dtype=torch.float32).expand(3, 2, 3))


def test_maps_stay_in_their_range():
    limits = AffineRange(30, (0.5, 2), 4)
    theta = affine_matrices(2000, limits, 32, torch.device("cpu"), torch.Generator().manual_seed(0))
    linear = theta[:, :, :2]
    angles = torch.rad2deg(torch.atan2(linear[:, 1, 0], linear[:, 0, 0]))
    sizes = linear.det().sqrt().reciprocal()
    shifts = torch.linalg.solve(linear, theta[:, :, 2:])[..., 0] * 16
    assert 29 < angles.max() < 30.01
    assert -30.01 < angles.min() < -29
    assert 0.499 < sizes.min() < 0.52
    assert 1.97 < sizes.max() < 2.001
    assert 3.95 < shifts.abs().max() < 4.001


def test_the_identity_warps_nothing():
    assert random_affine(IMAGES, AffineRange(0, (1, 1), 0)).equal(IMAGES)


def test_one_generator_gives_one_warp():
    limits = AffineRange(45, (0.6, 1.1), 5)
    first, second, other = (random_affine(IMAGES, limits, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first.equal(second)
    assert not first.equal(other)
