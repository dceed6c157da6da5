"""What a module is called with, flattened: tensors in by position; None, numbers and whatever else stand fixed."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from stn_export.errors import UserError


@dataclass(frozen=True)
class Given:
    """What somebody calls a module with: arguments by position, keywords by name."""

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any, keywords: Mapping[str, Any] | None = None) -> Self:
        """One tensor, several by position, or any by name in a mapping; ``keywords`` besides."""
        if isinstance(inputs, Mapping):
            return cls((), {**inputs, **(keywords or {})})
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), dict(keywords or {}))


@dataclass(frozen=True)
class Call:
    """A module that takes tensors only, by position; an example of them, their names, and where each comes from.

    ``keys`` leads to a tensor among the arguments: the parameter's name, then keys and indices of what holds it.
    """

    module: nn.Module
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    keys: tuple[tuple[Any, ...], ...]

    def dims(self, dynamic: Any) -> list[dict[int, Any]]:
        """For each tensor what is open in it, by axis, from ``dynamic_shapes`` as ``torch.export`` takes them.

        Raises:
            UserError: where they do not fit the arguments.
        """
        try:
            return [_axes(_lookup(dynamic, keys, self.keys)) for keys in self.keys]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"dynamic_shapes {dynamic} do not fit the inputs {', '.join(self.names)}",
                "give them as torch.export takes them: by parameter, or in the order of the arguments",
            ) from error


def _lookup(dynamic: Any, keys: tuple[Any, ...], every: Sequence[tuple[Any, ...]]) -> Any:
    first = keys[0] if isinstance(dynamic, Mapping) else list(dict.fromkeys(each[0] for each in every)).index(keys[0])
    for key in (first, *keys[1:]):
        dynamic = None if dynamic is None else dynamic[key]
    return dynamic


def _axes(dims: Any) -> dict[int, Any]:
    given = dims if isinstance(dims, Mapping) else dict(enumerate(dims or ()))
    return {axis: dim for axis, dim in given.items() if dim is not None and dim != Dim.STATIC and type(dim) is not int}


def call_of(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Call:
    """A call of anything as one of tensors only; the module itself where it is one already.

    Args:
        module: shares its parameters with the one that is given back.
        arguments: of ``forward`` by position: tensors, dictionaries and lists of them, None, numbers.
        keywords: likewise by name.

    Raises:
        UserError: where ``forward`` does not take them, or there is no tensor among them.
    """
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(f"{kind} is TorchScript, which torch.export does not take", "give the module it was made from")
    signature = inspect.signature(module.forward)
    bound = _bound(kind, signature, tuple(arguments), dict(keywords or {}))
    leaves, structure = _pytree.tree_flatten_with_path(dict(bound.arguments))
    paths, values = zip(*leaves, strict=True) if leaves else ((), ())
    if any(isinstance(value, np.ndarray | np.generic) for value in values):
        raise UserError(f"{kind} is given NumPy arrays", "give tensors: torch.from_numpy")
    places = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
    if not places:
        raise UserError(f"{kind} is given no tensor", "give example inputs as forward takes them")
    keys = tuple(tuple(_keys(paths[place])) for place in places)
    names = tuple(re.sub(r"\W", "_", "_".join(map(str, each))) for each in keys)
    tensors = tuple(values[place] for place in places)
    if len(values) == len(places) and _in_order(signature, keys):
        return Call(module, tensors, names, keys)
    shell = copy.copy(module)
    fixed = [None if isinstance(each, Tensor) else each for each in values]
    shell.forward = MethodType(_flat(module, bound.signature, structure, fixed, places, names), shell)
    return Call(shell, tensors, names, keys)


def _bound(
    kind: str, signature: inspect.Signature, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> inspect.BoundArguments:
    """The arguments by parameter; where ``forward`` takes any by position, those by name are taken in their order.

    Raises:
        UserError: where it does not take them; it lists what it takes.
    """
    parameters, kinds = signature.parameters.values(), inspect.Parameter
    names = [each.name for each in parameters if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    variable = {each.kind for each in parameters}
    unknown = [name for name in keywords if name not in names]
    if unknown and kinds.VAR_KEYWORD not in variable:
        if kinds.VAR_POSITIONAL not in variable or len(unknown) < len(keywords):
            raise UserError(f"{kind} has no input {unknown[0]}", f"forward takes {', '.join(names) or 'nothing'}")
        arguments, keywords = (*arguments, *keywords.values()), {}
    only = [each.name for each in parameters if each.kind is kinds.POSITIONAL_ONLY and each.name in keywords]
    arguments = (*arguments, *(keywords.pop(name) for name in only))
    try:
        return signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise UserError(
            f"{kind} does not take these inputs: {error}",
            f"give what forward takes: {', '.join(names) or 'nothing'}",
        ) from error


def _in_order(signature: inspect.Signature, keys: Sequence[tuple[Any, ...]]) -> bool:
    """Whether these are the first parameters, each a tensor, so that they can be given by position as they are."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = [each.name for each in signature.parameters.values() if each.kind in kinds][: len(keys)]
    return [(name,) for name in first] == list(keys)


def _flat(
    module: nn.Module,
    signature: inspect.Signature,
    structure: _pytree.TreeSpec,
    fixed: Sequence[Any],
    places: Sequence[int],
    names: Sequence[str],
) -> Callable[..., Any]:
    """A ``forward`` of tensors only for a shell of the module; it holds no module, so that copies of a shell are whole.

    Within a call ``self.forward`` is the module's own.
    """
    own, method = module.forward, False
    if isinstance(own, MethodType) and own.__self__ is module:
        own, method = own.__func__, True
    inside: list[bool] = []  # one entry while a call goes on

    def forward(self: nn.Module, *given: Any, **keywords: Any) -> Any:
        call = MethodType(own, self) if method else own
        if inside:
            return call(*given, **keywords)
        filled = list(fixed)
        for place, value in zip(places, given, strict=True):
            filled[place] = value
        again = inspect.BoundArguments(signature, _pytree.tree_unflatten(filled, structure))
        inside.append(True)
        try:
            return call(*again.args, **again.kwargs)
        finally:
            inside.pop()

    kind = inspect.Parameter
    flat = inspect.Signature([kind(name, kind.POSITIONAL_OR_KEYWORD) for name in ("self", *names)])
    vars(forward)["__signature__"] = flat  # which ``inspect.signature`` looks for
    return forward


def _keys(path: Sequence[object]) -> Iterator[Any]:
    for each in path:
        yield next(getattr(each, name) for name in ("key", "idx", "name") if hasattr(each, name))


def output_names(exported: ExportedProgram) -> list[str]:
    """Names for outputs that nobody named: keys where the module gives a dictionary, else ``output0`` and so on."""
    structure = exported.call_spec.out_spec
    if structure.is_leaf():
        return ["output"]
    leaves = _pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    paths = [path for path, _ in _pytree.tree_flatten_with_path(leaves)[0]]
    names = ["_".join(str(key) for key in _keys(path)) for path in paths]
    return [f"output{name}" if name[:1].isdecimal() else re.sub(r"\W", "_", name) for name in names]
