import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import stn_export
from stn_export import cli
from stn_export.adopt import __main__ as stage
from stn_export.adopt.network import input_of, load_module, load_weights, read_weights
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.onnx_graph.portability import TESTED
from stn_export.program.specs import Pixels
from stn_export.run.manifest import PLAIN, SUBJECT, TWIN_NOTE, NetworkDirectory, network_directories
from tests.foreign import Volume
from tests.sweeps import swept
from tests.zoo import ZOO, command

ZOO_FILE = Path(__file__).with_name("zoo.py")


@pytest.mark.parametrize("name", swept(ZOO, "PlateRectifier", "FlowWarp", "NoSampler"))
def test_the_zoo_is_adopted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign = ZOO[name]
    assert cli.run(stage.main, command(foreign, tmp_path, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sites"]) == foreign.sites
    assert [spec["shape"] for spec in found["program"]["inputs"]] == list(map(list, foreign.shapes.values()))
    directories = network_directories(tmp_path / "run")
    assert found["written"] == [str(directory.path) for directory in directories]
    program, values = directories[0].program(), foreign.values(3, seed=5)
    answers = torch.utils._pytree.tree_leaves(foreign.build()(*values))
    own = program.own_module()
    assert isinstance(own, nn.Module)
    for result in (program.run(values), dict(zip(foreign.outputs, leaves(own(*values)), strict=True))):
        assert list(result) == list(foreign.outputs)
        assert all(torch.equal(result[key], value) for key, value in zip(foreign.outputs, answers, strict=True))
    roles = [directory.facts.role for directory in directories]
    if name in ("TextRectifier", "FlowWarp", "NoSampler"):
        assert roles == [SUBJECT]
        assert any(note.startswith("no baseline: ") for note in found["notes"])
    else:
        assert roles == [SUBJECT, PLAIN]
        assert directories[1].facts.note == TWIN_NOTE
        assert directories[1].facts.label == "run, samplers bypassed"
        assert found["plain"]["multiply_adds"] < found["program"]["multiply_adds"]
    examples = directories[0].examples()
    assert len(examples) == 8
    assert len(directories[0].facts.classes) == foreign.classes


def leaves(result: object) -> list[Tensor]:
    return torch.utils._pytree.tree_leaves(result)


def test_it_prints_what_it_found_and_is_up_to_date_when_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = command(ZOO["Pyramid"], tmp_path)
    assert cli.run(stage.main, arguments) == 0
    said = re.sub("  +", "  ", capsys.readouterr().out)
    for words in (
        "run: 7,805 parameters, 1,445,056 multiply-adds an example",
        "input images: N×3×48×48 float32, bytes as (x / 255 - 0.5) / 0.5",
        "output log_probs: N×11 float32",
        "warps.0 (zoo.py:",
        "N×3×48×48  24×24  bilinear  zeros  False  linear of warps.0.localisation.4, then tanh, mul, add",
        "examples: 8 examples of Pyramid.npz; labels",
        "plain network: 3,787 parameters",
    ):
        assert words in said
    assert "run/run: written\n" in said
    manifests = [path.read_bytes() for path in sorted((tmp_path / "run").glob("*/manifest.json"))]
    assert cli.run(stage.main, arguments) == 0
    assert capsys.readouterr().out.count(": up to date\n") == 2
    assert [path.read_bytes() for path in sorted((tmp_path / "run").glob("*/manifest.json"))] == manifests
    state = ZOO["Pyramid"].build().state_dict()
    torch.save(state | {"head.bias": state["head.bias"] + 1}, tmp_path / "Pyramid.pt")
    assert cli.run(stage.main, arguments) == 0
    assert capsys.readouterr().out.count("written; older exports of it are stale now\n") == 2


def test_another_network_needs_another_run_and_a_lost_twin_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = ["--run", str(tmp_path / "run"), "--eval"]
    digits = [f"{ZOO_FILE}:GreyDigits", "--input=images=N,1,28,28", *run]
    plain = [f"{ZOO_FILE}:NoSampler", "--input=images=N,3,32,32", *run]
    assert cli.run(stage.main, digits) == 0
    assert cli.run(stage.main, [*plain, "--name", "other"]) == 2
    assert "holds run, run-plain already" in capsys.readouterr().err
    assert cli.run(stage.main, plain) == 0
    assert "run-plain is no part of the run any more" in capsys.readouterr().out
    assert [directory.name for directory in network_directories(tmp_path / "run")] == ["run"]


def test_inspect_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(stage.main, command(ZOO["Glimpses"], tmp_path, "--inspect")) == 0
    assert capsys.readouterr().out.count("12×12") == 3
    assert not (tmp_path / "run").exists()


class Stubborn(nn.Module):
    """Looks at its numbers to decide, which no capture can follow; samples at once a volume and a picture."""

    def forward(self, volumes: Tensor, theta: Tensor) -> Tensor:
        grid = nn.functional.affine_grid(theta, volumes.shape, align_corners=False)
        found = nn.functional.grid_sample(volumes, grid, align_corners=False)
        if found.sum() > 0:
            found = -found
        picture = found[:, :, 0]
        return torch.grid_sampler(picture, picture.new_zeros(len(picture), 3, 5, 2), 1, 1, True)


def test_what_cannot_be_captured_can_be_looked_at(tmp_path: Path):
    inputs = dict(zip(("volumes", "theta"), Volume.inputs, strict=True))
    found = stn_export.adopt(Stubborn().eval(), inputs)
    assert found.program is None
    assert "cannot capture Stubborn" in found.notes[0]
    shapes = [(site.kind, site.image_shape, site.warped_shape, site.mode, site.padding_mode) for site in found.sites]
    assert shapes == [
        ("affine_grid + grid_sample", (2, 1, 4, 4, 4), (2, 1, 4, 4, 4), "bilinear", "zeros"),
        ("grid_sample, own grid", (2, 1, 4, 4), (2, 1, 3, 5), "nearest", "border"),
    ]
    assert all(site.where.startswith("forward (test_adopt.py:") for site in found.sites)
    with pytest.raises(UserError, match="cannot capture Stubborn"):
        stn_export.adopt(Stubborn().eval(), inputs, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samplers_of_volumes_are_no_sites_and_go_through(tmp_path: Path):
    inputs = dict(zip(("volumes", "theta"), Volume.inputs, strict=True))
    found = stn_export.adopt(Volume().eval(), inputs, run=tmp_path / "run")
    assert not found.sites
    unseen, twin = found.notes
    assert (unseen.startswith("grid_sample of volumes in "), twin) == (
        True,
        "no baseline: the network samples no images",
    )
    assert cli.run(export.main, ["--run", str(tmp_path / "run"), "--only", "plain-fp32"]) == 0
    artifact = NetworkDirectory(tmp_path / "run" / "run").artifacts["plain-fp32"]
    assert (artifact.opset, artifact.details["portability"]["ONNX Runtime CPU"][0]) == (20, TESTED)


def test_outputs_named_as_inputs_or_twice_get_names_of_their_own(tmp_path: Path):
    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x + 1, "a b": x * 3, "a_b": x * 2}

    run = tmp_path / "named"
    stn_export.adopt(Named().eval(), {"x": torch.rand(4, 3)}, run=run)
    contract = NetworkDirectory(run / "named").program().contract
    assert [spec.name for spec in contract.outputs] == ["x_output", "a_b", "a_b2"]


def test_a_module_in_python_with_its_examples(tmp_path: Path):
    foreign = ZOO["TwoSteps"]
    images = foreign.values(6)[0]
    found = stn_export.adopt(foreign.build(), {"images": images}, run=tmp_path / "two", labels=torch.arange(6) % 5)
    directory = NetworkDirectory(tmp_path / "two" / "two")
    assert found.written[0] == directory.path
    assert [spec.name for spec in found.program.contract.outputs] == ["output0", "output1"]
    examples = directory.examples()
    assert torch.equal(examples.inputs["images"], images)
    assert examples.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert directory.facts.classes == tuple("01234")
    assert directory.program().own_module() == "its code was not given"


class Fixed(nn.Module):
    """Takes one picture at a time."""

    def forward(self, images: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        rows = images.reshape(len(images), -1)
        grid = nn.functional.affine_grid(torch.eye(2, 3).expand(len(images), -1, -1), images.shape, align_corners=False)
        warped = nn.functional.grid_sample(images, grid, align_corners=False)
        return {"inner": {"mean": rows.mean(1)}, "warped": warped}


def test_a_batch_that_cannot_stay_open_is_one_and_that_is_said(tmp_path: Path):
    found = stn_export.adopt(Fixed().eval(), {"images": torch.rand(4, 1, 8, 8)}, run=tmp_path / "fixed")
    assert found.notes[0].startswith("N of input images cannot be kept open, it is 1: ")
    assert found.program.contract.batch == 1
    assert [(spec.name, spec.shape, spec.batched) for spec in found.program.contract.outputs] == [
        ("inner_mean", (1,), True),
        ("warped", (1, 1, 8, 8), True),
    ]
    assert len(found.examples) == 4


def test_open_sizes_are_those_of_the_examples_or_as_said():
    found = stn_export.adopt(ZOO["FlowWarp"].build(), ZOO["FlowWarp"].shapes, examples=ZOO["FlowWarp"].inputs(2))
    assert found.program.sizes == {"H": 40, "W": 48}
    spec, sizes = input_of("images=N,3,H=24,W=56:float64")
    assert (spec.text, sizes) == ("N×3×H×W float64", {"H": 24, "W": 56})
    found = stn_export.adopt(ZOO["FlowWarp"].build(), ZOO["FlowWarp"].shapes, sizes=sizes)
    assert found.program.sizes == sizes
    assert found.examples.inputs["flow"].shape == (64, 2, 24, 56)
    assert found.examples.source == "64 random examples, seed 0: none were given"
    assert found.program.contract.open_sizes == ("H", "W")


def test_somebody_elses_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    foreign, path = ZOO["PlateRectifier"], tmp_path / "plates.pt2"
    dynamic = ({0: torch.export.Dim("some")},)
    torch.export.save(torch.export.export(foreign.build(), foreign.values(2), dynamic_shapes=dynamic), path)
    arguments = [str(path), "--run", str(tmp_path / "run"), "--output", "characters"]
    assert cli.run(stage.main, arguments) == 0
    captured = capsys.readouterr()
    assert "loading it can execute code: load only files from sources you trust" in captured.err
    assert "input plates: N×3×24×94 float32" in captured.out
    program = NetworkDirectory(tmp_path / "run" / "run").program()
    values = foreign.values(5, seed=3)
    assert torch.equal(program.run(values)["characters"], foreign.build()(*values))
    assert cli.run(stage.main, [*arguments, "--input", "pictures=N,3,24,94"]) == 0
    assert "input pictures: N×3×24×94" in capsys.readouterr().out
    for wrong, words in (
        (["--input", "images=N,3,24,95"], "is N×3×24×94 float32 there, not N×3×24×95 float32"),
        (["--input", "a=N,3,24,94", "--input", "b=N,3,24,94"], "has 1 inputs, not 2"),
        (["--output", "more"], "has 1 outputs, not 2"),
        (["--weights", str(path)], "already contains its weights"),
    ):
        assert cli.run(stage.main, [*arguments, *wrong]) == 2
        assert words in capsys.readouterr().err
    torch.export.save(torch.export.export(nn.Sequential(nn.Dropout()).train(), (torch.rand(2, 3),)), path)
    assert cli.run(stage.main, arguments) == 2
    assert "was captured in training mode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("head.1.bias"), "1 missing (first head.1.bias)"),
        (lambda state: state.update(a=torch.ones(1), b=torch.ones(1)), "2 unexpected (first a)"),
        (lambda state: state.update({"head.1.bias": torch.ones(9)}), "1 of another shape (first head.1.bias 9 for 10)"),
    ],
)
def test_weights_that_do_not_fit(change: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments, state = command(ZOO["GreyDigits"], tmp_path), ZOO["GreyDigits"].build().state_dict()
    change(state)
    torch.save(state, tmp_path / "GreyDigits.pt")
    assert cli.run(stage.main, arguments) == 2
    assert words in capsys.readouterr().err


def test_weights_by_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = ZOO["NoSampler"].build().state_dict()
    for name, content in (
        ("bare", state),
        ("state_dict", {"state_dict": state, "epoch": 3}),
        ("model", {"model": state}),
    ):
        torch.save(content, tmp_path / f"{name}.pth")
        assert all(torch.equal(value, state[key]) for key, value in read_weights(tmp_path / f"{name}.pth").items())
    torch.save(ZOO["NoSampler"].build(), tmp_path / "whole.pt")
    with pytest.raises(UserError, match="holds more than tensors, which may run code"):
        read_weights(tmp_path / "whole.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parallel.pt")
    again = ZOO["NoSampler"].module()
    load_weights(again, tmp_path / "parallel.pt")
    assert torch.equal(again.head.weight, state["head.weight"])
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_weights(tmp_path / "list.pt")
    with pytest.raises(UserError, match="there is no file"):
        read_weights(tmp_path / "none.pt")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError, match="needs the safetensors package"):
        read_weights(tmp_path / "a.safetensors")


def test_weights_that_a_module_draws_are_the_same_every_time():
    first, second = (load_module(f"{ZOO_FILE}:NoSampler", None, True) for _ in range(2))
    assert torch.equal(first.head.weight, second.head.weight)


def test_safetensors(tmp_path: Path):
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    state = ZOO["NoSampler"].build().state_dict()
    files.save_file(state, tmp_path / "a.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in read_weights(tmp_path / "a.safetensors").items())


def pictures(folder: Path, count: int = 5) -> Path:
    (folder / "sub").mkdir(parents=True)
    for index in range(count):
        pixels = np.full((20 + index, 30, 3), 10 * index, np.uint8)
        Image.fromarray(pixels).save(folder / ("sub" if index % 2 else "") / f"{index}.png")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    return folder


def test_a_folder_of_pictures_with_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "file,label,name\n0.png,0,zero\n2.png,2,\nsub/1.png,1,one\n3.png,3,three\n4.png,0,zero\n", encoding="utf-8"
    )
    arguments = [
        f"{ZOO_FILE}:NoSampler",
        "--input=images=N,3,32,32",
        "--eval",
        "--examples",
        f"{pictures(tmp_path / 'p')}",
    ]
    arguments += ["--run", str(tmp_path / "run"), "--labels", str(labels), "--mean", "0.1", "0.2", "0.3"]
    assert cli.run(stage.main, arguments) == 0
    assert "examples: 5 pictures of p, as 32×32; labels" in capsys.readouterr().out
    directory = NetworkDirectory(tmp_path / "run" / "run")
    examples = directory.examples()
    assert examples.labels.tolist() == [0, 2, 0, 1, 3]  # in the order of the files
    assert examples.inputs["images"].dtype == torch.uint8
    assert examples.inputs["images"][:, 0, 0, 0].tolist() == [0, 20, 40, 10, 30]
    assert directory.program().contract.inputs[0].pixels == Pixels((0.1, 0.2, 0.3), (0.5,))
    assert directory.facts.classes == ("zero", "one", "2", "three")


def test_grey_pictures_and_open_sizes(tmp_path: Path):
    found = stn_export.adopt(
        ZOO["Glimpses"].build(), {"images": ("N", 1, 30, 60)}, examples=pictures(tmp_path / "p", count=3)
    )
    assert found.examples.inputs["images"].shape == (3, 1, 30, 60)
    assert found.program.contract.inputs[0].pixels == Pixels()

    class AnySize(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    found = stn_export.adopt(AnySize().eval(), {"images": ("N", 3, "H", "W")}, examples=tmp_path / "p")
    assert found.examples.inputs["images"].shape == (3, 3, 20, 30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py:Thing"], "nowhere.py cannot be imported"),
        (["ZOO:Nothing"], "has no callable Nothing"),
        (["ZOO:GreyDigits", "--eval"], "no input shape was given"),
        (["ZOO:around_identity", "--input=x=N,3"], "raised TypeError: around_identity() missing 1 required"),
        (["collections:Counter", "--input=x=N,3"], "gives a Counter"),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28"], "GreyDigits is in training mode"),
        (["ZOO:GreyDigits", "--input=images"], "input 'images' cannot be read"),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28:complex64"], "unknown type 'complex64'"),
        (
            ["ZOO:GreyDigits", "--input=images=N,1,14,14", "--eval"],
            "GreyDigits does not take 2×1×14×14: RuntimeError: mat1",
        ),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--output=a"], "1 outputs are named, it gives 2"),
        (
            ["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--output=images", "--output=b"],
            "a name is given twice",
        ),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--mean", "0", "1"], "does not fit N×1×28×28"),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--name", "../a"], "cannot be a network's name"),
        (
            ["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--labels", "l.csv"],
            "there are labels, but no examples",
        ),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--examples", "none"], "there is no file none"),
        (["ZOO:GreyDigits", "--input=images=N,1,28,28", "--eval", "--weights", "none.pt"], "there is no file none.pt"),
    ],
)
def test_errors_before_anything_is_written(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("ZOO", str(ZOO_FILE)) for argument in arguments]
    assert cli.run(stage.main, [*arguments, "--run", "run"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "hint:" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"other": np.zeros((2, 3, 32, 32), np.float32)}, "lack input images"),
        ({"images": np.zeros((2, 3, 32, 31), np.float32)}, "images is 2×3×32×31 float32, not N×3×32×32 float32"),
        ({"images": np.zeros((2, 3, 32, 32), np.int64)}, "images is 2×3×32×32 int64, not"),
        ({"images": np.full((2, 3, 32, 32), np.nan, np.float32)}, "images is not finite"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.array([1])}, "images 2, labels 1"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.array([1, -1])}, "whole numbers from 0"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.array([1, 4])}, "label 4 has no place in"),
    ],
)
def test_examples_that_do_not_fit(content: dict, words: str, tmp_path: Path):
    np.savez(tmp_path / "e.npz", **content)
    with pytest.raises(UserError, match=words):
        stn_export.adopt(ZOO["NoSampler"].build(), ZOO["NoSampler"].shapes, examples=tmp_path / "e.npz")


def test_sizes_of_one_name_are_one_size():
    examples = ZOO["FlowWarp"].inputs(2) | {"flow": torch.zeros(2, 2, 41, 48)}
    with pytest.raises(UserError, match="flow is 2×2×41×48 float32, not N×2×H×W"):
        stn_export.adopt(ZOO["FlowWarp"].build(), ZOO["FlowWarp"].shapes, examples=examples)


def test_pictures_stay_upright(tmp_path: Path):
    pixels = np.zeros((40, 20), np.uint8)
    pixels[:, 10:] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    found = stn_export.adopt(ZOO["Glimpses"].build(), ZOO["Glimpses"].shapes, examples=tmp_path)
    image = found.examples.inputs["images"][0, 0]
    assert (image[:, :20] == 0).all()
    assert (image[:, 40:] == 255).all()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("0,1\n1,2", "has no label for 2"),
        ("0,1\n1,cat\n2,1", "l.csv:2 is '1,cat'"),
        ("0,1\n1,2\n2,9", "label 9 has no place"),
    ],
)
def test_labels_that_do_not_fit(lines: str, words: str, tmp_path: Path):
    (tmp_path / "l.csv").write_text(lines, encoding="utf-8")
    examples = {"images": torch.zeros(3, 3, 32, 32, dtype=torch.uint8)}
    with pytest.raises(UserError, match=words):
        stn_export.adopt(
            ZOO["NoSampler"].build(), ZOO["NoSampler"].shapes, examples=examples, labels=tmp_path / "l.csv"
        )


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counting(nn.Module):
    """Another network each time it is made."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.factor, self.bias = self.made, nn.Parameter(torch.zeros(3))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.bias


def test_networks_that_answer_differently_each_time(tmp_path: Path):
    with pytest.raises(UserError, match="Noise returns different outputs when it is called again"):
        stn_export.adopt(Noise().eval(), {"x": torch.rand(2, 3)}, run=tmp_path / "noise")
    found = stn_export.adopt(f"{__name__}:Counting", {"x": torch.rand(2, 3)})
    assert "made again, it returns different outputs" in found.notes[0]
    assert found.program.origin == {}


def test_a_plain_network_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = command(ZOO["Pyramid"], tmp_path)
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 2, 5, 5), nn.Flatten(), nn.Linear(162, 11))\n",
        encoding="utf-8",
    )
    assert cli.run(stage.main, [*arguments, "--plain", f"{tmp_path}/plain.py:build"]) == 0
    plain = network_directories(tmp_path / "run")[1]
    assert (plain.facts.label, plain.facts.role, plain.facts.parameters) == ("run, plain", PLAIN, 152 + 1793)
    assert plain.program().contract.outputs == network_directories(tmp_path / "run")[0].program().contract.outputs
    assert isinstance(plain.program().own_module(), nn.Sequential)
    capsys.readouterr()


def test_the_package_is_the_function_and_costs_nothing_until_called():
    code = "import sys, stn_export; print(callable(stn_export.adopt), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout == "True False\n"


class Switched(nn.Module):
    """Takes a dictionary, a matrix without a batch, a number without dimensions, and what stays as it is."""

    def forward(
        self, batch: dict[str, Tensor], theta: Tensor, gain: Tensor, mask: None = None, *, flip: bool
    ) -> Tensor:
        grid = F.affine_grid(theta.expand(batch["images"].shape[0], -1, -1), batch["images"].shape, align_corners=False)
        warped = gain * F.grid_sample(batch["images"], grid, align_corners=False)
        return warped.flip(-1) if flip else warped


def test_dictionaries_what_has_no_batch_and_what_stays_as_it_is(tmp_path: Path):
    images, theta, gain = torch.rand(4, 1, 6, 5), torch.eye(2, 3)[None], torch.tensor(0.5)
    inputs = {"batch": {"images": images}, "mask": None, "gain": gain, "theta": theta, "flip": True}
    found = stn_export.adopt(Switched().eval(), inputs, run=tmp_path / "run")
    contract = found.program.contract
    said = [(spec.name, spec.shape, spec.batched) for spec in contract.inputs]
    assert said == [("batch_images", ("N", 1, 6, 5), True), ("theta", (1, 2, 3), False), ("gain", (), False)]
    [warped] = found.program.run((images, theta, gain)).values()
    assert torch.equal(warped, Switched()({"images": images}, theta, gain, flip=True))
