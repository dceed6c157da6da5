import torch

from stn_export.train.digits import draw_digits


def test_one_seed_gives_one_set():
    first, second, other = draw_digits(200, 3), draw_digits(200, 3), draw_digits(200, 4)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_shape_type_and_balance():
    images, labels = draw_digits(500, 0)
    assert images.shape == (500, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.bincount().tolist() == [50] * 10


def test_every_image_shows_a_digit_in_contrast():
    images, _ = draw_digits(300, 0)
    spread = images.float().flatten(1).std(1)
    assert spread.min() > 10
