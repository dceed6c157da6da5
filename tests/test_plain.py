"""Files are as plain as can be, and compute what they did before to the bit."""

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from stn_export.export import finish
from stn_export.export.onnx import export_onnx, to_onnx
from stn_export.onnx_graph.model import attribute, walk
from tests.exports import exported, marked
from tests.sweeps import swept
from tests.test_onnx_export import LOWERINGS, run, session_of
from tests.zoo import ZOO

TEXT = """<ir_version: 9, opset_import: ["" : 18]>
graph (float[batch, 2, 3] images) => (float[batch, 6] flat, float[batch, 0, 4] none)
    <int64[2] wide = {-1, 6}, int64[3] zero = {0, 0, 4}, float[batch, 6] inner> {
    one = Constant<value = float {1.0}> ()
    inner = Reshape<allowzero = 1> (images, wide)
    flat = Add (inner, one)
    none = Reshape<allowzero = 1> (images, zero)
}"""


def checked(model: onnx.ModelProto) -> None:
    nodes = list(walk(model.graph))
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert not {"Constant", "IsNaN"} & {node.op_type for node in nodes}
    for node in nodes:
        if node.op_type == "Reshape" and attribute(node, "allowzero", 0):
            assert 0 in constants[node.input[1]]
    assert all(name.isascii() for node in nodes for name in (node.name, *node.input, *node.output))
    made = {name for node in nodes for name in node.output}
    assert not made & {value.name for value in model.graph.value_info}


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("name", swept(("TwoSteps", "Pyramid", "Glimpses"), "TwoSteps"))
def test_a_plain_file_gives_the_same_to_the_bit(name: str, lowering: str, monkeypatch: pytest.MonkeyPatch):
    model = exported(name, lowering)
    checked(model)
    monkeypatch.setattr(finish, "PASSES", ())
    before = session_of(to_onnx(marked(name), lowering))
    for count in (1, 3):
        values = ZOO[name].values(count)
        for actual, expected in zip(run(session_of(model), values), run(before, values), strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_each_pass_does_what_it_says_and_no_more():
    model = onnx.parser.parse_model(TEXT)
    for node in model.graph.node:
        node.output[0] = node.output[0].replace("inner", "größe")
        node.input[:] = [name.replace("inner", "größe") for name in node.input]
    model.graph.value_info[0].name = "größe"
    found = onnx_ir.from_proto(model)
    finish.plain(found)
    result = onnx_ir.to_proto(found)
    checked(result)
    assert [node.op_type for node in result.graph.node] == ["Reshape", "Add", "Reshape"]
    assert [attribute(node, "allowzero", 0) for node in result.graph.node] == [0, 0, 1]
    assert result.graph.node[0].output[0] == "gr_xf6_xdfe"
    assert result.graph.output == model.graph.output


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_coordinates_that_are_no_numbers_are_sampled_as_pytorch_does(mode: str):
    class Given(nn.Module):
        def forward(self, images: Tensor, grid: Tensor) -> Tensor:
            return F.grid_sample(images, grid, mode=mode, align_corners=False)

    model = export_onnx(Given().eval(), (torch.rand(2, 1, 5, 6), torch.rand(2, 3, 4, 2)), lowering="gather")
    assert "IsNaN" not in {node.op_type for node in model.graph.node}
    images, grid = torch.rand(2, 1, 5, 6), 2 * torch.rand(2, 3, 4, 2) - 1
    grid[0, 0, 0, 0], grid[1, 2, 1] = torch.nan, torch.tensor([torch.inf, 1e30])
    [actual] = run(session_of(model), (images, grid))
    np.testing.assert_allclose(actual, Given()(images, grid).numpy(), atol=1e-6, equal_nan=True)
