"""Cache work that ``torch.onnx.export`` repeats for every file: over half of the time of an export.

PyTorch's translations of operators into ONNX are read once for all files, without parsing the source of each; a
program is decomposed once for all files with the same set of translated operators; PyTorch's composite operators are
looked up once while no other is registered; and a pattern of the optimiser with several outputs is tried only at nodes
of its own operator. None of this changes a file.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import cache, partial
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

import torch
from torch.export import ExportedProgram

if TYPE_CHECKING:
    from onnxscript.rewriter._basics import MatchResult
    from onnxscript.rewriter._matcher import SimplePatternMatcher
    from torch.onnx._internal.exporter._registration import ONNXRegistry

OTHERS = ("torchvision",)  # packages that register operators when imported
PREPARES = "_prepare_exported_program_for_export"
LOOKS_UP = "_materialize_cpp_cia_ops"
COMPOSITE = "CompositeImplicitAutograd"  # dispatch key of the operators that are written as other operators
_PREPARED: WeakKeyDictionary[ExportedProgram, dict[frozenset[object], ExportedProgram]] = WeakKeyDictionary()


def _found() -> "tuple[type[ONNXRegistry], ModuleType] | None":
    """Return PyTorch's registry and exporter; None if this version keeps them elsewhere, so that nothing is cached."""
    try:
        from torch.onnx._internal.exporter import _core, _decomp
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    prepared = hasattr(_core, PREPARES) and hasattr(_decomp, "get_onnx_implemented_overloads")
    return (ONNXRegistry, _core) if prepared else None


@cache
def _read(read: "Callable[..., ONNXRegistry]", imported: tuple[str, ...], **opset_version: int) -> "ONNXRegistry":
    """Read a registry, once per opset and set of imported operator packages."""
    del imported
    with _unparsed():
        return read(**opset_version)


@contextmanager
def _unparsed() -> Iterator[None]:
    """List onnxscript's translations without parsing their source, which it would for the name of their domain only."""
    try:
        from onnxscript.values import TracedOnnxFunction
    except ImportError:
        TracedOnnxFunction = None  # type: ignore[assignment, misc]  # noqa: N806  # this version keeps it elsewhere
    if not isinstance(getattr(TracedOnnxFunction, "function_ir", None), property):
        yield
        return
    with patch.object(TracedOnnxFunction, "function_ir", property(attrgetter("opset"))):  # an opset has a domain, too
        yield


def _copied(read: "Callable[..., ONNXRegistry]", **opset_version: int) -> "ONNXRegistry":
    """Return a copy of the registry that an export may add its own translations to."""
    registry = copy(_read(read, tuple(name for name in OTHERS if name in sys.modules), **opset_version))
    registry.functions = {operator: list(overloads) for operator, overloads in registry.functions.items()}
    return registry


def _prepared(
    prepare: Callable[..., ExportedProgram], program: ExportedProgram, *, registry: "ONNXRegistry"
) -> ExportedProgram:
    """Decompose a program for export; the result depends on which operators are translated, not on the translations.

    The exporter reads the result and does not change it.
    """
    from torch.onnx._internal.exporter._decomp import get_onnx_implemented_overloads

    translated = frozenset(get_onnx_implemented_overloads(registry))
    prepared = _PREPARED.setdefault(program, {})
    if translated not in prepared:
        prepared[translated] = prepare(program, registry=registry)
    return prepared[translated]


def _composites() -> ModuleType | None:
    """Return the module that looks up PyTorch's composite operators; None if this version keeps that elsewhere."""
    try:
        from torch._export import utils
    except ImportError:
        return None
    return utils if hasattr(utils, LOOKS_UP) else None


def _until_others(look_up: Callable[[], None]) -> Callable[[], None]:
    """Wrap the look-up of composite operators, twice per decomposition, so that it is repeated only for other names."""
    seen: set[frozenset[str]] = set()

    def looked_up() -> None:
        names = frozenset(torch._C._dispatch_get_registrations_for_dispatch_key(COMPOSITE))
        if names not in seen:
            look_up()
            seen.add(names)

    return looked_up


def _matcher() -> "type[SimplePatternMatcher] | None":
    """Return the optimiser's pattern matcher; None, so that it stays slow, if this onnxscript keeps it elsewhere."""
    try:
        from onnxscript.rewriter._matcher import SimplePatternMatcher
    except ImportError:
        return None
    return SimplePatternMatcher


def _quick(match: "Callable[..., MatchResult]") -> "Callable[..., MatchResult]":
    """Wrap a matcher so that it first compares the node's operator with that of the pattern's first output.

    For a pattern with several outputs the matcher compares it last and lists all nodes of the graph before: its time
    grows with the square of their number.
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
    """Let ``torch.onnx.export`` reuse registries and decompositions and try patterns only where they can match.

    Blocks may be nested: what an outer one has looked up, an inner one does not look up again.
    """
    with ExitStack() as patches:
        if module := _composites():
            patches.enter_context(patch.object(module, LOOKS_UP, _until_others(getattr(module, LOOKS_UP))))
        if table_of_torch := _found():
            table, exporter = table_of_torch
            reads = staticmethod(partial(_copied, table.from_torchlib))
            prepares = partial(_prepared, getattr(exporter, PREPARES))
            patches.enter_context(patch.object(table, "from_torchlib", reads))
            patches.enter_context(patch.object(exporter, PREPARES, prepares))
        if matcher := _matcher():
            patches.enter_context(patch.object(matcher, "match", _quick(matcher.match)))
        yield
