"""What an export does once for all files changes none of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnx.parser
import pytest
import torch
from onnxscript.rewriter import rewrite
from torch.export import ExportedProgram

from stn_export.export import registry
from stn_export.export.marks import marked_program
from stn_export.export.onnx import to_onnx
from stn_export.program.program import Program
from tests.zoo import ZOO

LOWERINGS = ("matmul", "decomposed")


def fresh() -> Program:
    """A program that nothing was exported from."""
    return marked_program(ZOO["GreyDigits"].program())


@cache
def alone(lowering: str) -> bytes:
    """The file of a program that nothing else is exported from."""
    return to_onnx(fresh(), lowering).SerializeToString(deterministic=True)


@dataclass
class Counted:
    """How often programs were decomposed."""

    count: int = 0

    def __call__(self, prepare: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
        def prepared(*arguments: object, **keywords: object) -> ExportedProgram:
            self.count += 1
            return prepare(*arguments, **keywords)

        return prepared


@pytest.fixture
def decompositions(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Counts the decompositions of a test."""
    from torch.onnx._internal.exporter import _core

    counted = Counted()
    monkeypatch.setattr(_core, registry.PREPARES, counted(getattr(_core, registry.PREPARES)))
    return counted


def test_files_of_one_program_are_those_of_programs_of_their_own(decompositions: Counted):
    """One decomposition keeps ``affine_grid``, the other has none of it; whichever file comes first."""
    program = fresh()
    for lowering in (*LOWERINGS, LOWERINGS[0]):
        assert to_onnx(program, lowering).SerializeToString(deterministic=True) == alone(lowering), lowering
    assert decompositions.count - alone.cache_info().misses == 2


def test_weights_that_change_are_those_of_the_next_file(decompositions: Counted):
    program = fresh()
    before = to_onnx(program, "matmul").SerializeToString(deterministic=True)
    with torch.no_grad():
        next(iter(program.exported.state_dict.values())).add_(1.0)
    assert to_onnx(program, "matmul").SerializeToString(deterministic=True) != before
    assert decompositions.count == 1


def test_a_program_that_is_gone_is_not_kept():
    before, program = len(registry._PREPARED), fresh()
    to_onnx(program, "matmul")
    assert len(registry._PREPARED) == before + 1
    del program
    assert len(registry._PREPARED) == before


HALVES = """
    <ir_version: 10, opset_import: ["" : 18]>
    halves (float[2, 8] values) => (float[2, 4] product)
    <int64[1] start = {0}, int64[1] middle = {4}, int64[1] end = {8}, int64[1] axis = {-1}>
    {
        second = Slice (values, middle, end, axis)
        first = Slice (values, start, middle, axis)
        power = Exp (first)
        product = Mul (power, second)
    }
"""


def test_a_pattern_of_several_outputs_is_tried_where_it_can_match(monkeypatch: pytest.MonkeyPatch):
    """The optimiser has one, which makes a Split of two slices; of these only where the second one comes first."""
    matcher, tried = registry._matcher(), []
    match = matcher.match

    def noted(self: object, model: object, graph: object, node: object, **options: object) -> object:
        if not self.pattern.has_single_output_node:
            tried.append(node.op_type)
        return match(self, model, graph, node, **options)

    monkeypatch.setattr(matcher, "match", noted)
    with registry.read_once():
        model = rewrite(onnx.parser.parse_model(HALVES))
    assert [node.op_type for node in model.graph.node if node.op_type != "Constant"] == ["Split", "Exp", "Mul"]
    assert set(tried) == {"Slice"}
