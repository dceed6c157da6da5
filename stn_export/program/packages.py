"""Operators of other packages in a captured network: which module registers them, and its import where it is loaded."""

import importlib
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch._library import custom_ops, simple_registry
from torch._ops import OpOverload
from torch.export import ExportedProgram

from stn_export.errors import UserError, others_code

OWN = {"aten", "prims", "prim", "higher_order", "stn_export"}
OWN |= {"quantized", "quantized_decomposed", "inductor", "onnx", "onnx_symbolic", "profiler", "symm_mem", "c10d"}
MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def packages_of(exported: ExportedProgram) -> dict[str, str]:
    """The modules that register a program's operators, by namespace; empty where nobody can tell which does."""
    found: dict[str, str] = {}
    for graph in (each.graph for each in exported.graph_module.modules() if isinstance(each, torch.fx.GraphModule)):
        for node in graph.nodes:
            if isinstance(node.target, OpOverload) and node.target.namespace not in OWN:
                found[node.target.namespace] = found.get(node.target.namespace) or _module_of(node.target)
    return dict(sorted(found.items()))


def _module_of(operator: OpOverload) -> str:
    """The module whose import registers an operator, as far as it can be imported by its name elsewhere."""
    made = custom_ops.OPDEFS.get(operator._schema.name)
    name = made._init_fn.__module__ if made is not None else _beside(operator._schema.name) or operator.namespace
    return name if name != "__main__" and _there(name) else ""


def _beside(qualified: str) -> str:
    """The module that holds what an operator does to shapes."""
    kernel = simple_registry.singleton.find(qualified).fake_impl.kernel
    file = kernel.source.rpartition(":")[0] if kernel is not None else ""
    modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    return next((name for name, path in modules.items() if file and path == file and name != "__main__"), "")


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def import_packages(packages: object, what: str) -> None:
    """Import the modules that register what a file needs; one whose operators are there already is left alone.

    Args:
        packages: by namespace, as ``packages_of`` gives them; read from the file.
        what: the file, for messages.

    Raises:
        UserError: where one cannot be imported, or none is known.
    """
    if not isinstance(packages, Mapping):
        return
    registered = {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names()}
    for namespace, module in packages.items():
        if namespace in registered:
            continue
        if not isinstance(module, str) or not MODULE.fullmatch(module):
            raise UserError(
                f"{what} needs operators of {namespace!r}, and does not say which package registers them",
                "import that package first",
            )
        with others_code(
            f"{what} needs operators of {namespace}, and {module} cannot be imported:", f"install {module}"
        ):
            importlib.import_module(module)
