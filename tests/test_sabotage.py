"""Defects planted into good artifacts: each must be caught, at the right point, by a message that names it.

Most are a differently built module exported as if it were the real one; the rest are edits of the ONNX file, of the
manifest, or of the runner.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from stn_export.artifacts.files import sha256_of
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.errors import UserError
from stn_export.export.folding import fold_linear
from stn_export.export.lowering import base_grid
from stn_export.export.onnx_export import export_onnx
from stn_export.runners import RUNNERS, OnnxRuntime, RunnerSpec
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset
from stn_export.train.networks import build_model
from stn_export.verify import challenges, checks
from stn_export.verify.challenges import THETAS
from stn_export.verify.checks import Truth, check_artifact, truth_of

ONNX = next(spec for spec in RUNNERS if spec.name == "onnxruntime-cpu")
EXAMPLE = torch.zeros(2, 3, 32, 32)


class Variant(nn.Module):
    """The real network with one step done differently."""

    def __init__(self, model: nn.Module, **changes: Callable) -> None:
        super().__init__()
        self.model, self.changes = model, changes

    def step(self, name: str, value: Tensor) -> Tensor:
        return self.changes.get(name, lambda value: value)(value)

    def forward(self, images: Tensor) -> Tensor:
        images = self.step("images", images)
        theta = self.step("theta", self.model.transformer.theta(images))
        align = self.changes.get("grid_align", False)
        grid = self.step("grid", F.affine_grid(theta, images.shape, align_corners=align))
        options = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": False} | self.changes.get(
            "sampler", {}
        )
        warped = self.step("warped", F.grid_sample(images, grid, **options))
        classifier = self.model.classifier
        logits = self.step("logits", classifier.head(classifier.features(warped)))
        return self.changes.get("output", lambda x: F.log_softmax(x, 1))(logits)


def weights(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], nn.Module]:
    """A copy of the model with its weights changed."""

    def build(model: nn.Module) -> nn.Module:
        changed = copy.deepcopy(model)
        with torch.no_grad():
            change(changed)
        return changed

    return build


def variant(**changes: object) -> Callable[[nn.Module], nn.Module]:
    return lambda model: Variant(model, **changes).eval()


def nudge(model: nn.Module) -> None:
    model.classifier.head[0].weight[3, np.abs(model.classifier.head[0].weight[3].numpy()).argmax()] += 1e-3


def drop_bias(model: nn.Module) -> None:
    model.transformer.localisation[0].bias.zero_()


def swap_channels(model: nn.Module) -> None:
    weight = model.transformer.localisation[0].weight
    weight.copy_(weight.flip(1))


def retrain(model: nn.Module) -> None:
    torch.manual_seed(9)
    model.load_state_dict({name: value + 0.02 * torch.randn_like(value) for name, value in model.state_dict().items()})


def swapped(grid: Tensor) -> Tensor:
    return grid.flip(-1)


def transposed(theta: Tensor) -> Tensor:
    return torch.cat([theta[:, :, :2].transpose(1, 2), theta[:, :, 2:]], 2)


def reordered(logits: Tensor) -> Tensor:
    return logits[:, [1, 0, *range(2, 10)]]


def off_by_half(theta: Tensor) -> Tensor:
    return torch.cat([theta[:, :, :2], theta[:, :, 2:] - theta[:, :, :2].sum(2, keepdim=True) / 32], 2)


@dataclass(frozen=True)
class Defect:
    """A defect, how to plant it, and words that the verdict must contain."""

    name: str
    says: tuple[str, ...]
    module: Callable[[nn.Module], nn.Module] | None = None
    edit: Callable[[onnx.ModelProto], None] | None = None


def edit_output(op: str) -> Callable[[onnx.ModelProto], None]:
    """Put a node behind the output."""

    def edit(model: onnx.ModelProto) -> None:
        last = next(node for node in model.graph.node if node.output[0] == "log_probs")
        last.output[0] = "real"
        model.graph.node.append(helper.make_node(op, ["real"], ["log_probs"]))

    return edit


def rename_output(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.output[0] == "log_probs").output[0] = "scores"
    model.graph.output[0].name = "scores"


def constant_output(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if node.output[0] == "log_probs")
    last.output[0] = "real"
    nothing = numpy_helper.from_array(np.zeros((), np.float32), "nothing")
    same = numpy_helper.from_array(np.log(np.full(10, 0.1, np.float32)), "same")
    model.graph.initializer.extend([nothing, same])
    model.graph.node.append(helper.make_node("Mul", ["real", "nothing"], ["zeros"]))
    model.graph.node.append(helper.make_node("Add", ["zeros", "same"], ["log_probs"]))


def one_nan(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if node.output[0] == "log_probs")
    last.output[0] = "real"
    poison = np.zeros(10, np.float32)
    poison[7] = np.nan
    model.graph.initializer.append(numpy_helper.from_array(poison, "poison"))
    model.graph.node.append(helper.make_node("Add", ["real", "poison"], ["log_probs"]))


def nearest(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "mode":
                attribute.s = b"nearest"


def half_grid(model: onnx.ModelProto) -> None:
    sampler = next(node for node in model.graph.node if node.op_type == "GridSample")
    position = list(model.graph.node).index(sampler)
    nodes = [
        helper.make_node("Cast", [sampler.input[1]], ["grid16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["grid16"], ["grid32"], to=TensorProto.FLOAT),
    ]
    for offset, node in enumerate(nodes):
        model.graph.node.insert(position + offset, node)
    sampler.input[1] = "grid32"


DEFECTS = (
    Defect("align_corners flipped in the grid", ("grid", "align_corners is True"), variant(grid_align=True)),
    Defect(
        "align_corners flipped in the sampler",
        ("warped", "align_corners is True"),
        variant(sampler={"align_corners": True}),
    ),
    Defect("nearest", ("warped", "nearest"), variant(sampler={"mode": "nearest"})),
    Defect("bicubic", ("warped", "bicubic"), variant(sampler={"mode": "bicubic"})),
    Defect("border padding", ("warped", "padding is border"), variant(sampler={"padding_mode": "border"})),
    Defect("reflection padding", ("warped", "padding is reflection"), variant(sampler={"padding_mode": "reflection"})),
    Defect("x and y swapped", ("grid", "x and y are swapped"), variant(grid=swapped)),
    Defect("theta transposed", ("theta is transposed",), variant(theta=transposed)),
    Defect("base grid half a pixel off", ("half a pixel off",), variant(theta=off_by_half)),
    Defect("one weight moved by 1e-3", ("weights: classifier.head.0.weight is 1.0e-03 off at (3,",), weights(nudge)),
    Defect("one bias dropped", ("theta", "usually other weights"), weights(drop_bias)),
    Defect("a channel swapped in the weights", ("weights: transformer.localisation.0.weight",), weights(swap_channels)),
    Defect("channels swapped in the images", ("theta", "red and blue"), variant(images=lambda x: x.flip(1))),
    Defect("normalisation doubled", ("theta", "normalised twice"), variant(images=lambda x: (x - 0.5) / 0.5)),
    Defect("normalisation left out", ("theta", "not normalised"), variant(images=lambda x: x * 0.5 + 0.5)),
    Defect("softmax for log-softmax", ("log_probs", "softmax was written"), variant(output=lambda x: x.softmax(1))),
    Defect("raw logits", ("log_probs",), variant(output=lambda x: x)),
    Defect(
        "another class order",
        ("the classes are in the order 1, 0, 2",),
        variant(logits=lambda x: x[:, [1, 0, *range(2, 10)]]),
    ),
    Defect("weights of another training", ("weights", "other weights"), weights(retrain)),
    Defect("a half-precision grid", ("grid", "precision"), edit=half_grid),
    Defect("linear sampling read as nearest", ("warped", "nearest"), edit=nearest),
    Defect("a constant output", ("log_probs",), edit=constant_output),
    Defect("an output renamed", ("log_probs",), edit=rename_output),
    Defect("the sign turned", ("log_probs", "sign is turned"), edit=edit_output("Neg")),
    Defect("NaN in one output", ("log_probs", "not finite"), edit=one_nan),
)


@pytest.fixture(scope="module")
def model(trained_run: Path) -> nn.Module:
    return load_checkpoint(trained_run / "stn" / "checkpoint.pt").model


@pytest.fixture(scope="module")
def truth(model: nn.Module, small: Dataset) -> Truth:
    return truth_of(model, small)


def verdict(directory: NetworkDirectory, truth: Truth, model: onnx.ModelProto, spec: RunnerSpec = ONNX) -> str:
    """What verification says of a model that pretends to be the matmul artifact."""
    artifact = directory.artifacts["matmul-fp32"]
    path = directory.path / artifact.file
    onnx.save(model, path)
    return check_artifact(replace(artifact, sha256=sha256_of(path)), path, spec, truth).failure


def plant(defect: Defect, model: nn.Module) -> onnx.ModelProto:
    built = defect.module(model) if defect.module else model
    exported = export_onnx(built, EXAMPLE, lowering="matmul", input_names=["images"], output_names=["log_probs"])
    if defect.edit:
        defect.edit(exported)
    return exported


caught: set[str] = set()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_is_caught_and_named(defect: Defect, stn: NetworkDirectory, model: nn.Module, truth: Truth):
    failure = verdict(stn, truth, plant(defect, model))
    assert failure, f"{defect.name} was not caught"
    for words in defect.says:
        assert words in failure
    caught.add(defect.name)


def test_a_frozen_batch_is_caught(stn: NetworkDirectory, model: nn.Module, truth: Truth):
    names = {"input_names": ["images"], "output_names": ["log_probs"]}
    frozen = export_onnx(model, EXAMPLE, dynamic_batch=False, **names)
    assert "images" in verdict(stn, truth, frozen)
    caught.add("batch frozen")


def test_a_runner_that_reverses_its_batch_is_caught(stn: NetworkDirectory, truth: Truth):
    class Reversing(OnnxRuntime):
        def points(self, images: np.ndarray) -> dict[str, np.ndarray]:
            return {"log_probs": super().points(images)["log_probs"][::-1]}

    artifact = stn.artifacts["matmul-fp32"]
    check = check_artifact(artifact, stn.open(artifact), replace(ONNX, load=Reversing), truth)
    assert "the batch is reversed" in check.failure
    caught.add("batch reversed")


def test_a_runner_that_mixes_its_batch_is_caught(stn: NetworkDirectory, truth: Truth):
    class Mixing(OnnxRuntime):
        def infer_impl(self, images: np.ndarray) -> np.ndarray:
            return super().infer_impl(images) + 0.01 * images.mean()

    artifact = stn.artifacts["matmul-fp32"]
    check = check_artifact(artifact, stn.open(artifact), replace(ONNX, load=Mixing), truth)
    assert "depends on its neighbours" in check.failure
    caught.add("batch mixed")


def test_an_empty_set_of_challenges_is_caught(stn: NetworkDirectory, truth: Truth):
    artifact = stn.artifacts["matmul-fp32"]
    nothing = replace(truth, challenges={}, forced={})
    assert check_artifact(artifact, stn.open(artifact), ONNX, nothing).failure
    caught.add("nothing compared")


def lie(stn: NetworkDirectory, **changes: object) -> None:
    stn.add(replace(stn.artifacts["matmul-fp32"], **changes))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("stale weights", {"parent_sha256": "0" * 64}, "stale"),
        ("a manifest that lies", {"sha256": "0" * 64}, "changed after it was written"),
        ("an artifact of another run", {"file": "../../elsewhere.onnx"}, "missing"),
    ],
)
def test_a_manifest_that_lies_is_caught(stn: NetworkDirectory, name: str, changes: dict, says: str):
    lie(stn, **changes)
    with pytest.raises(UserError, match=says):
        stn.expected()
    caught.add(name)


def test_every_defect_was_caught():
    total = len(DEFECTS) + 7
    print(f"\nsabotage: {len(caught)} of {total} caught and attributed")
    assert len(caught) == total or len(caught) == 0  # 0: this test was chosen alone


def random_network(seed: int) -> nn.Module:
    """A network whose theta depends on its input, which a fresh one's does not; every other magnifies roundings."""
    torch.manual_seed(seed)
    network = build_model("stn").eval().requires_grad_(False)
    steep = seed % 2
    nn.init.normal_(network.transformer.regressor[-1].weight, std=0.2 if steep else 0.05)
    for weight in (each for each in network.classifier.parameters() if each.ndim > 1):
        weight.mul_(4.0 if steep else 1.0)
    return network


def swap_weights(model: onnx.ModelProto, network: nn.Module) -> onnx.ModelProto:
    """The same graph with the parameters of another network; a folded layer is folded anew."""
    values = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    last = network.transformer.regressor[-1]
    folded = fold_linear(base_grid(32, 32, False), last.weight.numpy().T, last.bias.numpy())
    values |= {"affine_grid_generator.weight": folded[0], "affine_grid_generator.bias": folded[1]}
    swapped_model = onnx.ModelProto()
    swapped_model.CopyFrom(model)
    for tensor in swapped_model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))
    return swapped_model


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["matmul", "folded", "affinegrid", "decomposed", "gather"])
def test_no_false_alarm_over_random_networks(
    lowering: str, stn: NetworkDirectory, small: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """40 initialisations a lowering, 200 in all: the exported graph with other weights must pass."""
    monkeypatch.setattr(challenges, "VERIFY_BATCHES", (1, 7))
    monkeypatch.setattr(challenges, "NOISE_BATCHES", (8,))
    monkeypatch.setattr(checks, "THETAS", {name: THETAS[name] for name in ("turned by 30°", "scale 10")})
    exported = export_onnx(
        random_network(0), EXAMPLE, lowering=lowering, input_names=["images"], output_names=["log_probs"]
    )
    few = replace(small, test=type(small.test)(small.test.images[:32], small.test.labels[:32]))
    artifact = replace(stn.artifacts["matmul-fp32"], lowering=lowering)
    path = stn.path / "other.onnx"
    for seed in range(40):
        network = random_network(seed)
        onnx.save(swap_weights(exported, network), path)
        failure = check_artifact(artifact, path, ONNX, truth_of(network, few)).failure
        assert not failure, f"seed {seed}: {failure}"
