"""What is to be adopted: somebody's module with its weights, or a program that somebody captured."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from stn_export.errors import UserError, one_line, others_code, require_choice
from stn_export.limits import archive, require
from stn_export.program.origin import resolve
from stn_export.program.passes import NOTHING
from stn_export.program.program import Program, contract_of, load_program
from stn_export.program.specs import BATCH, TensorSpec, by, output_names
from stn_export.program.state import deep_copy

SEED = 0  # of weights that the module draws itself
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
HOLDERS = ("state_dict", "model", "model_state_dict")  # where training scripts put weights in what they save
# What a file that is no network of PyTorch's can be used for instead, by the end of its name.
ELSEWHERE = {
    ".onnx": "stn-export audit {0} says where it runs and how to call it; bench {0}, verify {0} OTHER",
    ".ts": "stn-export verify {0} OTHER compares it with another file",
    ".safetensors": "weights alone are no network: adopt file.py:callable --weights {0}",
    ".pt": "weights alone are no network: adopt file.py:callable --weights {0}",
    ".pth": "weights alone are no network: adopt file.py:callable --weights {0}",
    ".py": "name what gives the module in it: {0}:callable",
}
INPUT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<shape>[\w=]+(,[\w=]+)*)(:(?P<dtype>\w+))?", re.ASCII)
SIZE = re.compile(r"(?!\d)(?P<name>\w+)(=(?P<open>[1-9]\d{0,17}))?|(?P<fixed>[1-9]\d{0,17})", re.ASCII)
LONGEST = 80  # characters of what is wrong that a message repeats
RANK = 8  # dimensions that an input has at most, as ONNX's runtimes do


def input_of(text: str) -> tuple[TensorSpec, dict[str, int]]:
    """An input from ``NAME=N,3,24,W=94:float32``, and what its open sizes are where it says so.

    Raises:
        UserError: for anything else.
    """
    found = INPUT.fullmatch(text)
    if found is None:
        raise UserError(
            f"input {text[:LONGEST]!r} cannot be read", "write NAME=N,3,24,94, with :uint8 or the like behind it"
        )
    dtype = require_choice("type", found["dtype"] or DTYPES[0], DTYPES)
    parts = found["shape"].split(",")
    if len(parts) > RANK:
        raise UserError(f"input {found['name']} has {len(parts)} dimensions", f"an input has at most {RANK}")
    shape: list[int | str] = []
    sizes: dict[str, int] = {}
    for part in parts:
        size = SIZE.fullmatch(part)
        if size is None:
            said = f"size {part[:LONGEST]!r} cannot be read"
            raise UserError(said, "write a number from 1, of at most 18 digits, a name, or NAME=NUMBER")
        shape.append(size["name"] or int(size["fixed"]))
        sizes |= {size["name"]: int(size["open"])} if size["open"] else {}
    require("tensors", prod([size for size in (*shape, *sizes.values()) if isinstance(size, int)]), f"input {text!r}")
    return TensorSpec(found["name"], dtype, tuple(shape), batched=shape[0] in (BATCH, 1)), sizes


def require_adoptable(what: str) -> None:
    """Refuse a file that holds no network of PyTorch's, and say what can be done with it.

    Raises:
        UserError: where the name is that of such a file.
    """
    suffix = Path(what).suffix.lower()
    if ":" not in Path(what).name and suffix in ELSEWHERE:
        raise UserError(f"{what} holds no PyTorch module that can be adopted", ELSEWHERE[suffix].format(what))


def load_module(what: str, weights: Path | None, evaluation: bool) -> nn.Module:
    """The module that a callable gives, with these weights.

    Args:
        what: ``file.py:callable`` or ``package.module:callable``, called without arguments.
        weights: see ``read_weights``; without them it keeps what it draws or loads itself.
        evaluation: whether to put it into evaluation mode.

    Raises:
        UserError: where that fails at any step, or the module is in training mode and is to stay so.
    """
    make = resolve(what)
    torch.manual_seed(SEED)
    with others_code(f"{what} raised", "it is called without arguments"):
        module = make()
    if not isinstance(module, nn.Module):
        raise UserError(f"{what} gives a {type(module).__name__}", "it must give an nn.Module")
    if weights is not None:
        load_weights(module, weights)
    require_evaluation(module, evaluation)
    return module.eval()


def require_evaluation(module: nn.Module, wanted: bool) -> bool:
    """Whether a module is in evaluation mode all through.

    Raises:
        UserError: where it is not and nobody wanted that changed.
    """
    live = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if live and not wanted:
        raise UserError(f"{live[0]} is in training mode", "call .eval() on it, or say --eval")
    return not live


def in_evaluation(module: nn.Module, wanted: bool) -> nn.Module:
    """The module itself where it is in evaluation mode, else a copy of it that is: its own mode stays.

    Raises:
        UserError: where it is in training mode and nobody wanted another, or it cannot be copied.
    """
    if require_evaluation(module, wanted):
        return module
    with others_code(f"{type(module).__name__} cannot be copied, and its mode is left as it is:", "call .eval() on it"):
        return deep_copy(module).eval()


def load_weights(module: nn.Module, path: Path) -> None:
    """Put the weights of a file into a module.

    Raises:
        UserError: where the file cannot be read, or its weights are not the module's: the first ones, and how many.
    """
    state, own = read_weights(path), module.state_dict()
    if state and all(name.startswith("module.") for name in state):  # a DataParallel around it
        state = {name.removeprefix("module."): value for name, value in state.items()}
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    unlike = [name for name in own if name in state and not _holds_numbers_like(own[name], state[name])]
    problems = (
        ("missing", [name for name in own if name not in state]),
        ("unexpected", [name for name in state if name not in own]),
        ("of another shape", [f"{name} {by(state[name].shape)} for {by(own[name].shape)}" for name in other]),
        ("sparse, complex or without numbers", unlike),
    )
    if found := [f"{len(names)} {how} (first {names[0]})" for how, names in problems if names]:
        raise UserError(f"{path} does not fit {type(module).__name__}: {', '.join(found)}", "give its own")
    module.load_state_dict(state)


def _holds_numbers_like(own: Tensor, value: Tensor) -> bool:
    """Whether a weight can be copied from this: numbers one by one, complex only where the weight is."""
    return value.layout is torch.strided and not value.is_meta and value.is_complex() <= own.is_complex()


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from ``.safetensors``, or from ``.pt`` or ``.pth`` without running what is in it.

    Raises:
        UserError: where there is none.
    """
    archive(path, "name the weights with --weights")
    content = _safetensors(path) if path.suffix == ".safetensors" else tensors_of(path, "save module.state_dict()")
    held = [content[name] for name in HOLDERS if isinstance(content, dict) and isinstance(content.get(name), dict)]
    state = held[0] if held else content
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path} holds no state dict", f"save module.state_dict(), bare or under {HOLDERS[0]!r}")
    return state


def tensors_of(path: Path, remedy: str) -> object:
    """``torch.load`` of tensors only.

    Raises:
        UserError: where there is more in the file, or it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises by kind of damage
        raise UserError(f"{path} is damaged, or holds more than tensors, which may run code", remedy) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs the safetensors package", "pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # its own kind, by version
        raise UserError(f"{path} is damaged: {one_line(error)}", "save it again") from error


def load_captured(path: Path, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> Program:
    """A program that somebody else captured, with other names where they are given. This runs what its maker put in.

    Raises:
        UserError: where it cannot be read, was captured in training mode, or has other inputs or outputs.
    """
    program = load_program(path)
    if any(node.target in NOTHING and True in node.args[1:] for node in program.exported.graph.nodes):
        raise UserError(f"{path} was captured in training mode", "capture module.eval()")
    contract = program.contract
    for kind, given, found in (("inputs", specs, contract.inputs), ("outputs", outputs, contract.outputs)):
        if given and len(given) != len(found):
            raise UserError(f"{path} has {len(found)} {kind}, not {len(given)}", f"name all {kind} or none")
    if specs or outputs:
        _check_shapes(specs, contract.inputs)
        names, shapes = ([spec.name for spec in specs], [spec.shape for spec in specs]) if specs else (None, None)
        contract = contract_of(program.exported, shapes, names, outputs or output_names(program.exported))
    return Program(program.exported, contract, program.origin)


def _check_shapes(asked: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    for spec, other in zip(asked, found, strict=bool(asked)):
        fits = len(spec.shape) == len(other.shape) and all(
            size == own or (isinstance(size, str) and isinstance(own, str))
            for size, own in zip(spec.shape, other.shape, strict=True)
        )
        if not fits or spec.dtype != other.dtype:
            raise UserError(f"input {spec.name} is {other.text} there, not {spec.text}", "give it as it was captured")
