"""A signal is heard after any library was used: none leaves an alternate signal stack that is unmapped."""

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import parser, save

from stn_export.program.specs import Contract, TensorSpec
from stn_export.runners import RUNNERS
from tests.signal_stack import Stack, is_usable

MODEL = """<ir_version: 9, opset_import: ["" : 20]> graph (float[1,4] x) => (float[1,4] y) { y = Relu (x) }"""
SPEC = (TensorSpec("x", "float32", (1, 4)),)
CONTRACT = Contract(SPEC, (TensorSpec("y", "float32", (1, 4)),))


def in_fork(act: Callable[[], int]) -> int:
    """What a function returns in a fork of this process; 128 and the number of the signal that ended it."""
    child = os.fork()
    if not child:
        code = 99
        try:
            code = act()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def heard() -> int:
    """Send this process a signal that it handles."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.kill(os.getpid(), signal.SIGTERM)
    return 0


def test_a_signal_is_heard_after_openvino_was_opened_twice(tmp_path: Path):
    pytest.importorskip("openvino")
    path = tmp_path / "relu.onnx"
    save(parser.parse_model(MODEL), path)
    [spec] = [each for each in RUNNERS if each.name == "openvino-cpu"]

    def opened_twice() -> int:
        first, second = spec.open(path, CONTRACT), spec.open(path, CONTRACT)
        del first  # freed in the order of their making, which is not the order that a stack of stacks wants
        del second
        return heard() if is_usable() else 1

    assert in_fork(opened_twice) == 0


def test_an_unmapped_stack_is_found():
    def lost() -> int:
        stack = mmap.mmap(-1, 2**16)
        new = Stack(ctypes.addressof(ctypes.c_char.from_buffer(stack)), 0, 2**16)
        ctypes.CDLL(None).sigaltstack(ctypes.byref(new), None)
        usable = is_usable()
        ctypes.CDLL(None).munmap(ctypes.c_void_p(new.address), ctypes.c_size_t(2**16))
        return 0 if usable and not is_usable() else 1

    assert in_fork(lost) == 0
