"""Where a module's own code is, and the module made from it again: eager PyTorch runs that, not the captured graph."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stn_export.errors import UserError, others_code
from stn_export.program.calls import call_of

BUILT_IN = "stn_export.train.networks:build_model"
FORM = "file.py:callable or package.module:callable"


def resolve(text: str, root: Path | None = None) -> Callable[..., Any]:
    """Import the callable that ``file.py:name`` or ``package.module:name`` names.

    Args:
        text: the name.
        root: where packages are looked for behind all that is installed; by default the current directory.

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
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{place} has no callable {name}", f"write {FORM}")
    return found


def _look_in(folder: Path) -> None:
    """Let imports find what lies beside a file, or where a command was started, behind all that is installed."""
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
    """Empty the origin that a program file names, unless the file is the user's own or names our own networks."""
    return dict(origin) if own or origin.get("callable") == BUILT_IN else {}


def origin_of(text: str, inputs: Sequence[str] = (), **arguments: Any) -> dict:
    """JSON-ready: how to make the module again, and the bytes of the file that did it.

    Args:
        text: see ``resolve``.
        inputs: the names of the tensors that it is called with, where they are not forward's first ones.
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
    """The module itself with these weights, in evaluation mode, or why there is none."""
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
