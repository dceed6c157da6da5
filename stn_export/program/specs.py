"""Inputs and outputs of a network: names, types, shapes, image normalisation, and calls flattened to tensors."""

import copy
import inspect
import itertools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MethodType
from typing import Any, Self

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree

from stn_export.cli.tables import by, normalisation
from stn_export.errors import UserError, command

SIDES = ("inputs", "outputs")
BATCH = "N"  # the name of the dynamic batch in shapes
BFLOAT16 = "bfloat16"  # which PyTorch and ONNX have, and NumPy has not
OPEN_SIZE = 32  # default of another dynamic size
Batch = Mapping[str, Tensor]  # by input; images may be bytes, not normalised yet
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pixels:
    """Normalisation of uint8 images N×C×H×W: ``(x / 255 - mean) / std``, each one value or one per channel."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def tensors(self, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and std as tensors, each 1×1×1 or C×1×1."""
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std

    def normalise(self, images: Tensor) -> Tensor:
        """Convert uint8 images N×C×H×W (or C×H×W) to normalised float32."""
        mean, std = self.tensors(images.device)
        return images.float().div_(255 * std).sub_(mean / std)

    def denormalise(self, images: Tensor) -> Tensor:
        """Convert normalised images back to the nearest bytes."""
        mean, std = self.tensors(images.device)
        return (images * std + mean).mul(255).round().clamp(0, 255).to(torch.uint8)

    def __str__(self) -> str:
        return normalisation(self.mean, self.std)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: of the input or output.
        dtype: its NumPy name.
        shape: sizes, dynamic ones as names; ``N`` is the batch.
        batched: whether its first dimension counts the examples of a batch.
        pixels: normalisation of image bytes, for an input of images.
        layout: ``NCHW``, or ``NHWC`` where images have their channels last.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    batched: bool = True
    pixels: Pixels | None = None
    layout: str = "NCHW"

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def is_picture(self) -> bool:
        """Whether it can be a batch of images: N×C×H×W, floating-point or bytes."""
        return len(self.shape) == 4 and (self.is_float or self.dtype == "uint8")

    @property
    def nchw(self) -> tuple[int | str, ...]:
        """Its shape in a ``Batch``, where images have their channels first."""
        return self.shape if self.layout == "NCHW" else (self.shape[0], self.shape[3], *self.shape[1:3])

    @property
    def text(self) -> str:
        """Shape and type for people: ``N×3×32×32 float32``."""
        return f"{by(self.shape)} {self.dtype}"

    def fixed(self, sizes: Mapping[str, int]) -> Self:
        """Return the spec with dynamic sizes made static, by name."""
        shape = tuple(sizes.get(size, size) if isinstance(size, str) else size for size in self.shape)
        return replace(self, shape=shape)

    def opened(self) -> Self:
        """Return the spec with a dynamic batch, where the first dimension counts examples."""
        return replace(self, shape=(BATCH, *self.shape[1:])) if self.batched else self

    def array(self, values: Tensor) -> np.ndarray:
        """Convert a tensor of a batch to the array that this input takes; normalise bytes where it takes floats."""
        if values.dtype == torch.uint8 and self.pixels is not None and self.is_float:
            values = self.pixels.normalise(values)
        if self.layout == "NHWC":
            values = values.permute(0, 2, 3, 1)
        if self.dtype == BFLOAT16:
            raise UserError(f"{self.name} is bfloat16, which NumPy lacks", "take float32 and convert it inside forward")
        return numbers_of(values.contiguous()).astype(self.dtype, copy=False)

    def tensor(self, values: Tensor) -> Tensor:
        """Convert a tensor of a batch to the one that a module takes here; bfloat16, which NumPy lacks, included."""
        if self.dtype == BFLOAT16:
            return torch.from_numpy(replace(self, dtype="float32").array(values)).bfloat16()
        return torch.from_numpy(self.array(values))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape fits; sizes that share a name are not compared."""
        return len(shape) == len(self.shape) and all(
            size > 0 if isinstance(expected, str) else size == expected
            for size, expected in zip(shape, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of an artifact, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def batch(self) -> int | None:
        """The static batch size; None where the batch is dynamic or there is none."""
        sizes = [spec.shape[0] for spec in self.inputs if spec.batched]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    @property
    def picture(self) -> TensorSpec | None:
        """The first input that takes images; None where there is none."""
        return next((spec for spec in self.inputs if spec.is_picture), None)

    @property
    def open_sizes(self) -> tuple[str, ...]:
        """The names of the dynamic dimensions other than the batch."""
        names = (size for spec in self.inputs for size in spec.shape if isinstance(size, str) and size != BATCH)
        return tuple(dict.fromkeys(names))

    def arrays(self, batch: Batch) -> Arrays:
        """Convert a batch to the arrays that a runner is fed.

        Raises:
            UserError: where the batch lacks an input, or one is of a type that NumPy lacks.
        """
        self._require(batch)
        return {spec.name: spec.array(batch[spec.name]) for spec in self.inputs}

    def values(self, batch: Batch) -> tuple[Tensor, ...]:
        """Convert a batch to the tensors that a module takes, in order.

        Raises:
            UserError: where the batch lacks an input.
        """
        self._require(batch)
        return tuple(spec.tensor(batch[spec.name]) for spec in self.inputs)

    def _require(self, batch: Batch) -> None:
        if missing := [spec.name for spec in self.inputs if spec.name not in batch]:
            raise UserError(f"there is no input {', '.join(missing)}", f"give {', '.join(s.name for s in self.inputs)}")

    def random(self, batch: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
        """Draw a random batch: floats uniform in [-1, 1], bytes for images that take them, else zeros and ones.

        Args:
            batch: number of examples, where the batch is dynamic.
            seed: of the random generator.
            sizes: of other dynamic dimensions; by default ``OPEN_SIZE``.
        """
        random = torch.Generator().manual_seed(seed)
        sizes = dict.fromkeys(self.open_sizes, OPEN_SIZE) | dict(sizes or {}) | {BATCH: batch}
        return {spec.name: _random(spec.fixed(sizes), random) for spec in self.inputs}

    def fixed(self, sizes: Mapping[str, int]) -> Self:
        """Return the contract with dynamic sizes made static, by name."""
        return replace(self, **{side: tuple(spec.fixed(sizes) for spec in getattr(self, side)) for side in SIDES})

    def as_dict(self) -> dict:
        """Return the contract JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping) -> Self:
        """Rebuild a contract from ``as_dict``.

        Raises:
            UserError: where the content is no contract.
        """
        try:
            return msgspec.convert(content, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise UserError(
                f"the contract is damaged: {error}", f"run {command('export')} again with this version"
            ) from error


def whole(shape: Sequence[int | str]) -> tuple[int, ...]:
    """Return the sizes of a static shape.

    Raises:
        TypeError: where a size is dynamic.
    """
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) != len(shape):
        raise TypeError(f"sizes are open in {by(shape)}")
    return sizes


def _random(spec: TensorSpec, random: torch.Generator) -> Tensor:
    shape = whole(spec.nchw)
    if spec.pixels is not None or (spec.is_picture and not spec.is_float):
        return torch.randint(256, shape, generator=random, dtype=torch.uint8)
    if spec.is_float:
        return (2 * torch.rand(shape, generator=random) - 1).to(getattr(torch, spec.dtype))
    return torch.randint(2, shape, generator=random).to(getattr(torch, spec.dtype))


def numbers_of(tensor: Tensor) -> np.ndarray:
    """Convert a tensor to an array on the CPU; bfloat16, which NumPy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def require_values(module: nn.Module, tensors: Iterable[Tensor]) -> None:
    """Require that example inputs, parameters and buffers hold numbers, which tensors on ``meta`` do not.

    Raises:
        UserError: where one is on ``meta``; it names a parameter or buffer.
    """
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise UserError(
            f"{type(module).__name__} is given inputs on the device meta, which hold no numbers",
            "give example inputs on the CPU: torch.rand(shape)",
        )
    held = itertools.chain(module.named_parameters(), module.named_buffers())
    if name := next((name for name, value in held if value.device.type == "meta"), ""):
        raise UserError(
            f"{name} of {type(module).__name__} is on the device meta, which holds no numbers",
            "build the module on the CPU, or module.to_empty(device='cpu') and load its weights",
        )


def dtype_name(tensor: Tensor) -> str:
    """Return the NumPy name of a tensor's type."""
    return str(tensor.dtype).removeprefix("torch.")


# Calls flattened: tensors by position; None, numbers and all other arguments become constants.


@dataclass(frozen=True)
class Given:
    """The arguments that a user calls a module with, by position and by name."""

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any, keywords: Mapping[str, Any] | None = None) -> Self:
        """Collect arguments: one tensor, several by position, or any by name in a mapping; ``keywords`` are added."""
        if isinstance(inputs, Mapping):
            return cls((), {**inputs, **(keywords or {})})
        return cls((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), dict(keywords or {}))


@dataclass(frozen=True)
class Call:
    """A call of a module that takes tensors only, by position: example tensors, their names and origins.

    ``keys`` is the path of each tensor in the original arguments: the parameter's name, then keys and indices.
    """

    module: nn.Module
    tensors: tuple[Tensor, ...]
    names: tuple[str, ...]
    keys: tuple[tuple[Any, ...], ...]

    def dims(self, dynamic: Any) -> list[dict[int, Any]]:
        """Return each tensor's dynamic dimensions, by axis, from ``dynamic_shapes`` in the form of ``torch.export``.

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
    first = keys[0] if isinstance(dynamic, Mapping) else list(dict.fromkeys(key[0] for key in every)).index(keys[0])
    for key in (first, *keys[1:]):
        dynamic = None if dynamic is None else dynamic[key]
    return dynamic


def _axes(dims: Any) -> dict[int, Any]:
    by_axis = dims if isinstance(dims, Mapping) else dict(enumerate(dims or ()))
    return {
        axis: dim for axis, dim in by_axis.items() if dim is not None and dim != Dim.STATIC and type(dim) is not int
    }


def call_of(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Call:
    """Turn a call with any arguments into one with tensors only; the module itself where it already is one.

    Args:
        module: shares its parameters with the returned one.
        arguments: of ``forward`` by position: tensors, dictionaries and lists of them, None, numbers.
        keywords: likewise by name.

    Raises:
        UserError: where ``forward`` does not accept them, or none is a tensor.
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
    names = tuple(re.sub(r"\W", "_", "_".join(map(str, part))) for part in keys)
    tensors = tuple(values[place] for place in places)
    if len(values) == len(places) and _in_order(signature, keys):
        return Call(module, tensors, names, keys)
    shell = copy.copy(module)
    fixed = [None if isinstance(value, Tensor) else value for value in values]
    shell.forward = MethodType(_flat(module, bound.signature, structure, fixed, places, names), shell)
    return Call(shell, tensors, names, keys)


def _bound(
    kind: str, signature: inspect.Signature, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> inspect.BoundArguments:
    """Bind arguments to parameters; where no name is a parameter, named ones go to ``*args`` in their order.

    Raises:
        UserError: where they do not fit; it lists the parameters.
    """
    parameters, kinds = signature.parameters.values(), inspect.Parameter
    names = [
        parameter.name for parameter in parameters if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    variable = {parameter.kind for parameter in parameters}
    unknown = [name for name in keywords if name not in names]
    if unknown and kinds.VAR_KEYWORD not in variable:
        if kinds.VAR_POSITIONAL not in variable or len(unknown) < len(keywords):
            raise UserError(f"{kind} has no input {unknown[0]}", f"forward takes {', '.join(names) or 'nothing'}")
        arguments, keywords = (*arguments, *keywords.values()), {}
    only = [
        parameter.name
        for parameter in parameters
        if parameter.kind is kinds.POSITIONAL_ONLY and parameter.name in keywords
    ]
    arguments = (*arguments, *(keywords.pop(name) for name in only))
    try:
        return signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise UserError(
            f"{kind} does not take these inputs: {error}",
            f"give what forward takes: {', '.join(names) or 'nothing'}",
        ) from error


def _in_order(signature: inspect.Signature, keys: Sequence[tuple[Any, ...]]) -> bool:
    """Return whether the tensors are the first parameters, so that they can be passed by position as they are."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = [parameter.name for parameter in signature.parameters.values() if parameter.kind in kinds][: len(keys)]
    return [(name,) for name in first] == list(keys)


def _flat(
    module: nn.Module,
    signature: inspect.Signature,
    structure: _pytree.TreeSpec,
    fixed: Sequence[Any],
    places: Sequence[int],
    names: Sequence[str],
) -> Callable[..., Any]:
    """Make a ``forward`` of tensors only for a copy of the module.

    It holds no reference to a module, so that copies of the copy are complete. Within a call ``self.forward`` is the
    module's own.
    """
    own, method = module.forward, False
    if isinstance(own, MethodType) and own.__self__ is module:
        own, method = own.__func__, True
    inside: list[bool] = []  # one entry during a call

    def forward(self: nn.Module, *tensors: Any, **keywords: Any) -> Any:
        call = MethodType(own, self) if method else own
        if inside:
            return call(*tensors, **keywords)
        filled = list(fixed)
        for place, value in zip(places, tensors, strict=True):
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
    for key in path:
        yield next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def output_names(exported: ExportedProgram) -> list[str]:
    """Return names for unnamed outputs: keys where the module returns a dictionary, else ``output0`` and so on."""
    structure = exported.call_spec.out_spec
    if structure.is_leaf():
        return ["output"]
    leaves = _pytree.tree_unflatten(list(range(structure.num_leaves)), structure)
    paths = [path for path, _ in _pytree.tree_flatten_with_path(leaves)[0]]
    names = ["_".join(str(key) for key in _keys(path)) for path in paths]
    return [f"output{name}" if name[:1].isdecimal() else re.sub(r"\W", "_", name) for name in names]


def distinct(names: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """Make names distinct from each other and from ``others``, by a suffix where needed."""
    taken, unique = set(others), []
    for name in names:
        unique.append(free_name(name if name not in others else f"{name}_output", taken))
        taken.add(unique[-1])
    return unique


def free_name(name: str, taken: Container[str]) -> str:
    """Return the name, with the first number appended that makes it unused."""
    return next(
        candidate
        for candidate in (name if count == 1 else f"{name}{count}" for count in itertools.count(1))
        if candidate not in taken
    )
