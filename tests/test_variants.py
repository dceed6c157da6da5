"""Half precision as a pass over any network's graph, and which ONNX nodes int8 leaves alone."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from stn_export.errors import UserError
from stn_export.export.precision import at_precision, quantise, sensitive_nodes
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from tests.exports import exported, network
from tests.runs import built_in
from tests.sweeps import swept
from tests.zoo import ZOO

CASTS = torch.ops.aten.to.dtype
HALVED = {  # of each network: how many layers compute in half
    "stn": 4 + 2,
    "cnn": 2 + 2,
    "GreyDigits": 2 + 1,
    "PlateRectifier": 3,
    "TwoSteps": 3 + 1,
    "DeformableAttention": 3,
    "Homography": 1,
    "Pyramid": 5 + 1,
    "Glimpses": 1 + 3,
    "NoSampler": 2 + 1,
}
GRID_PIXELS = {"fp16": 0.002, "bf16": 0.02}  # mean error of a grid


def layers(module: GraphModule) -> Counter:
    """How many convolutions and linear layers read weights of which type."""
    weights = (
        dict(module.state_dict())[node.all_input_nodes[1].target]
        for node in module.graph.nodes
        if "conv" in str(node.target) or "linear" in str(node.target)
    )
    return Counter(weight.dtype for weight in weights)


@pytest.mark.parametrize("name", swept(HALVED, "stn", "TwoSteps"))
def test_layers_compute_in_half_and_what_leads_to_a_grid_stays_close(name: str):
    own = network(name)
    values = ZOO[name].values(16) if name in ZOO else (torch.rand(16, 3, 32, 32) * 2 - 1,)
    exact = own.points(values)
    half = own.recaptured(at_precision(own, "fp16"))
    assert layers(half.module)[torch.float16] == HALVED[name]
    assert layers(own.module)[torch.float16] == 0  # which shares its weights with nobody's halves
    for precision, worst in GRID_PIXELS.items():
        points = own.recaptured(at_precision(own, precision)).points(values)
        for spec in own.contract.outputs:
            assert points[spec.name].dtype == exact[spec.name].dtype
        for site in own.sites:
            assert points[site.point("grid")].dtype == torch.float32
            sides = torch.tensor(site.image_shape[:1:-1]) / 2
            error = (points[site.point("grid")] - exact[site.point("grid")]).abs() * sides
            assert error.mean() < worst


def test_casts_stand_at_borders_only():
    module = at_precision(built_in("stn"), "fp16")
    casts = [node for node in module.graph.nodes if node.target is CASTS]
    assert [node.args[1] for node in casts] == [torch.float16, torch.float32] * 2  # in and out of both halves
    assert {user.name for node in casts[2:3] for user in node.users} == {"conv2d_2"}


def test_weights_that_float32_reads_too_are_kept_and_converted_on_the_way():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.layer(values) * self.layer.weight.sum()

    captured = capture(Shared().eval(), (torch.rand(2, 4),), [("N", 4)])
    own = Program(captured.exported, contract_of(captured.exported, captured.shapes))
    module = at_precision(own, "fp16")
    assert {name: value.dtype for name, value in module.state_dict().items()} == {
        "layer.weight": torch.float32,
        "layer.bias": torch.float16,
    }
    values = torch.rand(3, 4)
    torch.testing.assert_close(module(values)[0], own.module(values)[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["TextRectifier", "FlowWarp"])
def test_a_network_whose_every_layer_leads_to_a_grid_has_no_half(name: str):
    with pytest.raises(UserError, match="no layer of it may compute in bf16"):
        at_precision(network(name), "bf16")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("GreyDigits", {"Gemm": 2, "MatMul": 1, "GridSample": 1}),  # before theta, before the classes, the base grid
        ("TwoSteps", {"Gemm": 3, "MatMul": 3, "GridSample": 2}),  # one product composes the thetas
        ("FlowWarp", {"Conv": 1, "GridSample": 1}),
    ],
)
def test_int8_leaves_alone_what_precision_hangs_on(name: str, kept: dict[str, int]):
    model = exported(name)
    names = sensitive_nodes(model)
    found = Counter(node.op_type for node in model.graph.node if node.name in names)
    assert {kind: found[kind] for kind in ("Conv", "Gemm", "MatMul", "GridSample") if found[kind]} == kept


def test_a_network_without_other_layers_has_no_int8():
    with pytest.raises(UserError, match="the network has no layer that can be quantised to int8"):
        quantise(exported("FlowWarp"), [])
