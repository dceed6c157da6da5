"""What ``torch.onnx.export`` does needlessly often, done once: over half of an export.

PyTorch's translations of operators into ONNX are read once for all files, a program is decomposed once for all files
that are written from it with the same operators translated, and a pattern of the optimiser that has several outputs is
tried at nodes of its own operator only. None of this changes a file.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from torch.export import ExportedProgram

if TYPE_CHECKING:
    from onnxscript.rewriter._basics import MatchResult
    from onnxscript.rewriter._matcher import SimplePatternMatcher
    from torch.onnx._internal.exporter._registration import ONNXRegistry

OTHERS = ("torchvision",)  # packages whose operators are there to be read once they are imported
PREPARES = "_prepare_exported_program_for_export"
_PREPARED: WeakKeyDictionary[ExportedProgram, dict[frozenset[object], ExportedProgram]] = WeakKeyDictionary()


def _found() -> "tuple[type[ONNXRegistry], ModuleType] | None":
    """PyTorch's table and exporter; None where this PyTorch keeps them elsewhere, and all is done for every file."""
    try:
        from torch.onnx._internal.exporter import _core, _decomp
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    known = hasattr(_core, PREPARES) and hasattr(_decomp, "get_onnx_implemented_overloads")
    return (ONNXRegistry, _core) if known else None


@cache
def _read(read: "Callable[..., ONNXRegistry]", imported: tuple[str, ...], **opset_version: int) -> "ONNXRegistry":
    del imported
    return read(**opset_version)


def _copied(read: "Callable[..., ONNXRegistry]", **opset_version: int) -> "ONNXRegistry":
    """A registry that an export may add its own translations to."""
    registry = copy(_read(read, tuple(name for name in OTHERS if name in sys.modules), **opset_version))
    registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
    return registry


def _prepared(
    prepare: Callable[..., ExportedProgram], program: ExportedProgram, *, registry: "ONNXRegistry"
) -> ExportedProgram:
    """Decompose a program for export; the result depends on which operators have a translation, not on which one.

    The exporter reads what it gets and changes nothing of it.
    """
    from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads

    translated = frozenset(get_onnx_implemented_overloads(registry))
    prepared = _PREPARED.setdefault(program, {})
    if translated not in prepared:
        prepared[translated] = prepare(program, registry=registry)
    return prepared[translated]


def _matcher() -> "type[SimplePatternMatcher] | None":
    """The optimiser's matcher of patterns; None where this onnxscript keeps it elsewhere, and it stays slow."""
    try:
        from onnxscript.rewriter._matcher import SimplePatternMatcher
    except ImportError:
        return None
    return SimplePatternMatcher


def _quick(match: "Callable[..., MatchResult]") -> "Callable[..., MatchResult]":
    """Let a matcher ask first whether the node is of the operator that its pattern's first output needs.

    It asks that last where a pattern has several outputs, and lists all nodes of the graph before: time grows with the
    square of their number.
    """
    from onnxscript.rewriter._basics import MatchResult

    def matched(matcher: "SimplePatternMatcher", model: Any, graph: Any, node: Any, **options: Any) -> MatchResult:
        first = matcher.pattern.output_nodes[0]
        if first.op.matches(node.op_type) and first.domain.matches(node.domain):
            return match(matcher, model, graph, node, **options)
        return MatchResult().fail("another operator")

    return matched


@contextmanager
def read_once() -> Iterator[None]:
    """Let ``torch.onnx.export`` have what was read and decomposed before, and try patterns where they can match."""
    with ExitStack() as patches:
        if found := _found():
            table, exporter = found
            reads = staticmethod(partial(_copied, table.from_torchlib))
            prepares = partial(_prepared, getattr(exporter, PREPARES))
            patches.enter_context(patch.object(table, "from_torchlib", reads))
            patches.enter_context(patch.object(exporter, PREPARES, prepares))
        if matcher := _matcher():
            patches.enter_context(patch.object(matcher, "match", _quick(matcher.match)))
        yield
