"""Defects planted into good artifacts of four networks: each must be caught, at the right point, by name.

The networks are the built-in one and three of other people's. Most defects are changes of the captured graph, as it is
and, of the built-in one, exported; the rest are edits of the ONNX file, of the manifest, or of the runner.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from stn_export.errors import UserError
from stn_export.export.lowerings import base_grid, fold_linear
from stn_export.export.marks import marked_program
from stn_export.export.onnx import to_onnx
from stn_export.onnx_graph.points import site_values
from stn_export.program.program import Program
from stn_export.program.sites import MODES, PADDINGS
from stn_export.program.specs import Arrays
from stn_export.run.manifest import MANIFEST, Artifact, NetworkDirectory
from stn_export.run.network import enter, write_examples
from stn_export.run.store import sha256_of
from stn_export.runners import RUNNERS, OnnxRuntime, RunnerSpec
from stn_export.train.networks import build_model
from stn_export.verify import challenges
from stn_export.verify import oracle as truths
from stn_export.verify.challenges import THETAS
from stn_export.verify.checks import check_artifact
from stn_export.verify.oracle import Reference, folded_weights, reference_of
from tests.exports import exported
from tests.runs import built_in, digits_examples
from tests.sweeps import swept
from tests.zoo import ZOO

SPECS = {spec.name: spec for spec in RUNNERS}
ONNX, PT2 = SPECS["onnxruntime-cpu"], SPECS["pt2-cpu"]
BUILT_IN, FOREIGN = "stn", ("PlateRectifier", "TwoSteps", "GreyDigits")


@dataclass(frozen=True)
class Subject:
    """A network in a run of its own, what it gives in float64, and its good artifact."""

    name: str
    directory: NetworkDirectory
    reference: Reference
    good: onnx.ModelProto

    @property
    def program(self) -> Program:
        return self.reference.program

    @property
    def artifact(self) -> Artifact:
        return self.directory.artifacts["matmul-fp32"]

    def verdict(self, model: onnx.ModelProto, spec: RunnerSpec = ONNX) -> str:
        """What verification says of a model that pretends to be the artifact."""
        path = self.directory.path / "pretending.onnx"
        onnx.save(model, path)
        return check_artifact(replace(self.artifact, sha256=sha256_of(path)), path, spec, self.reference).failure

    def verdict_of(self, program: Program) -> str:
        """The same for a program as it is; ``verdict`` of its export says it of a file."""
        path = self.directory.path / "pretending.pt2"
        path.write_bytes(program.to_bytes({}))
        return check_artifact(replace(self.artifact, format="pt2"), path, PT2, self.reference).failure


@pytest.fixture(scope="module", params=swept([BUILT_IN, *FOREIGN], BUILT_IN))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    name = request.param
    examples = digits_examples(100) if name == BUILT_IN else ZOO[name].examples()
    program = captured(name)
    directory = NetworkDirectory(tmp_path_factory.mktemp("sabotage") / name)
    parent = enter(directory, program, write_examples(directory.path.parent, examples), label=name)
    good = exported(name)
    path = directory.path / "matmul-fp32.onnx"
    onnx.save(good, path)
    known = {"format": "onnx", "lowering": "matmul", "contract": program.contract, "parent_sha256": parent.sha256}
    directory.add(Artifact("matmul-fp32", path.name, name, sha256=sha256_of(path), **known))
    directory.plan(("matmul-fp32",), {})
    return Subject(name, directory, reference_of(program, examples), good)


@dataclass
class Graph:
    """A copy of a network's graph to spoil; its last site is the one that most defects are planted at."""

    subject: Subject
    module: GraphModule = field(init=False)

    def __post_init__(self) -> None:
        self.module = copy.deepcopy(self.subject.program.module)
        self.site = self.subject.program.sites[-1]

    def node(self, name: str) -> Node:
        return next(node for node in self.module.graph.nodes if node.name == name)

    def called(self, operator: str) -> Node | None:
        found = [node for node in self.module.graph.nodes if operator in str(node.target)]
        return found[-1] if found else None

    def through(self, node: Node, change: Callable[[Tensor], Tensor]) -> None:
        """Let everyone behind a node read something else."""
        with self.module.graph.inserting_after(node):
            new = self.module.graph.call_function(change, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    def program(self) -> Program:
        self.module.recompile()
        return self.subject.program.recaptured(self.module)


GraphChange = Callable[[Graph], object]  # gives False where a network has nothing of the kind
Edit = Callable[[onnx.ModelProto, Subject], object]


def site_argument(index: int, value: object) -> GraphChange:
    """Another argument of the sampler; not one that it has already."""

    def change(graph: Graph) -> bool:
        node = graph.node(graph.site.warped)
        same = node.args[index] == value
        node.update_arg(index, value)
        return not same

    return change


def flip_sampler(graph: Graph) -> None:
    node = graph.node(graph.site.warped)
    node.update_arg(4, not node.args[4])


def flip_grid(graph: Graph) -> None:
    node = graph.node(graph.site.grid)
    node.update_arg(2, not node.args[2])


def on_theta(change: Callable[[Tensor], Tensor]) -> GraphChange:
    return lambda graph: graph.through(graph.node(graph.site.theta), change)


def on_images(change: Callable[[Tensor], Tensor], channels: int = 1) -> GraphChange:
    def spoil(graph: Graph) -> bool:
        node = graph.module.graph.find_nodes(op="placeholder")[0]
        graph.through(node, change)
        return node.meta["val"].shape[1] >= channels

    return spoil


def on_scores(change: Callable[[Tensor], Tensor]) -> GraphChange:
    """On what log-softmax reads."""

    def spoil(graph: Graph) -> bool:
        node = graph.called("log_softmax")
        if node is not None:
            graph.through(node.args[0], change)
        return node is not None

    return spoil


def instead_of_log_softmax(operator: Callable[..., Tensor] | None) -> GraphChange:
    def spoil(graph: Graph) -> bool:
        node = graph.called("log_softmax")
        if node is not None and operator is not None:
            node.target = operator
        elif node is not None:
            node.replace_all_uses_with(node.args[0])
        return node is not None

    return spoil


def swapped(grid: Tensor) -> Tensor:
    return grid.flip(-1)


def transposed(theta: Tensor) -> Tensor:
    return torch.cat([theta[:, :, :2].transpose(1, 2), theta[:, :, 2:]], 2)


def off_by_half(graph: Graph) -> None:
    height, width = graph.node(graph.site.grid).meta["val"].shape[1:3]

    def moved(theta: Tensor) -> Tensor:
        return torch.cat([theta[:, :, :2], theta[:, :, 2:] - theta[:, :, :1] / width - theta[:, :, 1:2] / height], 2)

    graph.through(graph.node(graph.site.theta), moved)


def reordered(scores: Tensor) -> Tensor:
    return scores[:, [1, 0, *range(2, scores.shape[1])]]


def initialisers(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Edit:
    """Other weights in the file."""

    def edit(model: onnx.ModelProto, subject: Subject) -> None:
        held = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        known = {name: held[name].copy() for name in subject.reference.weights[0] if name in held}
        put(model, change(known))

    return edit


def put(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name]), tensor.name))


def nudge(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = [name for name, value in weights.items() if value.ndim > 1 and len(value) > 3][-1]
    row = weights[name].reshape(len(weights[name]), -1)[3]
    row[np.abs(row).argmax()] += 1e-3
    return weights


def drop_bias(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = next(name for name in weights if name.endswith("bias"))
    return {name: np.zeros_like(weights[name])}


def swap_channels(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = next(name for name, value in weights.items() if value.ndim == 4)
    return {name: weights[name][::-1]}


def retrain(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(9)
    moved = {name: value + 0.02 * random.standard_normal(value.shape) for name, value in weights.items()}
    return {name: value.astype(np.float32) for name, value in moved.items()}


def behind_output(*nodes: tuple[str, str | np.ndarray], **attributes: object) -> Edit:
    """Put nodes behind the first output: operators of one input, or of it and a constant."""

    def edit(model: onnx.ModelProto, subject: Subject) -> None:
        name, before = model.graph.output[0].name, "planted0"
        for node in model.graph.node:
            node.input[:] = [before if each == name else each for each in node.input]
            node.output[:] = [before if each == name else each for each in node.output]
        for index, (operator, constant) in enumerate(nodes):
            inputs = [f"planted{index}"]
            if not isinstance(constant, str):
                model.graph.initializer.append(numpy_helper.from_array(constant, f"constant{index}"))
                inputs.append(f"constant{index}")
            output = name if index == len(nodes) - 1 else f"planted{index + 1}"
            model.graph.node.append(helper.make_node(operator, inputs, [output], **attributes))

    return edit


def one_nan(model: onnx.ModelProto, subject: Subject) -> None:
    shape = [1 if isinstance(size, str) else size for size in subject.program.contract.outputs[0].shape]
    poison = np.zeros(shape, np.float32)
    poison.flat[4] = np.nan
    behind_output(("Add", poison))(model, subject)


def rename_output(model: onnx.ModelProto, subject: Subject) -> None:
    behind_output(("Identity", ""))(model, subject)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "others"


def nearest(model: onnx.ModelProto, subject: Subject) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "mode":
                attribute.s = b"nearest"


def half_grid(model: onnx.ModelProto, subject: Subject) -> None:
    """What the first sampler reads has been half precision for a moment."""
    grid = site_values(model)[0]["grid"]
    position, maker = next((i, node) for i, node in enumerate(model.graph.node) if grid in node.output)
    maker.output[list(maker.output).index(grid)] = "whole"
    for offset, (source, result, kind) in enumerate(
        (("whole", "half", TensorProto.FLOAT16), ("half", grid, TensorProto.FLOAT))
    ):
        model.graph.node.insert(position + 1 + offset, helper.make_node("Cast", [source], [result], to=kind))


def freeze_batch(model: onnx.ModelProto, subject: Subject) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def unbiased(graph: Graph) -> None:
    first = next(node for node in graph.module.graph.nodes if "conv2d" in str(node.target))
    first.update_arg(2, None)


@dataclass(frozen=True)
class Defect:
    """A defect, how to plant it, and what the verdict must say.

    ``at`` is where it is first wrong: ``first/theta`` is that of the first site, ``output`` the first output. ``says``
    is a pattern.
    """

    name: str
    at: str
    says: str
    graph: GraphChange | None = None
    edit: Edit | None = None

    def expected(self, subject: Subject) -> str:
        """The pattern that the whole verdict has to match."""
        which, _, kind = self.at.partition("/")
        sites = {"first": subject.program.sites[0], "last": subject.program.sites[-1]}
        output = subject.program.contract.outputs[0].name
        point = subject.reference.called(sites[which].point(kind)) if kind else {"output": output}.get(which, which)
        return f"first wrong at {point}: .*{self.says}" if point else self.says

    def program(self, subject: Subject) -> Program | None:
        """The network with a changed graph; None where it has nothing of the kind."""
        graph = Graph(subject)
        return None if self.graph(graph) is False else graph.program()

    def verdict(self, subject: Subject) -> str | None:
        """What verification says of it; None where the network has nothing of the kind."""
        if self.graph:
            program = self.program(subject)
            return None if program is None else subject.verdict_of(program)
        model = onnx.ModelProto()
        model.CopyFrom(subject.good)
        self.edit(model, subject)
        return subject.verdict(model)


DEFECTS = (
    Defect("align_corners flipped in the grid", "last/grid", "align_corners is (True|False)", flip_grid),
    Defect("align_corners flipped in the sampler", "last/warped", "the sampler's align_corners is", flip_sampler),
    *(
        Defect(name, "last/warped", f"the interpolation is {name}", site_argument(2, MODES.index(name)))
        for name in ("nearest", "bicubic")
    ),
    *(
        Defect(f"{name} padding", "last/warped", f"the padding is {name}", site_argument(3, index))
        for index, name in enumerate(PADDINGS)
    ),
    Defect("x and y swapped", "last/grid", "x and y are swapped", lambda g: g.through(g.node(g.site.grid), swapped)),
    Defect("theta transposed", "last/theta", "theta is transposed", on_theta(transposed)),
    Defect("base grid half a pixel off", "last/theta", "half a pixel off", off_by_half),
    Defect("one weight moved by 1e-3", "weights", r"is 1.0e-03 off at \(3,", edit=initialisers(nudge)),
    Defect("one bias set to zero", "weights", "usually other weights", edit=initialisers(drop_bias)),
    Defect("one bias dropped", "first/theta", "usually other weights", unbiased),
    Defect("a channel swapped in the weights", "weights", "usually other weights", edit=initialisers(swap_channels)),
    Defect("weights of another training", "weights", "usually other weights", edit=initialisers(retrain)),
    Defect("channels swapped", "first/theta", "red and blue|in reverse order", on_images(lambda x: x.flip(1), 2)),
    Defect("normalisation doubled", "first/theta", "normalised twice", on_images(lambda x: (x - 0.5) / 0.5)),
    Defect("normalisation left out", "first/theta", "not normalised", on_images(lambda x: x * 0.5 + 0.5)),
    Defect(
        "softmax", "output", "softmax was exported instead of log", instead_of_log_softmax(torch.ops.aten.softmax.int)
    ),
    Defect("raw logits", "output", "log-softmax was left out", instead_of_log_softmax(None)),
    Defect("another class order", "output", "the classes are in the order 1, 0, 2", on_scores(reordered)),
    Defect("a half-precision grid", "first/grid", "precision", edit=half_grid),
    Defect("linear sampling read as nearest", "first/warped", "the interpolation is nearest", edit=nearest),
    Defect("a constant output", "output", "off", edit=behind_output(("Mul", np.float32(0)), ("Add", np.float32(-2)))),
    Defect("an output renamed", "", "log_probs|characters|scores", edit=rename_output),
    Defect("the sign turned", "output", "the sign is inverted", edit=behind_output(("Neg", ""))),
    Defect("NaN in one output", "output", "not finite", edit=one_nan),
    Defect("a frozen batch", "", "images|plates", edit=freeze_batch),
)
CHANGES = {defect.name: defect for defect in DEFECTS if defect.graph}
# What a network has nothing of, or is anyway.
INAPPLICABLE = {
    BUILT_IN: ("zeros padding",),
    "PlateRectifier": ("border padding",),
    "TwoSteps": ("reflection padding", "softmax", "raw logits", "another class order"),
    "GreyDigits": ("zeros padding", "channels swapped"),
}


def is_named(failure: str | None, pattern: str) -> bool:
    """Whether a planted defect was caught and named."""
    return bool(re.search(pattern, failure or "", re.DOTALL))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_planted_defect_is_caught_and_named(defect: Defect, subject: Subject):
    failure = defect.verdict(subject)
    assert (failure is None) == (defect.name in INAPPLICABLE[subject.name])
    assert failure is None or is_named(failure, defect.expected(subject)), failure


@pytest.mark.parametrize("subject", [BUILT_IN], indirect=True)
@pytest.mark.parametrize("name", swept(CHANGES, "align_corners flipped in the grid", "theta transposed", "raw logits"))
def test_a_planted_defect_is_caught_and_named_in_a_file_exported_from_it(name: str, subject: Subject):
    """As if the changed graph were the real one, through the exporter."""
    program = CHANGES[name].program(subject)
    assert (program is None) == (name in INAPPLICABLE[BUILT_IN])
    if program is not None:
        failure = subject.verdict(to_onnx(marked_program(program), "matmul"))
        assert is_named(failure, CHANGES[name].expected(subject)), failure


def test_the_good_artifact_passes(subject: Subject):
    assert not subject.verdict(subject.good)


def answered(subject: Subject, runner: type[OnnxRuntime], **changes: object) -> str:
    spec, known = replace(ONNX, load=runner), replace(subject.reference, **changes)
    return check_artifact(subject.artifact, subject.directory.open(subject.artifact), spec, known).failure


def test_a_runner_that_reverses_its_batch_is_caught(subject: Subject):
    class Reversing(OnnxRuntime):
        def points(self, feeds: Arrays) -> Arrays:
            return {name: value[::-1] for name, value in self.infer(feeds).items()}

    output = subject.program.contract.outputs[0].name
    assert is_named(answered(subject, Reversing), f"first wrong at {output}: .*the batch is reversed")


def test_a_runner_that_mixes_its_batch_is_caught(subject: Subject):
    class Mixing(OnnxRuntime):
        def infer_impl(self, feeds: Arrays) -> Arrays:
            mean = 0.01 * next(iter(feeds.values())).mean()
            return {name: value + mean for name, value in super().infer_impl(feeds).items()}

    assert is_named(answered(subject, Mixing), "depends on its neighbours")


def test_an_empty_set_of_challenges_is_caught(subject: Subject):
    assert is_named(answered(subject, OnnxRuntime, challenges={}), "there was nothing to compare")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parent_sha256": "0" * 64}, "stale"),
        ({"sha256": "0" * 64}, "changed after it was written"),
        ({"file": "../../elsewhere.onnx"}, "is no name of a file beside it"),
    ],
    ids=["stale weights", "a manifest that lies", "an artifact of another run"],
)
def test_a_manifest_that_lies_is_caught(subject: Subject, changes: dict, says: str):
    manifest = subject.directory.path / MANIFEST
    good = manifest.read_bytes()
    subject.directory.add(replace(subject.artifact, **changes))
    try:
        with pytest.raises(UserError, match=says):
            subject.directory.expected()
    finally:
        manifest.write_bytes(good)


LOWERINGS = ("matmul", "folded", "affinegrid", "decomposed", "gather")
SEEDS = 20  # of the built-in network and of all foreign ones, for each lowering


def random_module(name: str, seed: int) -> nn.Module:
    """A network whose theta depends on its input, which a fresh one's does not; every other magnifies roundings."""
    torch.manual_seed(seed)
    module = (build_model(name) if name == BUILT_IN else ZOO[name].module()).eval().requires_grad_(False)
    steep = seed % 2
    if name == BUILT_IN:
        nn.init.normal_(module.transformer.regressor[-1].weight, std=0.2 if steep else 0.05)
    for path, weight in module.named_parameters():
        if weight.ndim > 1 and not re.search("transformer|localisation|first|second", path):
            weight.mul_(4.0 if steep else 1.0)
    return module


@cache
def captured(name: str) -> Program:
    return built_in(name) if name == BUILT_IN else ZOO[name].program()


def random_program(name: str, seed: int) -> Program:
    return captured(name).recaptured(random_module(name, seed))


@cache
def random_truth(name: str, seed: int) -> Reference:
    return reference_of(random_program(name, seed), digits_examples(32) if name == BUILT_IN else ZOO[name].examples())


def weights_in_file(model: onnx.ModelProto, program: Program) -> dict[str, np.ndarray]:
    """What a network's parameters are in a file: folded where the exporter folds."""
    values = {name: tensor.numpy() for name, tensor in program.state().items()}
    values |= {name: value.astype(np.float32) for name, value in folded_weights(program).items()}
    held = {each.name: tuple(each.dims) for each in model.graph.initializer}
    if "site0/grid.weight" in held:
        regressor = [values[f"transformer.regressor.2.{kind}"] for kind in ("weight", "bias")]
        folded = fold_linear(base_grid(32, 32, align_corners=False), regressor[0].T, regressor[1])
        values |= {"site0/grid.weight": folded[0], "site0/grid.bias": folded[1]}
    return values


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("names", [(BUILT_IN,), FOREIGN], ids=["built-in", "foreign"])
def test_no_false_alarm_over_random_networks(
    lowering: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """20 initialisations a lowering of ours and of others', 200 in all: the file with other weights must pass."""
    monkeypatch.setattr(challenges, "BATCHES", (1, 7))
    monkeypatch.setattr(challenges, "NOISE_BATCHES", (8,))
    monkeypatch.setattr(truths, "THETAS", {name: THETAS[name] for name in ("turned by 30°", "scale 10")})
    exported = {name: to_onnx(marked_program(random_program(name, 0)), lowering) for name in names}
    path = tmp_path / "other.onnx"
    for seed in range(SEEDS):
        name = names[seed // 2 % len(names)]
        known = random_truth(name, seed)
        program = known.program
        model = onnx.ModelProto()
        model.CopyFrom(exported[name])
        put(model, weights_in_file(model, program))
        onnx.save(model, path)
        artifact = Artifact(lowering, path.name, name, "onnx", "", program.contract, lowering=lowering)
        assert not check_artifact(artifact, path, ONNX, known).failure, f"{name}, seed {seed}"
