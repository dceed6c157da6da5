"""A captured network: run it, read its points, override theta, compute in float64, bypass its samplers.

Points are named after their site: ``site0/theta`` (N×2×3), ``site0/grid`` (N×H×W×2, x before y, in [-1, 1] over the
sampled image) and ``site0/warped`` (N×C×H×W).
"""

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.graph import CodeGen
from torch.utils._pytree import TreeSpec, tree_leaves, tree_structure

from stn_export.errors import UserError, one_line
from stn_export.limits import archive
from stn_export.program.capture import capture, named_shape, symbols_of
from stn_export.program.origin import allowed, import_packages, module_from, packages_of
from stn_export.program.passes import (
    PROBE_BYTES,
    bare,
    bounded,
    default_dtype,
    in_float64,
    live_bytes,
    on_device,
    overwrites,
    without_samplers,
)
from stn_export.program.sites import POINTS, TAPS, Site, Step, Values, find_sites, parts_of
from stn_export.program.specs import BATCH, Batch, Contract, TensorSpec, dtype_name

CONTRACT_FILE = "contract.json"
FORMAT, OLDER = "archive_format", "version"  # members of a current .pt2 file, and of an old one with pickled weights
UNKNOWN_OPERATOR = re.compile(r"failed to resolve torch\.ops\.([\w.]+) to an operator")
Points = dict[str, Tensor]


@dataclass(frozen=True)
class Program:
    """A captured network.

    ``contract`` names and types its inputs and outputs; ``origin`` says how to import the module's own
    code, see ``program.origin``.
    """

    exported: ExportedProgram
    contract: Contract
    origin: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def module(self) -> GraphModule:
        """The network as one graph: tensors in by position, a tuple of tensors out; no checks, no dropout."""
        module = self.exported.module(check_guards=False)
        module.graph.set_codegen(CodeGen())  # inputs and outputs are flat in the graph already
        return bare(GraphModule(module, module.graph))

    def on(self, device: torch.device | str) -> GraphModule:
        """Move ``module`` itself to a device, and the devices that its graph names."""
        return on_device(self.module, torch.device(device))

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sampling sites, in the order in which they run."""
        return find_sites(self.module.graph, symbols_of(self.exported, [spec.shape for spec in self.contract.inputs]))

    @cached_property
    def exact(self) -> "Exact":
        """The float64 reference of the network."""
        return Exact(self)

    @cached_property
    def most_examples(self) -> int:
        """The largest batch for a float64 run, from the memory that one example takes."""
        values = self.values(self.contract.random(1, sizes=self.sizes))
        with default_dtype(torch.float64):  # for tensors that the graph creates without a type
            taken = live_bytes(self.exact.module, self.exact.wide(values)) // (self.contract.batch or 1)
        return max(1, PROBE_BYTES // max(1, taken))

    @property
    def parameters(self) -> int:
        """The number of trained values; a shared tensor counts once."""
        return sum({parameter.data_ptr(): parameter.numel() for parameter in self.exported.parameters()}.values())

    def own_module(self) -> nn.Module | str:
        """Rebuild the captured module from its own code with these weights; return the reason where that fails."""
        return module_from(self.origin, self.state())

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name."""
        return dict(self.exported.state_dict)

    def values(self, batch: Batch) -> tuple[Tensor, ...]:
        """Convert a batch to the inputs of ``module``: image bytes are normalised."""
        return self.contract.values(batch)

    def run(self, values: Sequence[Tensor]) -> Points:
        """Run the network and return its outputs by name."""
        values = [value.clone() for value in values] if overwrites(self.module) else values
        return self._named(self.module(*values))

    @torch.inference_mode()
    def points(
        self,
        values: Sequence[Tensor],
        forced: Mapping[str, Tensor] | None = None,
        kinds: Sequence[str] = POINTS,
        module: GraphModule | None = None,
    ) -> Points:
        """Return the points of every site, in the network's order, then the outputs.

        Args:
            values: the inputs, from ``Program.values``.
            forced: values by point (``site0/theta``) that replace those the network computes.
            kinds: the points to return, of ``POINTS`` and ``image``.
            module: by default ``module``; else a copy of it, such as one in float64.
        """
        forced, module = forced or {}, module or self.module
        shown, nodes = (
            {k: v for site in self.sites for k, v in site.nodes(table).items()} for table in (kinds, POINTS)
        )
        probe = _Probe(module, shown.values(), {nodes[point]: value for point, value in forced.items()})
        values = [value.clone() for value in values] if probe.overwrites else values
        results = probe.run(*values)
        return {point: probe.found[node] for point, node in shown.items()} | self._named(results)

    def _named(self, results: Iterable[Tensor]) -> Points:
        return dict(zip((spec.name for spec in self.contract.outputs), results, strict=True))

    @cached_property
    def bypassed(self) -> Self:
        """The bypassed baseline: every sampler is left out, its image resized where sizes differ."""
        return self.recaptured(without_samplers(self.module))

    def recaptured(self, module: nn.Module, contract: Contract | None = None) -> Self:
        """Capture another module in place of this one, with the same dynamic dimensions.

        Args:
            module: takes the inputs by position.
            contract: where inputs or outputs differ from this one's.
        """
        contract = contract or self.contract
        example = contract.random(sizes=self.sizes)
        exported = capture(module.eval(), contract.values(example), [spec.shape for spec in contract.inputs]).exported
        return replace(self, exported=exported, contract=contract, origin={})

    def parts(self) -> dict[str, str]:
        """Return the part of the network that each node of ``module.graph`` belongs to; constants, inputs: none."""
        steps = [
            Step(node.name, [source.name for source in node.all_input_nodes], [node.name])
            for node in self.module.graph.nodes
            if node.op == "call_function"
        ]
        sites = [Values(site.image, site.grid, site.warped, site.theta) for site in self.sites]
        results = next(iter(reversed(self.module.graph.nodes))).all_input_nodes
        return parts_of(steps, sites, [node.name for node in results])

    def acts_through_grid(self, site: Site) -> bool:
        """Return whether a site's theta feeds only its grid, so that overriding the grid equals overriding theta."""
        theta = next(node for node in self.module.graph.nodes if node.name == site.theta)
        return len(theta.users) == 1

    @property
    def sizes(self) -> dict[str, int]:
        """The dynamic sizes other than the batch, as they were at capture."""
        examples = [leaf for leaf in tree_leaves(self.exported.example_inputs) if isinstance(leaf, Tensor)]
        tensors = zip(self.contract.inputs, examples, strict=False)
        pairs = [pair for spec, example in tensors for pair in zip(spec.shape, example.shape, strict=False)]
        return {name: size for name, size in pairs if isinstance(name, str) and name != BATCH}

    def multiply_adds(self, values: Sequence[Tensor] | None = None) -> int:
        """Count the multiply-adds of convolutions, matrix products and samplers in one call.

        Without ``values`` they are those of one example: a share of a static batch. Each bilinear output value counts
        as 4.
        """
        if values is None:
            one = self.multiply_adds(self.values(self.contract.random(1, sizes=self.sizes)))
            return one // (self.contract.batch or 1)
        from torch.utils.flop_counter import FlopCounterMode  # it imports triton

        with FlopCounterMode(display=False) as counter:
            points = self.points(values)
        taps = sum(TAPS[site.mode] * points[site.point("warped")].numel() for site in self.sites)
        return counter.get_total_flops() // 2 + taps

    def to_bytes(self, metadata: dict) -> bytes:
        """Return a ``.pt2`` file that contains the contract and ``metadata``."""
        buffer = io.BytesIO()
        entries = metadata | {"contract": self.contract.as_dict(), "origin": self.origin}
        if packages := packages_of(self.exported):
            entries["packages"] = packages
        torch.export.save(_answering_plainly(self.exported), buffer, extra_files={CONTRACT_FILE: json.dumps(entries)})
        return buffer.getvalue()


def _answering_plainly(exported: ExportedProgram) -> ExportedProgram:
    """Return a program whose output is a tuple where its type would need its package to load."""
    entry, *others = exported.module_call_graph
    signature = entry.signature
    if signature is None or _of_python(signature.out_spec):
        return exported
    answer = tree_structure((0,) * signature.out_spec.num_leaves)
    plain = copy(exported)
    plain._module_call_graph = [replace(entry, signature=replace(signature, out_spec=answer)), *others]
    return plain


def _of_python(spec: TreeSpec) -> bool:
    """Return whether an output's containers are Python's own, which every process knows."""
    return spec.type in (None, tuple, list, dict) and all(map(_of_python, spec.children()))


@contextmanager
def _quiet_loading() -> Iterator[list[str]]:
    """Collect, instead of print, the messages of PyTorch as it loads a file: only they say why loading fails."""
    notes: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        notes.append(f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}")
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            yield notes
    finally:
        logger.removeFilter(keep)


def _said_inside(packed: zipfile.ZipFile) -> dict:
    """Read the metadata of a program file; empty where another tool wrote it."""
    members = [name for name in packed.namelist() if name.endswith(f"extra/{CONTRACT_FILE}")]
    content = json.loads(packed.read(members[0])) if members else {}
    return content if isinstance(content, dict) else {}


def _why_not(path: Path, error: Exception, notes: Sequence[str]) -> UserError:
    """Return the error for a file that PyTorch cannot load, from its exception and its messages."""
    if unknown := UNKNOWN_OPERATOR.search(" ".join(notes)):
        return UserError(
            f"{path} needs the operator {unknown[1]}, which nothing here registers",
            "import the package that registers it first",
        )
    return UserError(f"{path} is truncated or no torch.export file: {one_line(error)}", "write it again")


def load_program(path: Path, contract: Contract | None = None, own: bool = False) -> Program:
    """Read a ``.pt2`` file. Loading runs whatever code its author put in: load trusted files only.

    Args:
        path: the file.
        contract: overrides the file's own; without either, names are those of the graph.
        own: whether this user's own command wrote the file, so that the callable it names may be called.

    Raises:
        UserError: where PyTorch or this package cannot read it.
    """
    extra, notes = {CONTRACT_FILE: ""}, []
    try:
        with zipfile.ZipFile(archive(path)) as packed:
            names, packages = packed.namelist(), _said_inside(packed).get("packages")
        if FORMAT not in {name.partition("/")[2] for name in names} or OLDER in names:  # old ones would be unpickled
            raise ValueError("it is not of the format of torch 2.8 and later")
        import_packages(packages, str(path))
        with _quiet_loading() as notes:
            exported = torch.export.load(path, extra_files=extra)
    except UserError:
        raise
    except Exception as error:  # what PyTorch raises depends on the kind of damage
        raise _why_not(path, error, notes) from error
    try:
        content = json.loads(extra[CONTRACT_FILE] or "{}")
        if contract is None:
            contract = Contract.from_dict(content["contract"]) if content else contract_of(exported)
        return Program(exported, contract, allowed(content.get("origin", {}), own))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} says of itself what cannot be read: {one_line(error)}", "write it again") from error


def contract_of(
    exported: ExportedProgram,
    shapes: Sequence[Sequence[int | str]] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Contract:
    """Derive the contract of a captured program.

    Args:
        exported: its graph gives types and sizes.
        shapes: of the inputs, with names for dynamic sizes; by default see ``capture.symbols_of``.
        inputs: names of the inputs; by default those in the graph.
        outputs: names of the outputs; likewise.

    Raises:
        UserError: where an input or output is not a tensor.
    """
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    signature = exported.graph_signature
    for side, user_specs in (("input", signature.user_inputs), ("output", signature.user_outputs)):
        if unsuitable := [name for name in user_specs if not isinstance(values.get(name), Tensor)]:
            raise UserError(
                f"{side} {unsuitable[0]} is no tensor", "leave it out in a module of your own around this one"
            )
    symbols = symbols_of(exported, shapes)
    specs = [
        [_spec_of(name, values[node], symbols) for name, node in zip(names or nodes, nodes, strict=True)]
        for names, nodes in ((inputs, signature.user_inputs), (outputs, signature.user_outputs))
    ]
    return Contract(*map(tuple, specs))


def _spec_of(name: str, value: Tensor, symbols: Mapping[str, str]) -> TensorSpec:
    shape = named_shape(value.shape, symbols)
    return TensorSpec(name, dtype_name(value), shape, batched=shape[:1] == (BATCH,))


class Exact:
    """The float64 reference: a program computed in float64."""

    def __init__(self, program: Program) -> None:
        self.program, self.module = program, in_float64(program.module)

    def points(
        self, values: Sequence[Tensor], forced: Mapping[str, Tensor] | None = None, kinds: Sequence[str] = POINTS
    ) -> Points:
        """Run ``Program.points`` in float64; the inputs are those of the program."""
        forced = {point: value.double() for point, value in (forced or {}).items()}
        wide = self.wide(values)
        with default_dtype(torch.float64):  # for tensors that the graph creates without a type
            return self.program.points(wide, forced, kinds, self.module)

    def wide(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Convert floating-point inputs to float64."""
        return [value.double() if value.is_floating_point() else value for value in values]


class _Probe(Interpreter):
    """An interpreter that records the values of the nodes in ``kept``, and overrides those in ``forced``."""

    def __init__(self, module: GraphModule, kept: Iterable[str], forced: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.kept, self.forced = set(kept), forced
        self.found: dict[str, Tensor] = {}
        self.overwrites = overwrites(module)

    def run_node(self, node: Node) -> object:
        """Run a node, override its value where asked, and record it."""
        result = bounded(self, node)
        if node.name in self.forced:
            forced = self.forced[node.name].to(result.dtype)
            result = forced.expand_as(result).clone()  # the graph may write into it
        if node.name in self.kept:
            self.found[node.name] = result.clone() if self.overwrites else result
        return result
