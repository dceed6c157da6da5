"""The attribution of nodes to parts: it adds up to the whole, and every part is where it should be."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.bench.parts import PARTS, Timed, parts_of, summed
from stn_export.bench.profiling import profile_eager, profile_onnx
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset, contract_batch, example_images

TRANSFORMER = ("localisation", "grid", "sampler")
FLOAT_STN = ("matmul-fp32", "folded-fp32", "affinegrid-fp32", "decomposed-fp32", "gather-fp32", "default-fp32")
STN = (*FLOAT_STN, "folded-fp16", "matmul-int8", "folded-fp32-uint8", "folded-fp32-uint8-nhwc")


def check_whole(nodes: list[Timed]) -> dict[str, float]:
    parts = summed(nodes)
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == pytest.approx(sum(node.seconds for node in nodes))
    assert all(seconds >= 0 for seconds in parts.values())
    return parts


def batch_of(directory: NetworkDirectory, name: str, digits: Dataset) -> np.ndarray:
    return contract_batch(example_images(digits, 1), directory.artifacts[name].input_contract)


@pytest.mark.parametrize("name", STN)
def test_every_part_of_a_transformer_takes_time(stn: NetworkDirectory, digits: Dataset, name: str):
    nodes = profile_onnx(stn.path / f"{name}.onnx", batch_of(stn, name, digits), 3, 1)
    parts = check_whole(nodes)
    assert all(parts[part] > 0 for part in (*TRANSFORMER, "classifier")), parts
    operators = {part: {node.op for node in nodes if node.part == part} for part in PARTS}
    assert "LogSoftmax" in operators["classifier"]
    assert not any("Conv" in operator for part in ("grid", "sampler", "other") for operator in operators[part])
    assert ("GridSample" in operators["sampler"]) == (name != "gather-fp32")
    if name in FLOAT_STN:
        assert parts["other"] == 0


@pytest.mark.parametrize("name", ["plain-fp32", "plain-int8", "default-fp32"])
def test_a_plain_cnn_is_all_classifier(run: Path, digits: Dataset, name: str):
    cnn = NetworkDirectory(run / "cnn")
    parts = check_whole(profile_onnx(cnn.path / f"{name}.onnx", batch_of(cnn, name, digits), 3, 1))
    assert [parts[part] for part in (*TRANSFORMER, "other")] == [0, 0, 0, 0]
    assert parts["classifier"] > 0


@pytest.mark.parametrize("model", ["stn", "cnn"])
def test_eager_is_split_in_the_same_parts(run: Path, model: str):
    module = load_checkpoint(run / model / "checkpoint.pt").model
    nodes = profile_eager(module, torch.rand(1, 3, 32, 32), 3)
    parts = check_whole(nodes)
    assert parts["classifier"] > 0
    assert all((parts[part] > 0) == (model == "stn") for part in TRANSFORMER)
    where = {node.op: node.part for node in nodes if node.part in ("grid", "sampler")}
    expected = {"aten::affine_grid_generator": "grid", "aten::grid_sampler": "sampler"}
    assert where == (expected if model == "stn" else {})
    assert parts["other"] < 0.2 * sum(parts.values())


def test_what_several_parts_need_is_no_ones():
    """x -> cast, which both a localisation and a sampler read."""
    make = onnx.helper.make_node
    nodes = [
        make("Cast", ["x"], ["images"], "cast", to=1),
        make("Gemm", ["images", "a.regressor.2.weight"], ["theta"], "last"),
        make("Reshape", ["theta", "shape"], ["grid"], "grid"),
        make("GridSample", ["images", "grid"], ["warped"], "sample"),
        make("Relu", ["warped"], ["log_probs"], "relu"),
        make("Relu", ["log_probs"], ["unused"], "behind"),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], []))
    assert parts_of(model) == {
        "cast": "other",
        "last": "localisation",
        "grid": "grid",
        "sample": "sampler",
        "relu": "classifier",
        "behind": "other",
    }
