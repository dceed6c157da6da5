"""Load what is to be adopted: a user's module with its weights, or a program captured elsewhere."""

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from stn_export.errors import UserError, one_line, others_code, require_choice, typed
from stn_export.limits import archive, require
from stn_export.program.origin import resolve
from stn_export.program.passes import NOTHING
from stn_export.program.program import Program, contract_of, load_program
from stn_export.program.specs import BATCH, TensorSpec, by, output_names
from stn_export.program.state import deep_copy

SEED = 0  # of the weights that the module initialises
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
HOLDERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts save weights
# What to do with a file that is no PyTorch network, by suffix.
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
FITTING = "give what was saved from this network, as torch.save(network.state_dict(), FILE)"
LONGEST = 80  # characters of invalid text that a message quotes
RANK = 8  # most dimensions of an input, as in ONNX runtimes


def input_of(text: str) -> tuple[TensorSpec, dict[str, int]]:
    """Parse an input such as ``NAME=N,3,24,W=94:float32`` into its spec and the sizes given for its dynamic dimensions.

    Raises:
        UserError: if the text has another form, or the input would be too large.
    """
    match = INPUT.fullmatch(text)
    if match is None:
        raise UserError(
            f"input {text[:LONGEST]!r} cannot be read", "write NAME=N,3,24,94, with :uint8 or the like behind it"
        )
    dtype = require_choice("type", match["dtype"] or DTYPES[0], DTYPES)
    parts = match["shape"].split(",")
    if len(parts) > RANK:
        raise UserError(f"input {match['name']} has {len(parts)} dimensions", f"an input has at most {RANK}")
    shape: list[int | str] = []
    sizes: dict[str, int] = {}
    for part in parts:
        size = SIZE.fullmatch(part)
        if size is None:
            problem = f"size {part[:LONGEST]!r} cannot be read"
            raise UserError(problem, "write a number from 1, of at most 18 digits, a name, or NAME=NUMBER")
        shape.append(size["name"] or int(size["fixed"]))
        sizes |= {size["name"]: int(size["open"])} if size["open"] else {}
    require("tensors", prod([size for size in (*shape, *sizes.values()) if isinstance(size, int)]), f"input {text!r}")
    return TensorSpec(match["name"], dtype, tuple(shape), batched=shape[0] in (BATCH, 1)), sizes


def require_adoptable(what: str) -> None:
    """Reject a file that holds no PyTorch network, with a hint on what can be done with it.

    Raises:
        UserError: if the file name has the suffix of such a file.
    """
    suffix = Path(what).suffix.lower()
    if ":" not in Path(what).name and suffix in ELSEWHERE:
        raise UserError(f"{what} holds no PyTorch module that can be adopted", ELSEWHERE[suffix].format(typed(what)))


def load_module(what: str, weights: Path | None, evaluation: bool) -> nn.Module:
    """Call a user's callable and return its module in evaluation mode, with the given weights.

    Args:
        what: ``file.py:callable`` or ``package.module:callable``; it is called without arguments.
        weights: see ``read_weights``; by default the module keeps the weights that it initialises or loads itself.
        evaluation: whether a module in training mode may be put into evaluation mode.

    Raises:
        UserError: if any step fails, or the module is in training mode and ``evaluation`` is not set.
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
    """Return whether a module and all its submodules are in evaluation mode.

    Raises:
        UserError: if one of them is in training mode and ``wanted`` (a change of mode) is not set.
    """
    live = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if live and not wanted:
        raise UserError(f"{live[0]} is in training mode", "call .eval() on it, or say --eval")
    return not live


def in_evaluation(module: nn.Module, wanted: bool) -> nn.Module:
    """Return the module if it is in evaluation mode, else a copy that is; the module's own mode never changes.

    Raises:
        UserError: if it is in training mode and ``wanted`` is not set, or if it cannot be copied.
    """
    if require_evaluation(module, wanted):
        return module
    with others_code(f"{type(module).__name__} cannot be copied, and its mode is left as it is:", "call .eval() on it"):
        return deep_copy(module).eval()


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the weights of a file into a module.

    Raises:
        UserError: if the file cannot be read or does not fit the module; the message gives the number of missing,
            unexpected and unlike weights and the first of each.
    """
    state, own = read_weights(path), module.state_dict()
    if state and all(name.startswith("module.") for name in state):  # saved from a DataParallel module
        state = {name.removeprefix("module."): value for name, value in state.items()}
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    unlike = [name for name in own if name in state and not _holds_numbers_like(own[name], state[name])]
    problems = (
        ("missing", [name for name in own if name not in state]),
        ("unexpected", [name for name in state if name not in own]),
        ("of another shape", [f"{name} {by(state[name].shape)} for {by(own[name].shape)}" for name in other]),
        ("sparse, complex or without numbers", unlike),
    )
    if problems_found := [f"{len(names)} {how} (first {names[0]})" for how, names in problems if names]:
        raise UserError(f"{path} does not fit {type(module).__name__}: {', '.join(problems_found)}", FITTING)
    module.load_state_dict(state)


def _holds_numbers_like(own: Tensor, value: Tensor) -> bool:
    """Return whether a weight can be copied from ``value``: dense, with data, and complex only if the weight is."""
    return value.layout is torch.strided and not value.is_meta and value.is_complex() <= own.is_complex()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors``, ``.pt`` or ``.pth`` file, without running code in it.

    Raises:
        UserError: if the file holds none.
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
    """Load a file with ``torch.load``, restricted to tensors.

    Raises:
        UserError: if the file holds anything else, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises various errors for damaged files
        raise UserError(f"{path} is damaged, or holds more than tensors, which may run code", remedy) from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs the safetensors package", "pip install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # its error type depends on its version
        raise UserError(f"{path} is damaged: {one_line(error)}", "save it again") from error


def load_captured(path: Path, specs: Sequence[TensorSpec], outputs: Sequence[str]) -> Program:
    """Load a captured program, renaming its inputs and outputs if names are given. Loading runs the code in the file.

    Raises:
        UserError: if it cannot be read, was captured in training mode, or has other inputs or outputs than named.
    """
    program = load_program(path)
    if any(node.target in NOTHING and True in node.args[1:] for node in program.exported.graph.nodes):
        raise UserError(f"{path} was captured in training mode", "capture module.eval()")
    contract = program.contract
    for kind, asked, captured in (("inputs", specs, contract.inputs), ("outputs", outputs, contract.outputs)):
        if asked and len(asked) != len(captured):
            raise UserError(f"{path} has {len(captured)} {kind}, not {len(asked)}", f"name all {kind} or none")
    if specs or outputs:
        _check_shapes(specs, contract.inputs)
        names, shapes = ([spec.name for spec in specs], [spec.shape for spec in specs]) if specs else (None, None)
        contract = contract_of(program.exported, shapes, names, outputs or output_names(program.exported))
    return Program(program.exported, contract, program.origin)


def _check_shapes(asked: Sequence[TensorSpec], captured: Sequence[TensorSpec]) -> None:
    for spec, other in zip(asked, captured, strict=bool(asked)):
        fits = len(spec.shape) == len(other.shape) and all(
            size == own or (isinstance(size, str) and isinstance(own, str))
            for size, own in zip(spec.shape, other.shape, strict=True)
        )
        if not fits or spec.dtype != other.dtype:
            raise UserError(f"input {spec.name} is {other.text} there, not {spec.text}", "give it as it was captured")
