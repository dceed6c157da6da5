"""Every rule of the stand-in bites: what CUDA would refuse, or do wrong in silence, is an error at its own line."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stn_export.runners import onnx_runtime
from stn_export.runners.base import EventClock
from stn_export.runners.onnx_runtime import not_waiting
from tests.rehearsal.clocks import BrokenRuleError
from tests.rehearsal.device import Device, Graph

CUDA = {"device": "cuda"}
PLANTED: list[Callable[[Device], object]] = []


def planted(reason: str) -> Callable[[Callable], Callable]:
    """An error, and the words that name it."""

    def note(function: Callable) -> Callable:
        PLANTED.append(pytest.param(function, reason, id=function.__name__))
        return function

    return note


def captured(work: Callable[[], object]) -> Graph:
    """A graph of it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


@planted("work on another stream than the one that is timed")
def timing_another_stream(device: Device) -> None:
    ones, side = torch.ones(3, **CUDA), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())

    def launch() -> None:
        with torch.cuda.stream(side):
            ones.mul(2)

    EventClock(torch.cuda.current_stream()).step(launch)()


@planted("nothing was launched between two events")
def timing_nothing(device: Device) -> None:
    EventClock(torch.cuda.current_stream()).step(lambda: None)()


@planted("before it is recorded")
def reading_an_event_that_was_not_recorded(device: Device) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    start.elapsed_time(end)


@planted("before the host has waited for it")
def reading_an_event_too_early(device: Device) -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.ones(3, **CUDA).mul(2)
    end.record()
    start.elapsed_time(end)


@planted("keeps no time")
def reading_an_event_without_time(device: Device) -> None:
    start, end = (torch.cuda.Event() for _ in range(2))
    start.record()
    end.record()
    start.elapsed_time(end)


@planted("does not wait for the work")
def reading_what_another_stream_writes(device: Device) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        ones = torch.ones(3, **CUDA)
    ones.mul(2)


@planted("does not wait for the work")
def writing_what_another_stream_reads(device: Device) -> None:
    ones, side = torch.ones(3, **CUDA), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        ones.mul(2)
    ones.add_(1)


@planted("does not wait for the work")
def copying_what_another_stream_writes_to_the_host(device: Device) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        ones = torch.ones(3, **CUDA)
    ones.cpu()


@planted("was freed")
def replaying_what_was_freed(device: Device) -> None:
    held = [torch.ones(3, **CUDA)]
    graph = captured(lambda: held[0].mul(2))
    graph.replay()
    held.clear()
    graph.replay()


@planted("holds no work")
def replaying_nothing(device: Device) -> None:
    captured(lambda: None).replay()


@planted("reads a number")
def capturing_item(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: ones.sum().item())


@planted("reads a number")
def capturing_a_branch(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: ones.mul(2) if ones.sum() > 2 else ones)


@planted("copies to the host")
def capturing_a_copy_to_the_host(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: ones.mul(2).cpu())


@planted("copies from the host")
def capturing_a_copy_from_the_host(device: Device) -> None:
    host = torch.ones(3)
    captured(lambda: host.to("cuda"))


@planted("copies from the host")
def capturing_a_new_constant(device: Device) -> None:
    captured(lambda: torch.tensor([1.0, 2.0], **CUDA))


@planted("copies from the host")
def capturing_a_write_from_the_host(device: Device) -> None:
    ones, host = torch.ones(3, **CUDA), torch.ones(3)
    captured(lambda: ones.copy_(host))


@planted("waits for a size: nonzero")
def capturing_nonzero(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: ones.nonzero())


@planted("waits for a size: index")
def capturing_a_mask(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: ones[ones > 0])


@planted("a generator of its own")
def capturing_a_generator(device: Device) -> None:
    generator = torch.Generator()
    captured(lambda: torch.rand(3, generator=generator, **CUDA))


@planted("waits for the device")
def capturing_a_wait(device: Device) -> None:
    ones = torch.ones(3, **CUDA)
    captured(lambda: (ones.mul(2), torch.cuda.synchronize()))


@planted("waits for a stream")
def capturing_a_wait_for_a_stream(device: Device) -> None:
    captured(lambda: torch.cuda.current_stream().synchronize())


@planted("takes no part in the capture")
def capturing_on_a_stream_that_did_not_fork(device: Device) -> None:
    ones, other = torch.ones(3, **CUDA), torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())

    def work() -> None:
        with torch.cuda.stream(other):
            ones.mul(2)

    captured(work)


@planted("before its streams have joined")
def capturing_without_a_join(device: Device) -> None:
    ones, other = torch.ones(3, **CUDA), torch.cuda.Stream()

    def work() -> None:
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            ones.mul(2)

    captured(work)


@planted("a Python number is the same at every replay")
def capturing_a_learning_rate(device: Device) -> None:
    layer = nn.Linear(3, 1).to("cuda")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    ones = torch.ones(2, 3, **CUDA)

    def step() -> None:
        optimizer.zero_grad()
        layer(ones).sum().backward()
        optimizer.step()

    step()
    captured(step)


@planted("takes tensors of the GPU and of the CPU")
def mixing_devices(device: Device) -> None:
    torch.ones(3, **CUDA) + torch.ones(3)


def model() -> bytes:
    """Twice its input."""
    images, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("images", "doubled"))
    graph = helper.make_graph([helper.make_node("Add", ["images", "images"], ["doubled"])], "g", [images], [doubled])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def session(**options: object) -> onnxruntime.InferenceSession:
    """Of that model on CUDA, with these options."""
    return onnxruntime.InferenceSession(model(), None, providers=[("CUDAExecutionProvider", options)])


def bound(of: onnxruntime.InferenceSession) -> tuple:
    """Its binding, and what is bound."""
    binding = of.io_binding()
    images, doubled = (onnx_runtime.OrtValue.ortvalue_from_numpy(np.ones(3, np.float32), "cuda") for _ in range(2))
    binding.bind_ortvalue_input("images", images)
    binding.bind_ortvalue_output("doubled", doubled)
    return binding, images, doubled


@planted("knows no option use_tf64")
def an_unknown_option(device: Device) -> None:
    session(use_tf64="0")


@planted("is no string")
def an_option_that_is_no_string(device: Device) -> None:
    session(use_tf32=0)


@planted("before the host has waited for its stream")
def reading_an_output_too_early(device: Device) -> None:
    of = session(user_compute_stream=str(torch.cuda.Stream().cuda_stream))
    binding, _images, doubled = bound(of)
    of.run_with_iobinding(binding, not_waiting())
    doubled.numpy()


@planted("a bound input or output was freed")
def running_what_was_freed(device: Device) -> None:
    of = session()
    of.run_with_iobinding(bound(of)[0])


@planted("with other buffers")
def replaying_with_other_buffers(device: Device) -> None:
    of = session(enable_cuda_graph="1")
    for _ in range(2):
        binding, *_kept = bound(of)
        of.run_with_iobinding(binding, not_waiting(gpu_graph_id="1"))


@planted("a session records a second graph")
def recording_a_graph_for_another_shape(device: Device) -> None:
    of = session(enable_cuda_graph="1")
    for number in "12":
        binding, *_kept = bound(of)
        of.run_with_iobinding(binding, not_waiting(gpu_graph_id=number))


@planted("kept off the tensor cores")
def running_half_precision_without_tf32(device: Device) -> None:
    half = onnx.load_from_string(model())
    half.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float16), "one"))
    providers = [("CUDAExecutionProvider", {"use_tf32": "0"})]
    onnxruntime.InferenceSession(half.SerializeToString(), None, providers=providers)


@planted("is run with arrays of the host")
def running_a_recorded_session_plainly(device: Device) -> None:
    session(enable_cuda_graph="1").run(None, {"images": np.ones(3, np.float32)})


@pytest.mark.parametrize(("error", "reason"), PLANTED)
def test_what_breaks_a_rule_is_told(error: Callable[[Device], object], reason: str, device: Device):
    with pytest.raises(BrokenRuleError, match=reason):
        error(device)


def test_what_lies_on_the_gpu_says_so_and_is_no_array(device: Device):
    ones = torch.ones(3, **CUDA)
    assert (ones.device.type, ones.is_cuda, torch.ones(3).device.type) == ("cuda", True, "cpu")
    with pytest.raises(TypeError, match="can't convert cuda"):
        ones.numpy()
    assert ones.cpu().numpy().tolist() == [1, 1, 1]
    assert device.bytes() == 12


def test_a_graph_computes_at_its_replays_only(device: Device):
    counter, made = torch.zeros((), **CUDA), []
    graph = captured(lambda: made.append(counter.add_(1).mul(2)))
    assert counter.item() == 0
    assert made[0].isnan().item()
    for turn in (1, 2):
        graph.replay()
        assert (counter.item(), made[0].item()) == (turn, 2 * turn)


def test_random_numbers_differ_from_replay_to_replay_and_follow_the_seed(device: Device):
    drawn = torch.zeros(4, **CUDA)
    graph = captured(lambda: drawn.copy_(torch.rand(4, **CUDA)))

    def replayed(seed: int) -> list[list[float]]:
        torch.manual_seed(seed)
        return [(graph.replay(), drawn.tolist())[1] for _ in range(2)]

    assert replayed(1) == replayed(1) != replayed(2)
    assert replayed(1)[0] != replayed(1)[1]


def test_what_waits_is_in_order(device: Device):
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(side):
        ones = torch.ones(3, **CUDA)
        event.record()
    torch.cuda.current_stream().wait_event(event)
    assert ones.mul(2).tolist() == [2, 2, 2]


def test_all_known_options_stand_in_the_installed_library():
    """So that a name that is not there is seen: the list is the library's own."""
    from tests.rehearsal.sessions import library

    assert b"cudnn_conv_algo_search" in library("CUDAExecutionProvider")
    assert b"use_tf64" not in library("CUDAExecutionProvider")
