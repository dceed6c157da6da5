"""The attribution of nodes to parts: it adds up to the whole, and every part is where it should be."""

from pathlib import Path

import onnx
import pytest
import torch

from stn_export.bench.plan import GRIDS
from stn_export.bench.profiling import Profile, profile_program, profiled, sites_of
from stn_export.bench.targets import Target, find_targets
from stn_export.onnx_graph.points import SITES, steps_of
from stn_export.program.sites import PARTS, parts_of
from tests.runs import built_in
from tests.zoo import ZOO

TRANSFORMER = ("localisation", "grid", "sampler")
FLOAT_STN = ("matmul-fp32", "folded-fp32", "affinegrid-fp32", "decomposed-fp32", "gather-fp32", "default-fp32")
STN = (*FLOAT_STN, "folded-fp16", "matmul-int8", "folded-fp32-uint8", "folded-fp32-uint8-nhwc")


@pytest.fixture(scope="session")
def found(trained_run: Path) -> dict[str, Target]:
    return {str(each): each for each in find_targets(trained_run, "cpu")}


def check_whole(found: Profile) -> dict[str, float]:
    parts = found.facts()["breakdown"]
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(found.seconds)
    assert all(seconds >= 0 for seconds in parts.values())
    return parts


def operators_of(found: Profile, part: str) -> set[str]:
    return {node.op for node in found.nodes if node.part == part}


@pytest.mark.parametrize("name", STN)
def test_every_part_of_a_transformer_takes_time(found: dict[str, Target], name: str):
    profile = profiled(found[f"stn-onnxruntime-cpu-{name}"], 1, GRIDS["quick"])
    parts = check_whole(profile)
    assert all(parts.values()), parts
    assert profile.facts()["sites_shown"] == 1
    operators = {part: operators_of(profile, part) for part in PARTS}
    assert "LogSoftmax" in operators["rest"]
    assert any("Conv" in operator for operator in operators["localisation"])
    assert any("Gemm" in operator for operator in operators["localisation"])
    assert not any("Conv" in operator for part in ("grid", "sampler") for operator in operators[part])
    assert ("GridSample" in operators["sampler"]) == (name != "gather-fp32")
    assert ("Gemm" in operators["grid"]) == name.startswith("folded")  # which gives the grid itself
    if name.startswith("default"):
        assert {"Mul", "ReduceSum"} <= operators["grid"]


@pytest.mark.parametrize("name", ["onnxruntime-cpu-plain-fp32", "onnxruntime-cpu-default-fp32", "eager-cpu-program"])
def test_of_a_network_without_samplers_all_is_rest(found: dict[str, Target], name: str):
    profile = profiled(found[f"cnn-{name}"], 1, GRIDS["quick"])
    parts = check_whole(profile)
    assert [parts[part] for part in TRANSFORMER] == [0, 0, 0]
    assert parts["rest"] > 0
    assert profile.sites_shown == 0


def test_eager_is_split_in_the_same_parts():
    profile = profile_program(built_in("stn"), (torch.rand(1, 3, 32, 32),), 3)
    assert all(check_whole(profile).values())
    assert profile.sites_shown == 1
    assert "aten::affine_grid_generator" in operators_of(profile, "grid")
    assert operators_of(profile, "sampler") == {"aten::grid_sampler"}
    layers = {
        part: sum(node.op in ("aten::conv2d", "aten::linear") for node in profile.nodes if node.part == part)
        for part in PARTS
    }
    assert layers == {"localisation": 4, "grid": 0, "sampler": 0, "rest": 4}


def test_eager_says_that_it_was_the_captured_graph(found: dict[str, Target]):
    target = found["stn-eager-cpu-program"]
    profiled(target, 1, GRIDS["quick"])
    assert target.facts(1)["options"]["code"] == "the captured graph, node by node"
    assert target.facts(1)["sizes"] == {"images": [1, 3, 32, 32]}


def test_of_several_samplers_each_part_holds_those_of_all():
    foreign = ZOO["TwoSteps"]
    profile = profile_program(foreign.program(), foreign.values(3), 3)
    assert all(check_whole(profile).values())
    for part, operator in (("grid", "aten::affine_grid_generator"), ("sampler", "aten::grid_sampler")):
        assert sum(node.op == operator for node in profile.nodes if node.part == part) == 2


def graph(sites: str, theta: str = "theta") -> onnx.ModelProto:
    """x -> cast, which both a localisation and a sampler read."""
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["images"], "cast", to=1),
        make("Gemm", ["images", "w"], [theta], "last"),
        make("Reshape", [theta, "shape"], ["grid"], "grid"),
        make("GridSample", ["images", "grid"], ["warped"], "sample"),
        make("Relu", ["warped"], ["scores"], "relu"),
    ]
    outputs = [onnx.helper.make_tensor_value_info("scores", 1, None)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], outputs))
    onnx.helper.set_model_props(model, {SITES: sites})
    return model


ALL = '[{"image": "images", "theta": "theta", "grid": "grid", "warped": "warped"}]'
NO_THETA = '[{"image": "images", "grid": "grid", "warped": "warped"}]'


@pytest.mark.parametrize(
    ("model", "affine", "layer"),
    [
        (graph(ALL), True, "localisation"),
        (graph(NO_THETA), True, "localisation"),  # nobody named it: the last layer gives it
        (graph(NO_THETA, "grid.flat"), True, "localisation"),
        (graph(NO_THETA), False, "grid"),  # there is none: the grid is the layer's own
        ("[]", True, "rest"),
    ],
)
def test_what_several_parts_need_is_no_ones(model: onnx.ModelProto, affine: bool, layer: str):
    shown = not isinstance(model, str)
    model = model if shown else graph(model)
    sites = sites_of(model, [affine])
    assert len(sites) == shown
    assert parts_of(steps_of(model), sites, ["scores"]) == {
        "cast": "rest",
        "last": layer,
        "grid": "grid" if shown else "rest",
        "sample": "sampler" if shown else "rest",
        "relu": "rest",
    }


def test_a_layer_that_theta_was_folded_into_is_the_grids():
    model = graph(NO_THETA, "grid.flat")
    model.graph.node[1].input[1] = "grid.weight"
    parts = parts_of(steps_of(model), sites_of(model, [True]), ["scores"])
    assert (parts["last"], parts["grid"]) == ("grid", "grid")
