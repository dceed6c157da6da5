"""Tensors that say that they lie on the GPU, and what is launched on them: eagerly, or into a graph.

Two modes of PyTorch's own see everything: one what Python calls (devices, copies to the host), one what reaches the
dispatcher, backward passes and TorchScript included. All of it is computed by the CPU's kernels.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.rehearsal.clocks import BrokenRuleError, Clock, Stream, Streams

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
SIZES_FROM_NUMBERS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"}
FUSED = {"_fused_adamw_", "_fused_adam_", "_fused_sgd_"}


@dataclass
class Place:
    """Where a storage lies, and who wrote and read it last: what another stream must have waited for."""

    storage: StorageWeakRef
    on_gpu: bool
    written: Clock = field(default_factory=dict)
    read: Clock = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """A tensor by its storage, which lives only as long as somebody else holds it."""

    storage: StorageWeakRef
    dtype: torch.dtype
    layout: tuple

    @classmethod
    def of(cls, tensor: Tensor) -> "Held":
        layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        return cls(StorageWeakRef(tensor.untyped_storage()), tensor.dtype, layout)

    def tensor(self) -> Tensor:
        """Again."""
        if self.storage.expired():
            raise BrokenRuleError("a graph is replayed after what it reads or writes was freed")
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


class Graph:
    """``torch.cuda.CUDAGraph``: what was launched while it was recorded, launched again. Recording computes nothing."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        self.work: list[tuple[Callable, list, dict, list]] = []
        self.pool: list[Tensor] = []  # what was made within, which the graph keeps
        self.own: set[int] = set()
        self.before: dict[int, tuple[Held, Tensor]] = {}

    def note(self, func: Callable, args: tuple, kwargs: dict, outputs: list[Tensor]) -> None:
        """One piece of work."""
        self.pool += outputs
        self.own |= {each.untyped_storage()._cdata for each in outputs}
        held = partial(tree_map, lambda each: Held.of(each) if isinstance(each, Tensor) else each)
        self.work.append((func, held(args), held(kwargs), held(outputs)))

    def keep(self, written: Tensor) -> None:
        """What somebody else holds is as it was when the recording ends."""
        key = written.untyped_storage()._cdata
        if key not in self.own and key not in self.before:
            whole = written.new_empty(0).set_(written.untyped_storage())
            self.before[key] = Held.of(whole), whole.clone()

    def close(self) -> None:
        """Nothing was computed: what was written is as before, what was made holds no numbers."""
        for held, content in self.before.values():
            held.tensor().copy_(content)
        for each in self.pool:
            if each.is_floating_point():
                Held.of(each).tensor().fill_(torch.nan)

    @torch.no_grad()
    def replay(self) -> None:
        """All of it again, on the current stream."""
        if not self.work:
            raise BrokenRuleError("a graph that holds no work is replayed")
        self.device.streams.forbid_in_capture("replays a graph")
        back = partial(tree_map, lambda each: each.tensor() if isinstance(each, Held) else each)
        with self.device.paused():
            work = [(func, back(args), back(kwargs), back(outputs)) for func, args, kwargs, outputs in self.work]
            stream = self.device.streams.current
            stream.launch()
            for func, args, kwargs, outputs in work:
                self.device.see_arguments(func, args, kwargs)
                for ours, again in zip(outputs, made_by(func, func(*args, **kwargs)), strict=True):
                    ours.copy_(again)
                    self.device.see(ours, stream, written=True)


class Device:
    """The one GPU: what lies on it, its streams, and the graph that is being recorded."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.places: dict[int, Place] = {}
        self.recording: Graph | None = None
        self.begun: Clock = {}  # what was launched when the recording began
        self.asked_for: bool | None = None  # of what Python makes just now: on the GPU or not

    # where things lie

    def place_of(self, tensor: Tensor) -> Place | None:
        """Where it lies, if anybody has said so."""
        key = tensor.untyped_storage()._cdata
        place = self.places.get(key)
        if place and place.storage.expired():
            del self.places[key]
            return None
        return place

    def put(self, tensor: Tensor, on_gpu: bool) -> Tensor:
        """Say where it lies."""
        storage = tensor.untyped_storage()
        self.places[storage._cdata] = Place(StorageWeakRef(storage), on_gpu)
        return tensor

    def holds(self, value: object) -> bool:
        """Whether it is a tensor on the GPU."""
        return isinstance(value, Tensor) and bool((place := self.place_of(value)) and place.on_gpu)

    def bytes(self) -> int:
        """Of all that lies there."""
        self.places = {key: place for key, place in self.places.items() if not place.storage.expired()}
        storages = [torch.UntypedStorage._new_with_weak_ptr(p.storage.cdata) for p in self.places.values() if p.on_gpu]
        return sum(storage.nbytes() for storage in storages)

    # what is launched

    def see(self, tensor: Tensor, stream: Stream, written: bool) -> None:
        """A piece of work on ``stream`` reads or writes it: all that it depends on must have been waited for."""
        if (place := self.place_of(tensor)) is None:
            place = self.places[tensor.untyped_storage()._cdata] = Place(StorageWeakRef(tensor.untyped_storage()), True)
        for other, count in (place.written | (place.read if written else {})).items():
            if stream.clock.get(other, 0) < count:
                raise BrokenRuleError(f"{hex(stream.cuda_stream)} does not wait for the work of {hex(other)} it needs")
        now = {stream.cuda_stream: stream.clock.get(stream.cuda_stream, 0)}
        if written:
            place.written, place.read = now, {}
        else:
            place.read |= now

    def see_arguments(self, func: Callable, args: tuple, kwargs: dict) -> None:
        """What a piece of work on the current stream is given; what lies on the host is not waited for."""
        written = written_by(func, args, kwargs)
        for tensor in tensors_in(args, kwargs):
            if self.place_of(tensor) is None or self.holds(tensor):
                self.see(tensor, self.streams.current, written=any(tensor is each for each in written))

    def launch(self, func: Callable, args: tuple, kwargs: dict) -> object:
        """Compute it on the current stream, and record it where a graph is recorded."""
        stream, graph = self.streams.current, self.recording
        if graph:
            check_capture(self, func, args, kwargs)
            for each in written_by(func, args, kwargs):
                graph.keep(each)
        stream.launch()
        self.see_arguments(func, args, kwargs)
        result = func(*args, **kwargs)
        made = made_by(func, result)
        for tensor in made:
            self.put(tensor, True)
            self.see(tensor, stream, written=True)
        if graph:
            graph.note(func, args, kwargs, made)
        return result

    def to_host(self, tensor: Tensor) -> None:
        """The host reads it: it waits for the current stream, and for no other."""
        self.streams.forbid_in_capture("copies to the host")
        self.see(tensor, self.streams.current, written=False)

    @contextmanager
    def record(self, graph: Graph, pool: object = None, stream: Stream | None = None, **_: object) -> Iterator[None]:
        """``torch.cuda.graph``."""
        stream = stream or Stream(self.streams)
        stream.wait_stream(self.streams.current)
        before = dict(self.streams.launched)
        touched = {key: (dict(place.written), dict(place.read)) for key, place in self.places.items()}
        with self.streams.on(stream):
            self.recording, self.streams.capturing = graph, True
            self.begun = before
            stream.launch()  # whoever waits for it from now on takes part
            try:
                yield
            finally:
                self.recording, self.streams.capturing = None, False
                with self.paused():
                    graph.close()
                for key, place in self.places.items():  # nothing was done
                    place.written, place.read = touched.get(key, ({}, {}))
        launched = {each: count for each, count in self.streams.launched.items() if count > before.get(each, 0)}
        if loose := [each for each, count in launched.items() if count > stream.clock.get(each, 0)]:
            raise BrokenRuleError(f"a capture ends before its streams have joined: {sorted(map(hex, loose))}")

    # what sees it all

    @contextmanager
    def entered(self) -> Iterator["Device"]:
        """See everything from now on."""
        with ExitStack() as stack:
            for mode in (Launches(self), Calls(self)):
                stack.enter_context(mode)
            yield self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing for a while."""
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
            yield


def tensors_in(*values: object) -> list[Tensor]:
    """Wherever they stand."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def written_by(func: Callable, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that a piece of work writes."""
    schema = func._schema.arguments
    given = [*zip(schema, args, strict=False), *((each, kwargs[each.name]) for each in schema if each.name in kwargs)]
    return tensors_in([value for argument, value in given if argument.alias_info and argument.alias_info.is_write])


def made_by(func: Callable, result: object) -> list[Tensor]:
    """What it made: no view, and nothing that was there before."""
    values = result if isinstance(result, tuple) else (result,)
    new = [value for value, said in zip(values, func._schema.returns, strict=False) if said.alias_info is None]
    return tensors_in(new)


def is_view(func: Callable) -> bool:
    """Whether it launches nothing."""
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def check_capture(device: Device, func: Callable, args: tuple, kwargs: dict) -> None:
    """What may not be recorded."""
    name, streams = func._schema.name.removeprefix("aten::"), device.streams
    values = tensors_in(args, kwargs)
    if name in SIZES_FROM_NUMBERS or (name.startswith("index") and any(each.dtype == torch.bool for each in values)):
        raise BrokenRuleError(f"a capture that waits for a size: {name}")
    if any(isinstance(each, torch.Generator) for each in tree_leaves((args, kwargs))):
        raise BrokenRuleError("a capture that draws from a generator of its own")
    if any(not device.holds(each) and device.place_of(each) and each.dim() for each in values):
        raise BrokenRuleError(f"a capture that copies from the host: {name}")
    if name in FUSED and not isinstance(kwargs.get("lr"), Tensor):
        raise BrokenRuleError("a learning rate that is a Python number is the same at every replay")
    stream = streams.current
    if not any(count > device.begun.get(each, 0) for each, count in stream.clock.items()):
        raise BrokenRuleError(f"{hex(stream.cuda_stream)} takes no part in the capture")


class Launches(TorchDispatchMode):
    """What reaches the dispatcher."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs = dict(kwargs or {})
        device, named = self.device, device_named(kwargs)
        if named:
            kwargs["device"] = torch.device("cpu")
        values = tensors_in(args, kwargs)
        ours = any(map(device.holds, values))
        if func is aten._local_scalar_dense.default and ours:
            device.streams.forbid_in_capture("reads a number")
            device.to_host(args[0])
            return func(*args, **kwargs)
        if func is aten._to_copy.default and named == "cuda" and not ours:
            device.streams.forbid_in_capture("copies from the host")
        known = device.asked_for is not None or any(map(device.place_of, values))
        ours = ours or named == "cuda" or device.asked_for or bool(device.recording and not known)
        if is_view(func) or not ours:
            result = func(*args, **kwargs)
            if device.asked_for is False and not ours:
                for made in made_by(func, result):
                    device.put(made, False)
            return result
        alien = [each for each in values if each.dim() and not device.holds(each) and device.place_of(each)]
        if ours and alien and func is not aten.copy_.default and not func._schema.name.startswith("aten::index"):
            raise BrokenRuleError(f"{func} takes tensors of the GPU and of the CPU")
        return device.launch(func, args, kwargs)


def device_named(kwargs: dict) -> str:
    """The kind of device in keyword arguments, or an empty string."""
    return torch.device(kwargs["device"]).type if kwargs.get("device") is not None else ""


class Calls(TorchFunctionMode):
    """What Python calls."""

    FACTORIES = (torch.tensor, torch.as_tensor, torch.from_numpy, torch.zeros, torch.ones, torch.empty, torch.full)
    FACTORIES += (torch.arange, torch.linspace, torch.rand, torch.randn, torch.randint, torch.randperm, torch.eye)

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        kwargs, device, name = dict(kwargs or {}), self.device, getattr(func, "__name__", "")
        first = args[0] if args else None
        if name == "__get__" and isinstance(first, Tensor):
            if func == Tensor.device.__get__ and device.holds(first):
                return DEVICE
            if func == Tensor.is_cuda.__get__:
                return device.holds(first)
        if func in (Tensor.numpy, Tensor.__array__) and device.holds(first):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.moved(func, args, kwargs)
        if func in self.FACTORIES:
            return self.made(func, args, kwargs)
        return func(*args, **kwargs)

    def moved(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """A copy to another device, and whatever else was asked for with it."""
        tensor, *others = args
        first = others[0] if others else None
        names = ["dtype"] if isinstance(first, torch.dtype) else ["other" if isinstance(first, Tensor) else "device"]
        names += [name for name in ("dtype", "non_blocking", "copy") if name not in names]
        given = {name: value for name, value in zip(names, others, strict=False) if value is not None} | kwargs
        target = func.__name__ if func is not Tensor.to else device_named(given)
        given.pop("device", None)
        if (other := given.pop("other", None)) is not None:
            target, given["dtype"] = ("cuda" if self.device.holds(other) else "cpu"), other.dtype
        there = self.device.holds(tensor)
        moved = Tensor.to(tensor, **given) if func is Tensor.to and given else tensor
        if not target or (target == "cuda") == there:
            return moved
        if there:
            self.device.to_host(moved)
        else:
            self.device.streams.forbid_in_capture("copies from the host")
        with torch._C._DisableTorchDispatch():
            moved = moved.clone()
        return self.device.put(moved, not there)

    def made(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        """A new tensor, where it was asked for."""
        target = device_named(kwargs)
        if target == "cuda":
            kwargs["device"] = "cpu"
            if func in (torch.tensor, torch.as_tensor):
                self.device.streams.forbid_in_capture("copies from the host")
        before, self.device.asked_for = self.device.asked_for, target == "cuda"
        try:
            result = func(*args, **kwargs)
        finally:
            self.device.asked_for = before
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.device.put(result, target == "cuda")
        return result
