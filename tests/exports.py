"""Networks as ONNX, exported once a process: an export takes a second, and many tests ask for the same file."""

from functools import cache

import onnx

from stn_export.export.marks import marked_program
from stn_export.export.onnx import to_onnx
from stn_export.program.program import Program
from tests.runs import built_in
from tests.zoo import ZOO


def network(name: str) -> Program:
    """A network of the zoo, or one of ours."""
    return ZOO[name].program() if name in ZOO else built_in(name)


@cache
def marked(name: str) -> Program:
    """The same with its points marked. Shared: export it, never change it."""
    return marked_program(network(name))


@cache
def _exported(name: str, lowering: str) -> onnx.ModelProto:
    return to_onnx(marked(name), lowering)


def exported(name: str, lowering: str = "matmul") -> onnx.ModelProto:
    """A network as ONNX; a copy, for a test to spoil."""
    model = onnx.ModelProto()
    model.CopyFrom(_exported(name, lowering))
    return model
