"""The ground floor: what a captured network says of itself, and that all of it agrees with eager PyTorch to the bit."""

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize

from stn_export.errors import UserError
from stn_export.program.capture import capture
from stn_export.program.origin import module_from, origin_of, resolve
from stn_export.program.program import Program, contract_of, load_program
from stn_export.program.specs import Contract, Pixels, TensorSpec
from tests import zoo
from tests.foreign import Undecided
from tests.runs import built_in
from tests.sweeps import swept
from tests.zoo import ZOO

SAMPLING = [name for name, foreign in ZOO.items() if foreign.sites]


@pytest.fixture(scope="module")
def programs() -> Callable[[str], Program]:
    """The zoo's programs, each captured once."""
    made: dict[str, Program] = {}

    def get(name: str) -> Program:
        if name not in made:
            made[name] = ZOO[name].program()
        return made[name]

    return get


@contextmanager
def watched(forced: dict[int, Tensor] | None = None) -> Iterator[list[dict[str, Tensor]]]:
    """Notes theta, grid and warped image of every eager sampler; ``forced`` replaces theta by number of affine grid."""
    seen, thetas = [], []
    sample, affine = F.grid_sample, F.affine_grid

    def affine_grid(theta: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
        theta = (forced or {}).get(len(thetas), theta)
        thetas.append((theta, affine(theta, size, align_corners)))
        return thetas[-1][1]

    def grid_sample(image: Tensor, grid: Tensor, **options: object) -> Tensor:
        warped = sample(image, grid, **options)
        made = [{"theta": theta} for theta, own in thetas if own is grid]
        seen.append((made[0] if made else {}) | {"grid": grid, "warped": warped})
        return warped

    with mock.patch.object(F, "grid_sample", grid_sample), mock.patch.object(F, "affine_grid", affine_grid):
        yield seen


def leaves(result: object) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(result)


@pytest.mark.parametrize("name", ZOO)
def test_points_are_those_of_eager_to_the_bit(name: str, programs: Callable[[str], Program]):
    foreign, program = ZOO[name], programs(name)
    for batch, size in ((1, 40), (3, 33)):  # the sizes count where they are open
        values = foreign.values(batch, seed=7, size=size)
        with watched() as seen, torch.no_grad():
            answers = leaves(foreign.build()(*values))
        points = program.points(values)
        wanted = {f"site{index}/{point}": value for index, site in enumerate(seen) for point, value in site.items()}
        wanted |= dict(zip(foreign.outputs, answers, strict=True))
        assert list(points) == list(wanted)
        assert all(torch.equal(points[point], value) for point, value in wanted.items())


@pytest.mark.parametrize("name", SAMPLING)
def test_sites_say_where_and_how(name: str, programs: Callable[[str], Program]):
    source = Path(zoo.__file__).read_text(encoding="utf-8").splitlines()
    program, values = programs(name), ZOO[name].values(2)
    points = program.points(values)
    assert len(program.sites) == ZOO[name].sites
    for site in program.sites:
        file, line = site.where.split("(")[1].removesuffix(")").split(":")
        assert file == "zoo.py"
        assert "F.grid_sample(" in source[int(line) - 1]
        assert all(
            isinstance(size, str) or size == own
            for size, own in zip(site.warped_shape, points[site.point("warped")].shape, strict=True)
        )
        assert (site.kind == "affine_grid + grid_sample") == (
            "F.affine_grid" in inspect.getsource(ZOO[name].module) or name == "Pyramid"
        )


def test_sites_name_open_sizes_and_sources(programs: Callable[[str], Program]):
    flow, attention, steps, pyramid = (
        programs(n).sites for n in ("FlowWarp", "DeformableAttention", "TwoSteps", "Pyramid")
    )
    assert flow[0].image_shape == ("N", 3, "H", "W")
    assert [site.image_shape for site in attention] == [("2*N", 8, 8, 12), ("2*N", 8, 4, 6), ("2*N", 8, 2, 3)]
    assert attention[0].warped_shape == ("2*N", 8, "Q", 4)
    assert (steps[0].padding_mode, steps[1].padding_mode) == ("zeros", "reflection")
    assert steps[1].source == "linear of first.4, then tanh, mul, add, matmul"
    assert flow[0].source == "input flow, then add, mul, div, sub"
    assert [site.where.split()[0] for site in pyramid] == ["warps.0", "warps.1", "warps.2"]
    plate, text = programs("PlateRectifier").sites[0], programs("TextRectifier").sites[0]
    assert (plate.align_corners, plate.grid_align_corners, plate.padding_mode) == (True, True, "border")
    assert (text.align_corners, text.grid_align_corners) == (True, None)


@pytest.mark.parametrize("name", ["GreyDigits", "PlateRectifier", "TwoSteps", "Pyramid", "Glimpses"])
def test_a_forced_theta_is_that_of_eager_at_each_site(name: str, programs: Callable[[str], Program]):
    foreign, program, values = ZOO[name], programs(name), ZOO[name].values(3)
    theta = torch.tensor([[0.8, -0.3, 0.1], [0.2, 0.7, -0.2]])
    for index, site in enumerate(program.sites):
        composed = name == "TwoSteps" and index == 0  # with the next one: forced where it is made, not where it is used
        made = mock.Mock(
            wraps=zoo.around_identity, side_effect=[theta.expand(3, 2, 3), mock.DEFAULT] if composed else None
        )
        with (
            watched({} if composed else {index: theta.expand(3, 2, 3)}) as seen,
            mock.patch.object(zoo, "around_identity", made),
            torch.no_grad(),
        ):
            answers = leaves(foreign.build()(*values))
        points = program.points(values, {site.point("theta"): theta})
        assert torch.equal(points[site.point("theta")], theta.expand(3, 2, 3))
        assert torch.equal(points[site.point("grid")], seen[index]["grid"])
        for output, answer in zip(foreign.outputs, answers, strict=True):
            if output != "theta":  # of GreyDigits: it is given out from where it is forced
                assert torch.equal(points[output], answer)


@pytest.mark.parametrize(
    ("name", "alone"), [("PlateRectifier", [True]), ("GreyDigits", [False]), ("TwoSteps", [False, True])]
)
def test_a_theta_that_is_given_too_or_read_again_is_more_than_its_grid(
    name: str, alone: list[bool], programs: Callable[[str], Program]
):
    program = programs(name)
    assert [program.acts_through_grid(site) for site in program.sites] == alone


@pytest.mark.parametrize("name", ZOO)
def test_float64_is_that_of_eager_to_the_bit(name: str, programs: Callable[[str], Program]):
    values = ZOO[name].values(2, seed=3)
    wide, module = [value.double() for value in values], ZOO[name].build().double().requires_grad_(False)
    try:
        torch.set_default_dtype(torch.float64)
        answers = leaves(module(*wide))
    finally:
        torch.set_default_dtype(torch.float32)
    points = programs(name).exact.points(values)
    assert all(torch.equal(points[output], value) for output, value in zip(ZOO[name].outputs, answers, strict=True))
    assert all(value.dtype in (torch.float64, torch.int64) for value in points.values())
    assert torch.get_default_dtype() == torch.float32


class Types(nn.Module):
    """Makes numbers in every way that a graph can name a type, or leave it out."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.tensor([0.5, 0.25, 2.0])  # neither parameter nor buffer

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        third = torch.arange(3, dtype=torch.float32) / 3
        third = third + torch.linspace(0, 1, 3) / 3 + torch.full((3,), 1 / 3) + torch.ones(3, dtype=torch.float32) / 3
        return (x + third + counts / 3).to(torch.float32) * self.held + torch.tensor([1.0, 2.0, 3.0])


def test_types_that_a_graph_names_or_leaves_out_are_float64_as_well():
    x, counts = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0]]), torch.tensor([[1, 2, 4], [5, 7, 8]])
    captured = capture(Types().eval(), (x, counts), [("N", 3), ("N", 3)])
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes, outputs=["y"]))
    a, b = x.double().numpy(), counts.numpy()
    third = np.arange(3) / 3 + np.linspace(0, 1, 3) / 3 + 1 / 3 + np.ones(3) / 3
    wanted = (a + third + b / 3) * np.array([0.5, 0.25, 2]) + np.array([1, 2, 3])
    np.testing.assert_allclose(program.exact.points((x, counts))["y"].numpy(), wanted, rtol=1e-15)
    np.testing.assert_allclose(program.run((x, counts))["y"].numpy(), wanted, rtol=1e-6)
    assert not any("detach" in name for name, _ in operators(program))  # of numbers written in forward


def operators(program: Program) -> list[tuple[str, tuple[int | str, ...]]]:
    return [
        (str(node.target), tuple(map(str, node.meta["val"].shape)))
        for node in program.module.graph.nodes
        if node.op == "call_function"
    ]


def test_the_transformer_without_its_sampler_is_the_plain_cnn_node_by_node():
    stn, cnn = built_in("stn"), built_in("cnn")
    twin = stn.bypassed
    assert [name for name, _ in operators(twin)] == [name for name, _ in operators(cnn)]
    assert [shape[1:] for _, shape in operators(twin)] == [shape[1:] for _, shape in operators(cnn)]
    assert list(twin.state()) == list(cnn.state())
    assert twin.parameters == cnn.parameters == 31_340
    assert twin.multiply_adds() == cnn.multiply_adds()
    assert (twin.sites, twin.origin) == ((), {})
    same = Program(cnn.exported, cnn.contract)
    same.module.load_state_dict(dict(twin.state()))
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(same.run((images,))["log_probs"], twin.run((images,))["log_probs"])


class InPlace(nn.Module):
    """Changes values where they lie: of its localisation, its input, and the warped image."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU(inplace=True)
        self.localisation = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), relu, nn.Flatten(), nn.Linear(72, 6))

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        images[:, :, 0] += 1  # through a view
        theta = self.localisation(images).view(-1, 2, 3)
        warped = F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False)
        warped.sub_(0.5).clamp_(min=0)
        return warped


def test_values_that_are_changed_where_they_lie():
    torch.manual_seed(0)
    module, values = InPlace().eval(), (torch.rand(2, 1, 8, 8),)
    captured = capture(module, values, [("N", 1, 8, 8)])
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes, outputs=["y"]))
    with torch.no_grad():
        answer = module(*values)
        first = values[0].clone()
        first[:, :, 0] += 1
        theta = module.localisation(first).view(-1, 2, 3)
        warped = F.grid_sample(first, F.affine_grid(theta, first.shape, align_corners=False), align_corners=False)
    points = program.points(values)
    assert torch.equal(points["y"], answer)
    assert torch.equal(points["site0/warped"], warped)  # before it was changed
    twin = program.bypassed
    assert (twin.parameters, twin.multiply_adds()) == (0, 0)
    assert torch.equal(twin.run(values)["y"], (first - 0.5).clamp(min=0))


@pytest.mark.parametrize("name", SAMPLING)
def test_a_bypassed_sampler_hands_its_image_on_resized(name: str, programs: Callable[[str], Program]):
    foreign, twin = ZOO[name], programs(name).bypassed

    def passed(image: Tensor, grid: Tensor, **_: object) -> Tensor:
        size = list(grid.shape[1:3])
        return (
            image if list(image.shape[2:]) == size else F.interpolate(image, size, mode="bilinear", align_corners=False)
        )

    values = foreign.values(3, seed=2)
    with mock.patch.object(F, "grid_sample", passed), torch.no_grad():
        answers = leaves(foreign.build()(*values))
    found = twin.run(values)
    assert twin.sites == ()
    assert all(torch.equal(found[output], answer) for output, answer in zip(foreign.outputs, answers, strict=True))
    used = {node.target for node in twin.module.graph.nodes if node.op == "get_attr"}
    assert set(twin.state()) <= used


# What the modules of each network are for; that theta (GreyDigits) or what it is made from (Glimpses) is given out as
# well does not make them the rest.
PARTS = {
    "GreyDigits": {"localisation": "localisation", "features": "rest", "head": "rest"},
    "PlateRectifier": {"localisation": "localisation", "backbone": "rest", "head": "rest"},
    "TextRectifier": {"localisation": "grid"},  # no theta
    "TwoSteps": {"first": "localisation", "second": "localisation", "head": "rest"},
    "FlowWarp": {"refine": "grid"},
    "DeformableAttention": {"offsets": "grid", "weights": "rest", "value": "rest", "output": "rest"},
    "Homography": {"localisation": "grid", "head": "rest"},
    "Pyramid": {"warps": "localisation", "layers": "rest", "head": "rest"},
    "Glimpses": {"look": "localisation", "memory": "localisation", "theta": "localisation", "read": "rest"},
    "NoSampler": {"stem": "rest", "inner": "rest", "norm": "rest", "head": "rest"},
}


@pytest.mark.parametrize("name", ZOO)
def test_parts_by_reachability(name: str, programs: Callable[[str], Program]):
    program = programs(name)
    parts, sites = program.parts(), program.sites
    for node in program.module.graph.nodes:
        if node.op != "call_function":
            assert node.name not in parts
            continue
        sampler = node.name in {site.warped for site in sites}
        affine = node.name in {site.grid for site in sites if site.theta}
        stack = [place.split(".")[0] for place, _ in node.meta.get("nn_module_stack", {}).values() if place]
        own = stack[0] if stack else None
        if sampler or affine:
            assert parts[node.name] == ("sampler" if sampler else "grid")
        elif own in PARTS[name]:
            assert parts[node.name] == PARTS[name][own], node
    found = set(parts.values())
    assert found == ({"rest"} if not sites else found | {"sampler", "grid"})


def parts_of(module: nn.Module) -> dict[str, str]:
    captured = capture(module.eval(), (torch.rand(2, 1, 8, 8),), [("N", 1, 8, 8)])
    return Program(captured.exported, contract_of(captured.exported, captured.shapes)).parts()


def test_a_backbone_that_serves_a_grid_and_the_rest_is_the_rest():
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Conv2d(1, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            seen = self.backbone(images)
            return F.grid_sample(seen, seen.permute(0, 2, 3, 1).tanh(), align_corners=False)

    parts = parts_of(Shifts())
    assert parts == {"conv2d": "rest", "permute": "grid", "tanh": "grid", "grid_sampler": "sampler"}


def test_a_backbone_that_serves_theta_and_the_rest_is_the_rest():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.theta = nn.Conv2d(1, 2, 3), nn.Linear(2 * 36, 6)

        def forward(self, images: Tensor) -> Tensor:
            seen = self.backbone(images)
            theta = self.theta(seen.flatten(1)).view(-1, 2, 3)
            return F.grid_sample(seen, F.affine_grid(theta, seen.shape, align_corners=False), align_corners=False)

    assert {node: part for node, part in parts_of(Shared()).items() if not node.startswith("sym_size")} == {
        "conv2d": "rest",
        "flatten": "localisation",
        "linear": "localisation",
        "view": "localisation",
        "affine_grid_generator": "grid",
        "grid_sampler": "sampler",
    }


@pytest.mark.parametrize("name", swept(ZOO, "FlowWarp", "Glimpses"))
def test_a_program_is_the_same_from_its_file(name: str, programs: Callable[[str], Program], tmp_path: Path):
    program, values = programs(name), ZOO[name].values(3)
    path = tmp_path / "program.pt2"
    path.write_bytes(program.to_bytes({"label": name}))
    loaded = load_program(path, own=True)
    assert loaded.contract == program.contract
    assert (loaded.sites, loaded.sizes, dict(loaded.origin)) == (program.sites, program.sizes, dict(program.origin))
    assert path.read_bytes() == ZOO[name].capture().to_bytes({"label": name})
    assert all(torch.equal(value, loaded.points(values)[point]) for point, value in program.points(values).items())


def test_equal_twins_give_equal_files():
    first, second = (ZOO["GreyDigits"].capture().bypassed.to_bytes({}) for _ in range(2))
    assert first == second


def test_a_capture_leaves_the_module_as_it_is(tmp_path: Path):
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    module[2].weight = module[0].weight  # one tensor under two names
    captured = capture(module, (torch.rand(2, 3),), [("N", 3)])
    program = Program(captured.exported, contract_of(captured.exported, captured.shapes))
    program.run((torch.rand(2, 3),))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in program.exported.parameters())
    assert program.state()["0.weight"] is program.state()["2.weight"]
    assert program.parameters == sum(parameter.numel() for parameter in module.parameters()) == 15
    (tmp_path / "program.pt2").write_bytes(program.to_bytes({}))
    assert load_program(tmp_path / "program.pt2").parameters == 15


def test_a_window_into_a_larger_tensor_is_written_alone(programs: Callable[[str], Program]):
    spline = ZOO["TextRectifier"].build().spline
    assert spline.untyped_storage().nbytes() > spline.nbytes
    kept = programs("TextRectifier").state()["spline"]
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert torch.equal(kept, spline)


@pytest.mark.parametrize("name", ZOO)
def test_contracts_to_json_and_back(name: str, programs: Callable[[str], Program]):
    contract = programs(name).contract
    assert Contract.from_dict(json.loads(json.dumps(contract.as_dict()))) == contract
    assert [spec.shape for spec in contract.inputs] == list(ZOO[name].shapes.values())
    assert all(spec.batched for spec in (*contract.inputs, *contract.outputs))
    assert contract.fixed({"N": 4}).batch == 4


def test_a_contract_of_another_kind_is_refused():
    with pytest.raises(UserError, match="the contract is damaged: Object missing required field `inputs`"):
        Contract.from_dict({"shape": ["N", 3, 32, 32]})


def test_bytes_are_normalised_channel_by_channel():
    images = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    pixels = zoo.IMAGENET
    wanted = Normalize(pixels.mean, pixels.std)(images.float() / 255)
    torch.testing.assert_close(pixels.normalise(images), wanted, rtol=0, atol=2e-6)
    assert torch.equal(pixels.denormalise(pixels.normalise(images)), images)
    assert torch.equal(Pixels().normalise(images), Pixels((0.5,) * 3, (0.5,) * 3).normalise(images))
    spec = TensorSpec("images", "float32", ("N", 3, 5, 7), pixels=pixels)
    assert np.array_equal(spec.array(images), pixels.normalise(images).numpy())
    assert str(pixels) == "(x / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)"


class Stiff(nn.Module):
    """Makes a constant of its batch."""

    def forward(self, images: Tensor, scale: Tensor) -> Tensor:
        return images * scale + torch.zeros(len(images), 1, 1, 1)


def test_a_dimension_that_cannot_be_kept_open_is_a_number():
    inputs = torch.rand(3, 2, 8, 10), torch.rand(3, 1, 1, 1)
    captured = capture(Stiff().eval(), inputs, [("N", 2, "H", "W"), ("N", 1, 1, 1)])
    assert captured.shapes == ((3, 2, "H", "W"), (3, 1, 1, 1))
    assert "batch" in captured.problem
    contract = contract_of(captured.exported, captured.shapes, ["images", "scale"], ["scaled"])
    assert contract.outputs[0].shape == (3, 2, "H", "W")
    assert not contract.outputs[0].batched
    assert capture(ZOO["NoSampler"].build(), ZOO["NoSampler"].values(2), [("N", 3, 32, 32)]).problem == ""


@pytest.mark.parametrize(
    ("module", "inputs", "shapes", "words"),
    [
        (nn.ReLU(), (torch.rand(2, 3),), [("N", 3)], "ReLU is in training mode"),
        (nn.ReLU().eval(), (torch.rand(1, 3),), [("N", 3)], "batch of 1 would be taken for a constant"),
        (nn.ReLU().eval(), (torch.rand(2, 3),), [("N", 4)], r"shape \(2, 3\) is not N×4"),
        (nn.ReLU().eval(), (torch.rand(2, 3),), [("N", 3), ("N", 3)], "1 inputs have 2 shapes"),
        (Undecided().eval(), (torch.rand(2, 3),), [("N", 3)], "replace Python branches on values"),
        (nn.Linear(4, 2).eval(), (torch.rand(2, 3),), [("N", 3)], "cannot capture Linear: "),
    ],
)
def test_what_cannot_be_captured(module: nn.Module, inputs: tuple[Tensor, ...], shapes: list, words: str):
    with pytest.raises(UserError, match=words):
        capture(module, inputs, shapes)


def test_outputs_that_are_no_tensors_are_refused():
    class Says(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x + 1, 3

    captured = capture(Says().eval(), (torch.rand(2, 3),), [("N", 3)])
    with pytest.raises(UserError, match="is no tensor"):
        contract_of(captured.exported)


def test_code_that_is_gone_or_changed_on_disk(tmp_path: Path):
    path = tmp_path / "mine.py"
    (tmp_path / "beside.py").write_text("FACTOR = 3\n", encoding="utf-8")
    code = "from torch import nn\nimport beside\ndef build(bias=True): return nn.Linear(2, beside.FACTOR, bias=bias)\n"
    path.write_text(code, encoding="utf-8")
    module = resolve(f"{path}:build")()
    origin = json.loads(json.dumps(origin_of(f"{path}:build", bias=True)))
    made = module_from(origin, module.state_dict())
    assert torch.equal(made.weight, module.weight)
    assert not made.training
    path.write_text(code.replace("bias=True", "bias=False"), encoding="utf-8")
    assert module_from(origin, module.state_dict()) == "mine.py is not there any more, or was changed"
    path.unlink()
    assert module_from(origin, module.state_dict()) == "mine.py is not there any more, or was changed"
    assert module_from({}, {}) == "its code was not given"
    path.write_text("raise OSError('no disk')\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be imported: OSError: no disk"):
        resolve(f"{path}:build")
    assert "cannot be run here (OSError)" in module_from(origin_of(f"{path}:build"), {})
    for text, words in (
        ("nothing", "names no callable"),
        ("no.such.room:build", "cannot be imported"),
        ("json:nope", "no callable nope"),
    ):
        with pytest.raises(UserError, match=words):
            resolve(text)


def test_a_program_moves_with_what_its_graph_makes(programs: Callable[[str], Program]):
    program = ZOO["FlowWarp"].program()
    module = program.on("meta")
    named = [node.kwargs["device"] for node in module.graph.nodes if "device" in node.kwargs]
    assert set(named) == {torch.device("meta")}
    assert all(
        value.is_meta for value in program.points([value.to("meta") for value in ZOO["FlowWarp"].values(2)]).values()
    )
    captured = capture(Types().eval(), (torch.rand(2, 3), torch.ones(2, 3)), [("N", 3), ("N", 3)])
    held = Program(captured.exported, contract_of(captured.exported, captured.shapes)).on("meta")
    assert all(value.is_meta for value in held.state_dict(keep_vars=True).values())
    assert {name for name, value in held.named_buffers() if value.is_meta} >= {"held"}


def test_multiply_adds_by_hand(programs: Callable[[str], Program]):
    localisation = 8 * 3 * 25 * 20 * 90 + 8 * 36 * 6
    sampler = 4 * 3 * 24 * 94
    backbone, head = 12 * 3 * 9 * 24 * 94, 20 * 12 * 8 * 13 * 31
    program, by_hand = programs("PlateRectifier"), localisation + sampler + backbone + head
    assert program.multiply_adds() == by_hand
    assert program.multiply_adds((torch.rand(3, 3, 24, 94),)) == 3 * by_hand
