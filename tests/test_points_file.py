"""What ``points.pt`` keeps of networks that do not sample the same number of points each time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export.verify.oracle import reference_of
from stn_export.verify.points_file import points_of
from tests.captured_modules import examples_of, program_of


class Peaks(nn.Module):
    """Samples a picture where it is bright: at another number of points in every picture."""

    def forward(self, images: Tensor) -> Tensor:
        places = (images[0, 0] > 0.8).nonzero()
        torch._check(places.shape[0] > 0)
        grid = (places / 5.0 - 1)[None, None]
        return F.grid_sample(images, grid, align_corners=True).mean((2, 3))


def test_pictures_of_other_sizes_each_time_are_not_kept():
    program = program_of(Peaks(), {"images": (1, 1, 8, 10)}, ["found"])
    reference = reference_of(program, examples_of(4, images=(1, 8, 10)))
    bright = (reference.examples.inputs["images"] > 0.8).sum((1, 2, 3))
    assert len(set(bright.tolist())) > 1
    kept = points_of(reference, [], "digest")
    assert kept
    assert "pictures" not in kept
    assert kept["sites"]["site0"]["image_size"] == [8, 10]
