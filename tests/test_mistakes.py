"""Likely mistakes: each gives one true line, and a hint whose command is there and works.

``MISTAKES`` is the table. ``offers`` must stand in the hint and, where a row says how it is ``mended``, in that command
line too, which then runs to its end or, where that takes long, is parsed. The hints are those of an installed wheel;
``{...}`` stand for what ``places`` makes.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from torch import nn

import stn_export
from stn_export import cli, errors
from stn_export.cli.options import PARSERS
from stn_export.errors import EXIT_OK, EXIT_USER, UserError

CODE = '''import torch
from torch import nn
from torch.nn import functional

BATCH = 8


class Plates(nn.Module):
    """Plates of 24×94, read in batches of 8 only, which nobody remembers."""

    def __init__(self, flatten=None):
        super().__init__()
        self.theta, self.classify = nn.Linear(3, 6), nn.Linear(3 * 24 * 94, 10)
        self.flatten = flatten

    def forward(self, images):
        theta = self.theta(images.mean((2, 3))).view(-1, 2, 3)
        grid = functional.affine_grid(theta, images.shape, align_corners=False)
        plates = functional.grid_sample(images, grid, align_corners=False)
        if self.flatten:
            return self.classify(self.flatten(plates))
        rows = plates.relu()
        rows = rows.view(BATCH, -1)
        rows = rows * 2
        return self.classify(rows)


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(4, 3, 5, 5).mean((2, 3))


def plates():
    return Plates().eval()


def free():
    return Plates(nn.Flatten()).eval()


def live():
    return Plates(nn.Flatten())


def number():
    return 3
'''
LINE = CODE.splitlines().index("        rows = rows.view(BATCH, -1)") + 1
RELU = '<ir_version: 9, opset_import: ["" : 18]> g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'


@dataclass(frozen=True)
class Mistake:
    """What is typed, the words that the error has, what its hint offers, and the command line that it leads to."""

    typed: str
    words: str
    offers: str
    mended: str = ""
    runs: bool = field(default=False, kw_only=True)  # the mended command, which is quick; else it is parsed


def adopting(typed: str, words: str, offers: str, mended: str = "") -> Mistake:
    """A mistake of adopt, whose mended command runs."""
    return Mistake(f"adopt {typed} --inspect", words, offers, f"adopt {mended} --inspect" if mended else "", runs=True)


MISTAKES = [
    adopting(
        "{code}:plates --input images=N,3,24,94",
        f"code.py:{LINE} fixes the batch at 8",
        "--input images=8,3,24,94",
        "{code}:plates --input images=8,3,24,94",
    ),
    adopting(
        "{code}:plates --input images=3,24,94",
        f"code.py:{LINE} fixes the batch at 8",
        "--input images=8,3,24,94",
        "{code}:plates --input images=8,3,24,94",
    ),
    adopting(
        "{code}:free --input images=3,24,94",
        "images lacks the batch",
        "--input images=N,3,24,94",
        "{code}:free --input images=N,3,24,94",
    ),
    adopting(
        "{code}:Fixed --input x=N,3,5,5:float64 --eval",
        "fixes the batch at 4",
        "--input x=4,3,5,5:float64",
        "{code}:Fixed --input x=4,3,5,5:float64 --eval",
    ),
    adopting(
        "{code}:live --input images=N,3,24,94",
        "is in training mode",
        "--eval",
        "{code}:live --input images=N,3,24,94 --eval",
    ),
    adopting(
        "{code}:free --input picture=N,3,24,94",
        "Plates has no input picture",
        "images",
        "{code}:free --input images=N,3,24,94",
    ),
    adopting("{code}:free", "no input shape was given", "--input NAME=N,3,24,94"),
    adopting("{code} --input images=N,3,24,94", "holds no PyTorch module", "{code}:callable"),
    adopting("{code}:Plate --input images=N,3,24,94", "has no callable Plate", "file.py:callable"),
    adopting("{code}:number --input images=N,3,24,94", "gives a int", "an nn.Module"),
    adopting(
        "{code}:free --input 'images=N, 3,24,94'",
        "cannot be read",
        "NAME=N,3,24,94",
        "{code}:free --input images=N,3,24,94",
    ),
    adopting(
        "{code}:free --input images=N,3,24,94:float",
        "unknown type 'float'",
        "did you mean float32?",
        "{code}:free --input images=N,3,24,94:float32",
    ),
    adopting("{code}:free --input images=N,3,24", "does not take 2×3×24", "sizes, types and values"),
    adopting("{code}:free --weights {weights} --input images=N,3,24,94", "does not fit Plates", "state_dict()"),
    adopting(
        "{code}:free --input images=N,3,24,94 --examples {other.npz}",
        "lack input images",
        "numpy.savez(FILE, images=...)",
    ),
    adopting("{code}:free --input images=N,3,24,94 --labels {other.npz}", "but no examples", "--examples"),
    adopting("{code}:free --input images=N,3,24,94 --mean 0.5 0.5", "does not fit N×3×24×94", "one a channel"),
    Mistake("adopt {weights}", "holds no PyTorch module", "--weights {weights}"),
    Mistake("adopt {relu}", "holds no PyTorch module", "stn-export audit {relu}", "audit {relu}", runs=True),
    Mistake("export --run {tmp}/nowhere", "there is no run", "'stn-export train --run {tmp}/nowhere'"),
    Mistake("verify --run {run}", "holds no exports", "'stn-export export --run {run}'"),
    Mistake(
        "export --run {run} --only folded",
        "unknown export 'folded'",
        "did you mean folded-fp32?",
        "export --run {run} --only folded-fp32",
    ),
    Mistake("export --run {run} --for phone", "unknown destination 'phone'", "choose one of: openvino"),
    Mistake("export --run {run} --batch 0", "0 is less than 1", "stn-export export --help"),
    Mistake("verfy --run {run}", "unknown command 'verfy'", "did you mean verify?", "verify --run {run}"),
    Mistake("train --recipe tunned", "unknown recipe 'tunned'", "did you mean tuned?", "train --recipe tuned"),
    Mistake("all --epochs x", "'x' is no whole number", "stn-export all --help"),
    Mistake("all --epochz 3", "unrecognized arguments: --epochz 3", "did you mean --epochs?", "all --epochs 3"),
    Mistake("bench --run {run} --budget 3min", "'3min': write 90s, 3m or 1h", "bench --help", "bench --budget 3m"),
    Mistake("bench --run {run} --device cdua", "unknown device 'cdua'", "did you mean cuda?", "bench --device cuda"),
    Mistake("bench --run {run} --suites latenzy", "unknown suite", "did you mean latency?", "bench --suites latency"),
    Mistake("bench --run {tmp}/nowhere", "there is no run", "'stn-export train --run {tmp}/nowhere'"),
    Mistake("bench {relu} --run {run}", "--run has no effect on an ONNX file", "leave --run out", "bench {relu}"),
    Mistake("bench --threads 2", "--threads is of a file", "leave --threads out", "bench"),
    Mistake("verify {relu}", "1 file cannot be compared", "name two .onnx", "verify {relu} {relu}"),
    Mistake(
        "verify {relu} {relu} --precision fp61",
        "unknown precision 'fp61'",
        "did you mean fp16?",
        "verify {relu} {relu} --precision fp16",
    ),
    Mistake("audit {tmp}/none.onnx", "there is no file", "an ONNX file that exists"),
    Mistake("audit {relu} --shape x:1,4", "'x:1,4' as NAME=1,16000", "audit --help", "audit {relu} --shape x=1,4"),
    Mistake("audit {relu} --shape x=1,5", "x cannot be (1, 5)", "it is N×4"),
    Mistake("doctor --format jsn", "invalid choice: 'jsn'", "stn-export doctor --help"),
    Mistake("predict {tmp}/none.png --artifact {relu}", "no manifest.json beside it", "'stn-export train', then"),
    Mistake("verify --run {run} --runtimes {tmp}/none", "no runtime in", "stn-export runtimes --into {tmp}/none"),
]


@pytest.fixture(scope="module")
def places(entered_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tmp = tmp_path_factory.mktemp("mistakes")
    (tmp / "code.py").write_text(CODE, encoding="utf-8")
    onnx.save(parse_model(RELU), tmp / "relu.onnx")
    torch.save({"other": torch.ones(2)}, tmp / "weights.pth")
    np.savez(tmp / "other.npz", other=np.ones((3, 3, 24, 94), np.float32))
    files = {"code": "code.py", "relu": "relu.onnx", "weights": "weights.pth", "other.npz": "other.npz"}
    return {"tmp": tmp, "run": entered_run} | {name: tmp / file for name, file in files.items()}


@pytest.fixture(autouse=True)
def _wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "has_make", lambda: False)


def filled(text: str, places: dict[str, Path]) -> str:
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", str(place))
    return text


def called(line: str) -> int:
    return cli.start(shlex.split(line))


def parsed(line: str) -> None:
    name, *arguments = shlex.split(line)
    PARSERS[name]().parse_args(arguments) if name not in ("all", "bench") else PARSERS[name]().parse_known_args(
        arguments
    )


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed[:60])
def test_a_likely_mistake(mistake: Mistake, places: dict[str, Path], capfd: pytest.CaptureFixture[str]):
    assert called(filled(mistake.typed, places)) == EXIT_USER
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert filled(mistake.words, places) in error
    assert filled(mistake.offers, places) in hint
    for command in re.findall(r"'stn-export ([^']+)'", hint):
        parsed(command)
    for name in re.findall(r"\bstn-export ([a-z]+)", hint):
        assert name in cli.COMMANDS
    if mistake.mended and mistake.runs:
        assert called(filled(mistake.mended, places)) == EXIT_OK
    elif mistake.mended:
        parsed(filled(mistake.mended, places))


def test_the_table_is_long_and_its_mended_lines_hold_what_the_hints_offer():
    assert len(MISTAKES) >= 30
    offered = [(each.offers.removeprefix("did you mean ").rstrip("?"), each) for each in MISTAKES if each.mended]
    kept = [each for offers, each in offered if not re.search(r"NAME|--help|leave|name two|stn-export", offers)]
    assert len(kept) > 12
    for each in kept:
        assert each.offers.removeprefix("did you mean ").rstrip("?") in each.mended


def module(code: Path, name: str) -> nn.Module:
    return import_module("stn_export.program.origin").resolve(f"{code}:{name}")()


IN_PYTHON: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "training mode": (
        lambda code: stn_export.check(module(code, "live"), torch.rand(4, 3, 24, 94)),
        "is in training mode",
        ".eval()",
    ),
    "NumPy": (
        lambda code: stn_export.check(module(code, "free"), [np.ones((4, 3, 24, 94), np.float32)]),
        "is given NumPy arrays",
        "torch.from_numpy",
    ),
    "another name": (
        lambda code: stn_export.check(module(code, "free"), {"picture": torch.rand(4, 3, 24, 94)}),
        "has no input picture",
        "forward takes images",
    ),
    "a fixed batch": (
        lambda code: stn_export.adopt(module(code, "plates"), {"images": ("N", 3, 24, 94)}),
        f"code.py:{LINE} fixes the batch at 8",
        "{'images': (8, 3, 24, 94)}",
    ),
    "no batch": (
        lambda code: stn_export.adopt(module(code, "free"), {"images": (3, 24, 94)}),
        "images lacks the batch",
        "images=N,3,24,94",
    ),
    "a text file": (
        lambda code: stn_export.compare(code, code),
        "is a file of a kind that cannot be compared",
        "",
    ),
}


@pytest.mark.parametrize("name", IN_PYTHON)
def test_a_likely_mistake_in_python(name: str, places: dict[str, Path]):
    call, words, offers = IN_PYTHON[name]
    with pytest.raises(UserError) as caught:
        call(places["code"])
    assert words in caught.value.message
    assert offers in caught.value.hint
    assert caught.value.hint
    assert "--input" not in caught.value.hint


def test_a_fixed_batch_adopted_counts_examples(places: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    found = stn_export.adopt(module(places["code"], "plates"), {"images": (8, 3, 24, 94)})
    free = stn_export.adopt(module(places["code"], "free"), {"images": ("N", 3, 24, 94)})
    assert found.program.contract.batch == 8
    assert [spec.batched for spec in (*found.program.contract.inputs, *found.program.contract.outputs)] == [True, True]
    assert found.program.multiply_adds() == free.program.multiply_adds() > 0
    assert len(found.examples) == len(free.examples)


def test_examples_of_the_one_batch_that_a_module_takes_are_taken_and_that_is_noted(places: dict[str, Path]):
    found = stn_export.adopt(module(places["code"], "plates"), {"images": torch.rand(8, 3, 24, 94)})
    assert found.program.contract.batch == 8
    assert f"code.py:{LINE} fixes the batch at 8, as many as the examples are" in found.notes


class Mixing(nn.Module):
    """Attends over rows, so that they are no examples."""

    def forward(self, x):
        return torch.softmax(x @ x.T, -1) @ x


def test_rows_that_are_no_examples_are_no_batch():
    found = stn_export.adopt(Mixing().eval(), {"x": (6, 5)})
    assert (found.program.contract.batch, found.program.contract.inputs[0].batched) == (None, False)


def test_what_also_takes_a_batch_is_noted():
    found = stn_export.adopt(nn.Conv2d(3, 4, 3).eval(), {"input": (3, 9, 9)})
    assert any("input=N,3,9,9 is taken too" in note for note in found.notes)
