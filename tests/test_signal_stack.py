"""A signal is heard after any library was used: none leaves an alternate signal stack that is unmapped."""

import subprocess
import sys
from pathlib import Path

import pytest
from onnx import parser, save

from stn_export.program.specs import Contract, TensorSpec
from tests.conftest import REPOSITORY

MODEL = """<ir_version: 9, opset_import: ["" : 20]> graph (float[1,4] x) => (float[1,4] y) { y = Relu (x) }"""
SPEC = (TensorSpec("x", "float32", (1, 4)),)
CONTRACT = Contract(SPEC, (TensorSpec("y", "float32", (1, 4)),))


OPENED_TWICE = """
import os, signal, sys
from pathlib import Path
from stn_export.runners import RUNNERS
from tests.signal_stack import is_usable
from tests.test_signal_stack import CONTRACT

[spec] = [each for each in RUNNERS if each.name == "openvino-cpu"]
first, second = (spec.open(Path(sys.argv[1]), CONTRACT) for _ in range(2))
del first  # freed in the order of their making, which is not the order that a stack of stacks wants
del second
signal.signal(signal.SIGTERM, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
print(is_usable())
"""
UNMAPPED = """
import ctypes, mmap
from tests.signal_stack import Stack, is_usable

stack = mmap.mmap(-1, 2**16)
new = Stack(ctypes.addressof(ctypes.c_char.from_buffer(stack)), 0, 2**16)
ctypes.CDLL(None).sigaltstack(ctypes.byref(new), None)
before = is_usable()
ctypes.CDLL(None).munmap(ctypes.c_void_p(new.address), ctypes.c_size_t(2**16))
print(before, is_usable())
"""


def answer(script: str, *arguments: Path) -> list[str]:
    """What a script prints in a process of its own: a fork would lack the threads that libraries wait for."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout.split()


def test_a_signal_is_heard_after_openvino_was_opened_twice(tmp_path: Path):
    pytest.importorskip("openvino")
    save(parser.parse_model(MODEL), tmp_path / "relu.onnx")
    assert answer(OPENED_TWICE, tmp_path / "relu.onnx") == ["heard", "True"]


def test_an_unmapped_stack_is_found():
    assert answer(UNMAPPED) == ["True", "False"]
