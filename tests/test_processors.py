"""The sweep over instruction sets: what it calls right, wrong and not tried."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from stn_export import cli
from stn_export.native.build import no_compiler
from stn_export.native.source import Source
from stn_export.program.capture import capture
from stn_export.program.program import Program, contract_of
from tests import processors
from tests.processors import EMULATED, OUTCOME, SETTINGS, Emulated, Line, Outcome, Setting, emulate, in_child, line_of

RIGHT = Line("A=1", "the chain", True, "6 checks passed", 3e-7, 10)
UNTRIED = Line("B=2", "the chain", None, "not tried: this processor has no AMX")
RED = Line("C=3", "the chain", False, "FAILED: matmul-fp32 on onnxruntime-cpu: log_probs differs", 0.5, 10)
GOOD = Outcome(6, [], "", 3e-7)


def swept(*lines: Line) -> int:
    """The exit code of a sweep that comes to these lines."""

    def stage(_: object) -> None:
        processors.main([], lambda folder: iter(lines))

    return cli.run(stage, [])


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        ((RIGHT, UNTRIED), 0, "1 of 1 settings right, 1 not tried"),
        ((RIGHT, UNTRIED, RED), 1, "1 of 2 settings right, 1 not tried"),
        ((UNTRIED,), 1, "0 of 0 settings right, 1 not tried"),
        ((), 1, "0 of 0 settings right, 0 not tried"),
    ],
)
def test_one_red_line_or_none_tried_is_an_exit_code(
    lines: tuple[Line, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
):
    assert swept(*lines) == code
    printed = capsys.readouterr()
    assert said in printed.out
    assert all(line.verdict[:10] in printed.out for line in lines)
    assert ("matmul-fp32 on onnxruntime-cpu" in printed.err) == (RED in lines)


@pytest.mark.parametrize(
    ("found", "said", "passed", "verdict"),
    [
        (GOOD, "ATen AVX2", True, "6 checks passed"),
        (GOOD, "ATen AVX512", None, "not tried: the library does not heed it"),
        (replace(GOOD, refused="matmul-int8"), "ATen AVX2", True, "6 checks passed; matmul-int8 refused"),
        (
            replace(GOOD, failures=["matmul-fp32 on x: differs"]),
            "ATen AVX2",
            False,
            "FAILED: matmul-fp32 on x: differs",
        ),
        (replace(GOOD, failures=["x"]), "ATen AVX512", False, "FAILED: x"),  # wrong is wrong, heeded or not
        (replace(GOOD, checks=0), "ATen AVX2", False, "FAILED: nothing was checked"),
        (None, "ATen AVX2", False, "FAILED: exit code 139: Segmentation fault"),
    ],
)
def test_a_child_is_judged_by_what_it_wrote(
    found: Outcome | None, said: str, passed: bool | None, verdict: str, tmp_path: Path
):
    if found:
        (tmp_path / OUTCOME).write_bytes(msgspec.json.encode(found))
    done = subprocess.CompletedProcess([], 139, f"noise\n{said}\n", "Segmentation fault\n\n")
    line = line_of("ATEN_CPU_CAPABILITY=avx2", "rows", done, tmp_path / OUTCOME, "^ATen AVX2$")
    assert (line.passed, line.verdict[: len(verdict)]) == (passed, verdict)


def test_an_instruction_set_that_is_not_there_is_not_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(processors, "instruction_sets", lambda: ["AVX2"])
    line = processors.under(Setting("ATEN_CPU_CAPABILITY", "avx512", "x", "AVX-512"), tmp_path)
    assert (line.passed, line.verdict) == (None, "not tried: this processor has no AVX-512")


def test_a_child_gets_the_setting_and_its_end_is_noticed(tmp_path: Path):
    """The environment reaches it; one that ends without a word is red."""
    code = "import os, sys; sys.exit(os.environ['MKL_CBWR'] + os.environ['OMP_NUM_THREADS'])"
    line = in_child("MKL_CBWR=AVX2", tmp_path, ["a"], {"MKL_CBWR": "AVX2"}, words=[sys.executable, "-c", code])
    assert (line.passed, line.verdict) == (False, "FAILED: exit code 1: AVX21")


def test_settings_have_names_of_their_own():
    names = [each.name for each in (*SETTINGS, *EMULATED)]
    assert len(set(names)) == len(names)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    found = capture(nn.Linear(5, 3).eval(), (torch.rand(2, 5),), [("N", 5)])
    return Program(found.exported, contract_of(found.exported, found.shapes, ["images"], ["result"]))


HERE = Emulated("here", "cc", "generic", "", "")


def planted(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[str], str]) -> None:
    """C that is written with an error in it."""

    def write_source(*given: object) -> Source:
        source = original(*given)
        assert spoil(source.c) != source.c
        return replace(source, c=spoil(source.c))

    original = processors.write_source
    monkeypatch.setattr(processors, "write_source", write_source)


@pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
def test_c_that_is_right_and_c_that_is_wrong(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    line = emulate(HERE, program, images, tmp_path)
    assert (line.passed, line.verdict) == (True, "equal")
    assert line.error < 1e-6
    monkeypatch.setenv("CC", "cc")
    with monkeypatch.context() as patch:
        planted(patch, lambda text: text.replace("(float)in_images[i]", "(float)in_images[i] * 1.001f"))
        line = emulate(HERE, program, images, tmp_path)
    assert line.passed is False
    assert "from float64" in line.verdict
    assert processors.os.environ["CC"] == "cc"
    planted(monkeypatch, lambda text: text.replace("#include", "#incluude", 1))
    assert "cannot compile" in emulate(HERE, program, images, tmp_path).verdict


def test_a_tool_that_is_missing_is_named(program: Program, tmp_path: Path):
    line = emulate(
        Emulated("m68k", "m68k-no-gcc", "generic", "qemu-none", "68040"), program, torch.rand(1, 5), tmp_path
    )
    assert (line.passed, line.verdict) == (None, "not tried: m68k-no-gcc, qemu-none not installed")
