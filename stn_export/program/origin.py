"""Find a network's own code: rebuild its module, and import the packages that register its operators."""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._library import custom_ops, simple_registry
from torch._ops import OpOverload
from torch.export import ExportedProgram

from stn_export.errors import UserError, others_code
from stn_export.program.specs import call_of

BUILT_IN = "stn_export.train.networks:build_model"
FORM = "file.py:callable or package.module:callable"


def resolve(text: str, root: Path | None = None) -> Callable[..., Any]:
    """Import the callable that ``file.py:name`` or ``package.module:name`` names.

    Args:
        text: the callable's name.
        root: folder searched for packages after all that are installed; by default the current directory.

    Raises:
        UserError: where there is no such file, module or name.
    """
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise UserError(f"{text} names no callable", f"write {FORM}")
    file = Path(place).resolve()
    _look_in(file.parent if file.suffix == ".py" else root or Path.cwd())
    with others_code(f"{place} cannot be imported:", f"write {FORM}"):
        module = _from_file(file) if file.suffix == ".py" else importlib.import_module(place)
    attribute = getattr(module, name, None)
    if not callable(attribute):
        raise UserError(f"{place} has no callable {name}", f"write {FORM}")
    return attribute


def _look_in(folder: Path) -> None:
    """Append a folder to the import path, behind all that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _from_file(path: Path) -> Any:
    name = f"stn_export_origin_{path.stem}_{_digest(path)[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no file of Python's")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def allowed(origin: Mapping[str, Any], own: bool) -> dict:
    """Return a file's origin, emptied unless the file is the user's own or names this package's own networks."""
    return dict(origin) if own or origin.get("callable") == BUILT_IN else {}


def origin_of(text: str, inputs: Sequence[str] = (), **arguments: Any) -> dict:
    """Describe, JSON-ready, how to build the module again, with the sha256 of a source file.

    Args:
        text: see ``resolve``.
        inputs: names of the tensors that it is called with, where these are not forward's first parameters.
        arguments: of the callable.
    """
    place, named = text.rpartition(":")[0], {"inputs": list(inputs)} if inputs else {}
    if text == BUILT_IN:
        return {"callable": text, "arguments": arguments} | named
    if not place.endswith(".py"):
        return {"callable": text, "arguments": arguments, "root": str(Path.cwd())} | named
    path = Path(place).resolve()
    made = {"callable": f"{path}:{text.rpartition(':')[2]}", "arguments": arguments, "sha256": _digest(path)}
    return made | named


def module_from(origin: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module | str:
    """Rebuild the module with these weights, in evaluation mode; return the reason where that fails."""
    if not origin:
        return "its code was not given"
    place = origin["callable"].rpartition(":")[0]
    if "sha256" in origin and not (Path(place).is_file() and _digest(Path(place)) == origin["sha256"]):
        return f"{Path(place).name} is not there any more, or was changed"
    try:
        root = Path(origin["root"]) if "root" in origin else None
        with others_code("it raised", "give the module itself"):
            module = resolve(origin["callable"], root)(**origin["arguments"])
            module.load_state_dict(state, strict=False)
            if "inputs" in origin:
                module = call_of(module, (), {name: torch.empty(0) for name in origin["inputs"]}).module
    except UserError as error:
        return f"its code cannot be run here ({type(error.__cause__ or error).__name__})"
    return module.eval().requires_grad_(False)


# Operators of other packages in a captured network: which module registers them, and its import where it is
# loaded.


OWN = {"aten", "prims", "prim", "higher_order", "stn_export"}
OWN |= {"quantized", "quantized_decomposed", "inductor", "onnx", "onnx_symbolic", "profiler", "symm_mem", "c10d"}
MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def packages_of(exported: ExportedProgram) -> dict[str, str]:
    """Return the modules that register a program's operators, by namespace; empty names where unknown."""
    files: dict[str, str] = {}
    for graph in (part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)):
        for node in graph.nodes:
            if isinstance(node.target, OpOverload) and node.target.namespace not in OWN:
                files[node.target.namespace] = files.get(node.target.namespace) or _module_of(node.target)
    return dict(sorted(files.items()))


def _module_of(operator: OpOverload) -> str:
    """Return the importable module that registers an operator; empty where it is unknown."""
    made = custom_ops.OPDEFS.get(operator._schema.name)
    name = made._init_fn.__module__ if made is not None else _beside(operator._schema.name) or operator.namespace
    return name if name != "__main__" and _there(name) else ""


def _beside(qualified: str) -> str:
    """Return the loaded module whose file defines an operator's fake kernel; empty where there is none."""
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
    """Import the modules that register a file's operators; namespaces already registered are skipped.

    Args:
        packages: modules by namespace, as ``packages_of`` returns them; read from the file, so untrusted.
        what: the file, for messages.

    Raises:
        UserError: where one cannot be imported, or is not known.
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
