"""``adopt``: capture a network and write it to a run, with its bypassed baseline and its examples."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from stn_export.adopt.batches import InputsError, with_fixed_batch
from stn_export.adopt.network import in_evaluation, load_captured, load_module, require_adoptable
from stn_export.adopt.programs import program_of, values_of, watched, with_origin
from stn_export.adopt.samples import gather, with_classes, with_pixels
from stn_export.errors import UserError
from stn_export.program.origin import origin_of
from stn_export.program.program import Program
from stn_export.program.sites import Site
from stn_export.program.specs import BATCH, Given, Pixels, TensorSpec, call_of, dtype_name, require_values
from stn_export.run.examples import Examples
from stn_export.run.manifest import MANIFEST, PLAIN, SUBJECT, TWIN_NOTE, NetworkDirectory
from stn_export.run.network import enter, write_examples
from stn_export.run.store import all_or_none, alone

PLAIN_NOTE = "the plain network that was given with --plain"

Inputs = Mapping[str, Any] | Sequence[TensorSpec] | Given


@dataclass
class Adoption:
    """What ``adopt`` found and what it wrote.

    Attributes:
        name: the network's name.
        examples: what the network is tried on.
        program: the captured network; None if it cannot be captured.
        sites: the sampling sites.
        twin: the baseline: the network with its samplers bypassed, or the network given as ``plain``; None if there is
            none.
        notes: what else the user must know: sizes that cannot stay dynamic, why there is no baseline, and so on.
        written: the directories of the networks; empty if ``adopt`` was called without a run.
        up_to_date: whether everything was there already, unchanged.
        replaced: whether another network of the same name was overwritten.
    """

    name: str
    examples: Examples
    program: Program | None = None
    sites: tuple[Site, ...] = ()
    twin: Program | None = None
    notes: list[str] = field(default_factory=list)
    written: tuple[Path, ...] = ()
    up_to_date: bool = False
    replaced: bool = False

    def as_dict(self) -> dict:
        """Convert the adoption to JSON-ready values."""
        tried = self.examples
        return {
            "network": self.name,
            "sites": [site.as_dict() for site in self.sites],
            "program": _figures(self.program),
            "plain": _figures(self.twin),
            "examples": {"count": len(tried), "source": tried.source, "classes": list(tried.classes)},
            "notes": self.notes,
            "written": [str(path) for path in self.written],
            "up_to_date": self.up_to_date,
        }


def _figures(program: Program | None) -> dict | None:
    if program is None:
        return None
    return program.contract.as_dict() | {
        "parameters": program.parameters,
        "multiply_adds": program.multiply_adds(),
    }


def adopt(
    what: nn.Module | str,
    inputs: Inputs = (),
    *,
    run: Path | str | None = None,
    name: str | None = None,
    outputs: Sequence[str] = (),
    weights: Path | None = None,
    examples: Path | Mapping[str, Tensor] | None = None,
    labels: Path | Tensor | None = None,
    pixels: Pixels | None = None,
    plain: str | None = None,
    sizes: Mapping[str, int] | None = None,
    evaluation: bool = False,
    data_seed: int = 0,
    wait: bool = True,
) -> Adoption:
    """Capture a network, find its sampling sites and register it in a run.

    Args:
        what: a module, ``file.py:callable``, ``package.module:callable``, or a ``.pt2`` file. Loading a ``.pt2`` file
            runs the code in it.
        inputs: one entry per parameter of ``forward``, by name: a shape with names for dynamic sizes (``N`` is the
            batch), or an example, whose first dimension is the batch if it is as long as that of the first input;
            dictionaries and lists of these; constants: None, numbers, strings. Or ``Given``, written like a call of the
            module.
        run: the run directory; without it nothing is written.
        name: of the network's directory; by default the run's name or, without a run, that of ``what``.
        outputs: names of the outputs.
        weights: a ``.pt``, ``.pth`` or ``.safetensors`` file.
        examples: what the network is tried on: a file, a folder of images, or tensors by input name; random numbers by
            default.
        labels: one per example: a file, or class numbers.
        pixels: how the bytes of images are normalised.
        plain: a callable that returns the baseline, instead of the network with its samplers bypassed.
        sizes: of dynamic dimensions, if neither the examples nor a captured program give them.
        evaluation: whether a module in training mode may be put into evaluation mode.
        data_seed: of random examples.
        wait: for another stage to release the run, instead of raising an error.

    Raises:
        UserError: if anything is invalid; nothing has been written then.
    """
    name = checked_name(name or (Path(run).name if run else default_name(what)))
    network, named = _network(what, inputs, weights, evaluation, outputs)
    specs, named_examples = named.specs, named.examples
    if isinstance(network, Program):
        specs, sizes = network.contract.inputs, network.sizes | dict(sizes or {})
    if not specs:
        raise UserError("no input shape was given", "give each with --input NAME=N,3,24,94, by forward's names")
    if isinstance(network, nn.Module) and not named_examples:
        specs = with_fixed_batch(network, specs, sizes or {})
    specs = with_pixels(specs, pixels) if pixels else specs
    tried, classes = gather(examples or named_examples, labels, specs, sizes or {}, data_seed)
    if any(tried.inputs[spec.name].dtype == torch.uint8 and spec.is_float and not spec.pixels for spec in specs):
        specs = with_pixels(specs, Pixels())
    result = Adoption(name, tried)
    try:
        program = program_of(network, specs, outputs, tried, result.notes, isinstance(what, str))
    except UserError as error:
        if run is not None or isinstance(network, Program) or isinstance(error, InputsError):
            raise
        result.notes.append(error.message)
        result.sites = watched(network, values_of(specs, tried))
        return result
    if isinstance(what, str) and isinstance(network, nn.Module) and named.again is not None:
        program = with_origin(program, origin_of(what, named.again), tried, result.notes)
    result.program, result.sites = program, program.sites
    result.examples = with_classes(tried, program.contract, classes)
    result.twin = _given_plain(plain, program, result) if plain else _bypassed(program, result)
    if run is not None:
        with alone(Path(run), wait, make=True):
            _enter(program, result, Path(run), PLAIN_NOTE if plain else TWIN_NOTE)
    return result


def default_name(what: nn.Module | str) -> str:
    """Return the name for a network that was not given one: the file's, the callable's or the class's.

    Raises:
        UserError: if ``what`` is a file that holds no PyTorch module.
    """
    if isinstance(what, str):
        require_adoptable(what)
        return Path(what).stem if what.endswith(".pt2") else what.rpartition(":")[2]
    return type(what).__name__


def checked_name(name: str) -> str:
    """Return ``name`` if it can be the name of a directory.

    Raises:
        UserError: if it cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UserError(f"{name!r} cannot be a network's name", "choose one of letters, digits, - and _ with --name")
    return name


@dataclass(frozen=True)
class _Named:
    """The tensor inputs of a network, in the order in which the network is called with them, and their examples.

    ``again`` lists their names if that order is not forward's own; None if names alone cannot restore the call.
    """

    specs: tuple[TensorSpec, ...]
    examples: dict[str, Tensor]
    again: tuple[str, ...] | None = ()


def _specs(inputs: Sequence[TensorSpec] | Mapping[str, Any]) -> _Named:
    """Return the specs of inputs given as specs, or as shapes and examples by name, in the order given."""
    if not isinstance(inputs, Mapping):
        return _Named(tuple(inputs), {})
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    count = next((len(value) for value in tensors.values() if value.ndim), None)
    shapes = {name: tuple(value.shape if name in tensors else value) for name, value in inputs.items()}
    batched = {name for name, value in tensors.items() if value.ndim and len(value) == count}
    shapes |= {name: (BATCH, *shapes[name][1:]) for name in batched}
    types = {name: dtype_name(tensors[name]) if name in tensors else "float32" for name in inputs}
    specs = [TensorSpec(name, types[name], shape, shape[:1] == (BATCH,)) for name, shape in shapes.items()]
    return _Named(tuple(specs), tensors)


def _is_input(value: Any) -> bool:
    """Return whether a value is an example, a shape or a spec, rather than a container of them or a constant."""
    shape = isinstance(value, list | tuple) and value and all(type(size) in (int, str) for size in value)
    return bool(shape) or isinstance(value, Tensor | TensorSpec)


def _leaves(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all examples and shapes by name; nested ones are named by their keys, joined with ``_``."""
    paths, _ = _pytree.tree_flatten_with_path(dict(inputs), is_leaf=_is_input)
    named = [
        ("_".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path), value) for path, value in paths
    ]
    return {re.sub(r"\W", "_", name): value for name, value in named if _is_input(value)}


def _called_with(module: nn.Module, inputs: Inputs) -> tuple[nn.Module, _Named]:
    """Wrap the module so that it takes tensors only, bound by name, and return it with their specs in that order."""
    examples = _pytree.tree_leaves((inputs.arguments, inputs.keywords) if isinstance(inputs, Given) else inputs)
    require_values(module, [example for example in examples if isinstance(example, Tensor)])
    if isinstance(inputs, Given):
        call = call_of(module, inputs.arguments, inputs.keywords)
        return call.module, _specs(dict(zip(call.names, call.tensors, strict=True)))
    named = dict(inputs) if isinstance(inputs, Mapping) else {spec.name: spec for spec in inputs}
    stand_ins: list[Tensor] = []  # one per input, to find the call's order again

    def stand_in(value: Any) -> Any:
        if _is_input(value):
            stand_ins.append(torch.empty(0))
        return stand_ins[-1] if _is_input(value) else value

    call = call_of(module, (), _pytree.tree_map(stand_in, named, is_leaf=_is_input))
    leaves = _leaves(named)
    names = {id(stand_in): name for name, stand_in in zip(leaves, stand_ins, strict=True)}
    order = [names[id(tensor)] for tensor in call.tensors]
    by_position = _specs(leaves if isinstance(inputs, Mapping) else inputs)
    specs = {spec.name: spec for spec in by_position.specs}
    again = () if call.module is module else tuple(order) if all(map(_is_input, named.values())) else None
    return call.module, _Named(tuple(specs[name] for name in order), by_position.examples, again)


def _network(
    what: nn.Module | str, inputs: Inputs, weights: Path | None, evaluation: bool, outputs: Sequence[str]
) -> tuple[nn.Module | Program, _Named]:
    """Load or prepare the network, and return it with its inputs in the order in which it takes them."""
    if isinstance(what, str):
        require_adoptable(what)
    if isinstance(what, str) and what.endswith(".pt2"):
        if weights is not None:
            raise UserError(f"{what} already contains its weights", "leave --weights out")
        if isinstance(inputs, Given):
            raise UserError(f"{what} is captured already: no call of it is captured anew", "name its inputs, or none")
        named = _specs(_leaves(inputs) if isinstance(inputs, Mapping) else inputs)
        return load_captured(Path(what), named.specs, outputs), named
    module = in_evaluation(what, evaluation) if isinstance(what, nn.Module) else load_module(what, weights, evaluation)
    if not isinstance(inputs, Given) and not inputs:
        return module, _Named((), {})
    return _called_with(module, inputs)


def _bypassed(program: Program, result: Adoption) -> Program | None:
    """Return the network with its samplers bypassed; None, with a note on the reason, if that makes no baseline."""
    if not result.sites:
        result.notes.append("no baseline: the network samples no images")
        return None
    try:
        twin = program.bypassed
    except UserError as error:
        result.notes.append(f"no plain twin: {error.message}")
        return None
    if not twin.multiply_adds():
        result.notes.append("no baseline: without its samplers the network computes nothing")
        return None
    return twin


def _given_plain(what: str, subject: Program, result: Adoption) -> Program:
    """Load the baseline that the user named; it takes the same inputs as the network."""
    contract = subject.contract
    program = program_of(load_module(what, None, True), contract.inputs, (), result.examples, result.notes)
    if len(program.contract.outputs) == len(contract.outputs):
        pairs = zip(program.contract.outputs, contract.outputs, strict=True)
        outputs = tuple(replace(spec, name=other.name) for spec, other in pairs)
        program = replace(program, contract=replace(program.contract, outputs=outputs))
    return replace(program, origin=origin_of(what))


def _enter(program: Program, result: Adoption, run: Path, note: str) -> None:
    """Write the network, its baseline and its examples to the run, and note what was replaced or unchanged.

    Raises:
        UserError: if the run holds other networks.
    """
    subject, plain = (NetworkDirectory(run / name) for name in (result.name, f"{result.name}-plain"))
    if others := sorted({path.parent.name for path in run.glob(f"*/{MANIFEST}")} - {subject.name, plain.name}):
        raise UserError(f"{run} holds {', '.join(others)} already", "name another run with --run, or this network")
    before = subject.read(), plain.read()
    put = partial(enter, source=result.examples.source, classes=result.examples.classes)
    with all_or_none():
        file = write_examples(run, result.examples)
        put(subject, program, file, label=result.name, role=SUBJECT)
        if result.twin is not None:
            label = f"{result.name}, samplers bypassed" if note is TWIN_NOTE else f"{result.name}, plain"
            put(plain, result.twin, file, label=label, role=PLAIN, note=note)
    if result.twin is None and before[1].facts:
        (plain.path / MANIFEST).unlink()
        result.notes.append(f"{plain.path} is no part of the run any more")
    result.written = (subject.path, plain.path) if result.twin is not None else (subject.path,)
    result.replaced = before[0].facts is not None
    result.up_to_date = before == (subject.read(), plain.read())
