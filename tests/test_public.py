"""No module is lost that PyTorch's own exporter manages: every lowering, equal in ONNX Runtime."""

import warnings

import numpy as np
import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree

from stn_export.export.onnx import export_onnx
from stn_export.program.specs import call_of
from tests.public import PUBLIC, built
from tests.test_onnx_export import LOWERINGS, session_of

QUICK = {("BilateralSlice", "gather"), ("SharedView", "matmul"), ("Rotated", "affinegrid"), ("StaticDecoder", "matmul")}
FIXED = {"StaticDecoder"}  # in its batch
DYNAMIC = {"BoxCrops": {"image": None, "boxes": {0: Dim.DYNAMIC}}}  # whose first input has no batch


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        (name, lowering) if (name, lowering) in QUICK else pytest.param(name, lowering, marks=pytest.mark.slow)
        for name in PUBLIC
        for lowering in LOWERINGS
    ],
)
def test_none_is_lost_and_each_is_equal(name: str, lowering: str):
    module, (arguments, keywords) = built(name), PUBLIC[name].example(2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        model = export_onnx(module, arguments, keywords, lowering=lowering, dynamic_shapes=DYNAMIC.get(name))
    session = session_of(model)
    opened = any(isinstance(size, str) for each in session.get_inputs() for size in each.shape)
    assert opened or name in FIXED
    assert opened or any("is fixed at 2" in str(each.message) for each in said)
    for count in (2, 1, 5) if opened else (2,):
        arguments, keywords = PUBLIC[name].example(count)
        fed = call_of(module, arguments, keywords)
        feeds = {each.name: value.numpy() for each, value in zip(session.get_inputs(), fed.tensors, strict=True)}
        with torch.no_grad():
            expected = _pytree.tree_leaves(module(*arguments, **keywords))
        for actual, wanted in zip(session.run(None, feeds), expected, strict=True):
            bound = 2e-5 * max(1.0, np.abs(wanted.double().numpy()).max())
            np.testing.assert_allclose(actual.astype(np.float64), wanted.double().numpy(), atol=bound, rtol=0)
