import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stn_export.errors import UserError
from stn_export.export.lowerings import base_grid, matmul


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed for unit-size grids")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 94), (1, 5), (7, 1)])
def test_the_base_grid_is_pytorchs(height: int, width: int, align_corners: bool):
    theta = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    expected = F.affine_grid(theta, [1, 1, height, width], align_corners=align_corners)
    base = base_grid(height, width, align_corners=align_corners)
    np.testing.assert_array_equal(base[:2].T.reshape(1, height, width, 2), expected.numpy())
    assert base.dtype == np.float32
    assert (base[2] == 1).all()


def test_volumes_of_open_sizes_are_refused():
    with pytest.raises(UserError, match="volumes of open sizes"):
        matmul(None, [2, 3, "D", 8, 8])
