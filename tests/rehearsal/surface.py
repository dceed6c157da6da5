"""The stand-in in the places where the project meets CUDA: ``torch.cuda``, ONNX Runtime, the management library."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from stn_export.bench import machine
from stn_export.program.program import load_program
from stn_export.run import gpu
from stn_export.runners import onnx_runtime, registry
from tests.rehearsal.clocks import Event, Stream
from tests.rehearsal.device import DEVICE, Device, Graph
from tests.rehearsal.sessions import Session, Value

MEMORY = 80 * 2**30
PROPERTIES = SimpleNamespace(
    L2_cache_size=2**20, uuid="rehearsal", name="NVIDIA H100, rehearsed", total_memory=MEMORY, major=9, minor=0
)


@contextmanager
def rehearsed() -> Iterator[Device]:
    """A process that sees one GPU."""
    device = Device()
    streams = device.streams
    surface = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: PROPERTIES.name,
        "get_device_properties": lambda *_: PROPERTIES,
        "Stream": partial(Stream, streams),
        "Event": partial(Event, streams),
        "current_stream": lambda *_: streams.current,
        "stream": streams.on,
        "is_current_stream_capturing": lambda: streams.capturing,
        "synchronize": lambda *_: streams.wait_for_all(),
        "CUDAGraph": partial(Graph, device),
        "graph": device.record,
        "empty_cache": lambda: streams.forbid_in_capture("frees memory"),
        "mem_get_info": lambda *_: (MEMORY - device.bytes(), MEMORY),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }
    autocast = torch.autocast
    with pytest.MonkeyPatch.context() as patch, device.entered():
        for name, stand_in in surface.items():
            patch.setattr(torch.cuda, name, stand_in)
        group = torch.optim.Optimizer._group_tensors_by_device_and_dtype
        patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", partial(grouped, device, group))
        patch.setattr(torch.accelerator, "current_stream", lambda *_: streams.current)
        patch.setattr(torch, "autocast", lambda _, *said, **more: autocast("cpu", *said, **more))
        patch.setattr(torch, "compile", partial(compiled, inspect.signature(torch.compile)))
        patch.setattr(torch.jit, "load", partial(loaded, device, torch.jit.load))
        patch.setattr(torch._inductor, "aoti_load_package", lambda path: load_program(Path(path)).on("cuda"))
        providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        patch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        patch.setattr(registry.ctypes.util, "find_library", lambda name: name)
        patch.setattr(onnxruntime, "InferenceSession", partial(Session, device, onnxruntime.InferenceSession))
        patch.setattr(onnx_runtime, "OrtValue", Value.on(device))
        patch.setitem(sys.modules, "pynvml", management())
        forget_management()
        yield device
    forget_management()


def forget_management() -> None:
    """Ask for the management library anew."""
    gpu.management.cache_clear()
    machine._nvml.cache_clear()


def grouped(device: Device, group: Callable, tensors: list[list[Tensor]], **more: object) -> dict:
    """What an optimiser works through at once, by where Python would say that it lies."""
    found = group(tensors, **more).items()
    return {(DEVICE if device.holds(lists[0][0]) else kind, dtype): (lists, at) for (kind, dtype), (lists, at) in found}


def compiled(signature: inspect.Signature, module: Callable, **settings: object) -> Callable:
    """``torch.compile`` that leaves the module as it is: no compiler makes code for a GPU that is not there."""
    signature.bind(module, **settings)
    return module


def loaded(device: Device, load: Callable, path: Path, map_location: object = None) -> nn.Module:
    """``torch.jit.load``, its weights on the device that was asked for."""
    module = load(path, map_location="cpu")
    for tensor in (*module.parameters(), *module.buffers()):
        device.put(tensor, torch.device(map_location).type == DEVICE.type)
    return module


def management() -> SimpleNamespace:
    """NVIDIA's management library on a GPU that nothing disturbs."""
    return SimpleNamespace(
        __spec__=True,
        NVMLError=OSError,
        NVML_CLOCK_SM=0,
        NVML_CLOCK_MEM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlClocksEventReasonGpuIdle=1,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-rehearsal": "handle"}[uuid],
        nvmlDeviceGetClockInfo=lambda gpu, clock: (1980, 2619)[clock],
        nvmlDeviceGetPowerUsage=lambda gpu: 350_500,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 0,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 700_000,
        nvmlDeviceGetMaxClockInfo=lambda gpu, clock: 1980,
        nvmlDeviceGetPersistenceMode=lambda gpu: 1,
        nvmlDeviceGetMigMode=lambda gpu: (0, 0),
    )
