"""Serve one file in one runtime, in a process and an environment of its own: ``python serve.py JOB``, a JSON object.

Imports NumPy and the runtime, and nothing of this package. One function per runtime loads the file for inputs of given
sizes, and returns a function from arrays to arrays. A message is a line of JSON, whose ``arrays`` describe the bytes
that follow. An exception of the runtime is reported as its refusal.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Sequence[Any]]

WEBGPU = "WebGpuExecutionProvider"
SOFTWARE = 4  # Vulkan's number of a device type: the CPU draws
CHROMIUM = (Path("/usr/lib/chromium"), Path("/usr/lib64/chromium"), Path("/opt/google/chrome"))  # bring SwiftShader
SHORT = 0.01  # seconds; shorter calls are slower right after a message, so hot ones follow an untimed call


def send(stream: BinaryIO, head: dict, arrays: Arrays) -> None:
    """Write a message."""
    listed = [{"name": name, "type": array.dtype.name, "shape": array.shape} for name, array in arrays.items()]
    stream.write(json.dumps(head | {"arrays": listed}).encode() + b"\n")
    for array in arrays.values():
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict, Arrays]:
    """Read a message.

    Raises:
        EOFError: where the other end has closed the stream.
    """
    line = stream.readline()
    if not line:
        raise EOFError
    head = json.loads(line)
    return head, {entry["name"]: _read(stream, np.dtype(entry["type"]), entry["shape"]) for entry in head.pop("arrays")}


def _read(stream: BinaryIO, kind: np.dtype, shape: Sequence[int]) -> np.ndarray:
    size = kind.itemsize * int(np.prod(shape))
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return np.frombuffer(bytearray(content), kind).reshape(shape)


# pragma: no mutate start  # whether a runtime is loaded rightly only that runtime can tell


def onnxruntime(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with ONNX Runtime, as a control: it shows what running in a separate process costs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(outputs, batch)


def vulkan() -> tuple[str, bool]:
    """Make Vulkan ready for this process; return the adapter's name, and whether it is software on the CPU.

    A GPU's own driver goes first. Without one SwiftShader serves, where a Chromium has brought it.

    Raises:
        RuntimeError: where there is neither.
    """
    name, software = _adapter("libvulkan.so.1")
    drivers = {"VK_DRIVER_FILES", "VK_ICD_FILENAMES"}
    for folder in CHROMIUM if software and not drivers & os.environ.keys() else ():
        if (folder / "vk_swiftshader_icd.json").is_file():
            os.environ["VK_ICD_FILENAMES"] = str(folder / "vk_swiftshader_icd.json")
            name, software = _adapter("libvulkan.so.1" if name else str(folder / "libvulkan.so.1"))
            break
    if not name:
        raise RuntimeError("WebGPU needs Vulkan: a GPU with its driver and libvulkan1, or Chromium, for SwiftShader")
    return name, software


def _adapter(library: str) -> tuple[str, bool]:
    """Return the best device of a Vulkan loader, by its type, and whether it is software; an empty name for none."""

    class Info(ctypes.Structure):  # VkInstanceCreateInfo, by its type alone
        _fields_ = (("type", ctypes.c_uint32), ("rest", ctypes.c_uint64 * 7))

    try:
        loader = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # found by its name from now on
    except OSError:
        return "", True
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if loader.vkCreateInstance(ctypes.byref(Info(1)), None, ctypes.byref(instance)):
        return "", True
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    adapters = []
    for device in devices:
        facts = ctypes.create_string_buffer(4096)  # VkPhysicalDeviceProperties: four numbers, the type, the name
        loader.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), facts)
        kind, name = int.from_bytes(facts.raw[16:20], "little"), facts.raw[20:276].partition(b"\0")[0].decode()
        adapters.append(((kind != SOFTWARE, kind == 2), name))  # 2: a GPU of its own, not the processor's
    loader.vkDestroyInstance(instance, None)
    (hardware, _), name = max(adapters, default=((False, False), ""))
    return name, not hardware


def webgpu(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with ONNX Runtime's WebGPU provider; where that cannot be, fail instead of running on the CPU."""
    import onnxruntime

    vulkan()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=[WEBGPU], enable_fallback=0)
    return lambda batch: session.run(outputs, batch)


def placed(files: Sequence[str]) -> list[dict[str, str] | str]:
    """Return for each file the provider by node that WebGPU's session gives it, unoptimised, or why it does not load.

    The session lists the nodes that are left to the CPU, and of the others only some; FILE.placed is its graph.
    """
    import onnxruntime

    vulkan()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    answers: list[dict[str, str] | str] = []
    for file in files:
        options.optimized_model_filepath = f"{file}.placed"
        try:
            session = onnxruntime.InferenceSession(file, options, providers=[WEBGPU], enable_fallback=0)
        except Exception as error:  # whatever keeps it from loading is the answer
            answers.append(str(error))
            continue
        parts = session.get_provider_graph_assignment_info()
        answers.append({node.name: part.ep_name for part in parts for node in part.get_nodes()})
    return answers


def openvino(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with OpenVINO, in float32."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(file), "CPU", settings)

    def call(batch: Arrays) -> list[np.ndarray]:
        results = compiled(batch)
        return [results[output] for output in compiled.outputs]

    return call


def tract(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with tract."""
    import tract

    model = tract.onnx().load(str(file))
    names = [model.input_name(index) for index in range(model.input_count())]
    for index, name in enumerate(names):
        kind = {"float32": "f32", "uint8": "u8"}[feeds[name].dtype.name]
        model.set_input_fact(index, ",".join(map(str, (*feeds[name].shape, kind))))
    runnable = model.into_model().into_runnable()
    return lambda batch: [output.to_numpy() for output in runnable.run([batch[name] for name in names])]


def tvm(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Compile with Apache TVM."""
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    module = relax.transform.DecomposeOpsForInference()(from_onnx(onnx.load(file)))
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())

    def call(batch: Arrays) -> list[np.ndarray]:
        result = machine["main"](*(tvm.runtime.tensor(value) for value in batch.values()))
        return [output.numpy() for output in ([result] if hasattr(result, "numpy") else result)]

    return call


def iree(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Compile with IREE for this machine's CPU."""
    import iree.compiler as compiler
    import iree.runtime as runtime

    text = file.with_suffix(".mlir")
    importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(file), "-o", str(text)]
    subprocess.run([*importer, "--opset-version", "21"], check=True, capture_output=True)
    content = compiler.compile_file(
        str(text), target_backends=["llvm-cpu"], input_type="onnx", extra_args=["--iree-llvmcpu-target-cpu=host"]
    )
    if threads > 1:
        runtime.flags.parse_flags(f"--task_topology_max_group_count={threads}")
    config = runtime.Config("local-task" if threads > 1 else "local-sync")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, content), config)
    function = next(module[name] for name in module.vm_module.function_names if "$" not in name and name != "__init")

    def call(batch: Arrays) -> list[np.ndarray]:
        result = function(*batch.values())
        return [output.to_host() for output in (result if isinstance(result, tuple | list) else [result])]

    return call


def mnn(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Convert and load with MNN, in high precision."""
    import MNN.expr
    import MNN.nn

    model = file.with_suffix(".mnn")
    converter = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX", "--bizCode", "x", "--modelFile"]
    done = subprocess.run(
        [*converter, str(file), "--MNNModel", str(model)], capture_output=True, encoding="utf-8", errors="replace"
    )
    if not model.is_file():
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Don't" in line]
        raise RuntimeError(
            complaints[0].rpartition("] ")[2] if complaints else "mnnconvert writes no file"
        )  # minus the time
    manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
    module = MNN.nn.load_module_from_file(str(model), list(feeds), list(outputs), runtime_manager=manager)
    kinds = {"float32": MNN.expr.float, "uint8": MNN.expr.uint8, "int64": MNN.expr.int64}

    def call(batch: Arrays) -> list[np.ndarray]:
        constants = [
            MNN.expr.const(np.ascontiguousarray(value), list(value.shape), MNN.expr.NCHW, kinds[value.dtype.name])
            for value in batch.values()
        ]
        packed = [
            MNN.expr.convert(constant, MNN.expr.NC4HW4) if len(constant.shape) == 4 else constant
            for constant in constants
        ]
        return [np.array(MNN.expr.convert(output, MNN.expr.NCHW).read()) for output in module.onForward(packed)]

    return call


def ncnn(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Convert with pnnx and load with ncnn, in float32; it runs one example per call."""
    import ncnn

    if any(len(value) != 1 for value in feeds.values()):
        raise RuntimeError("ncnn knows no batch: one example a call")
    kinds = {"float32": "f32", "uint8": "u8", "int64": "i64"}
    shapes = ",".join(f"[{','.join(map(str, v.shape))}]{kinds[v.dtype.name]}" for v in feeds.values())
    converter = next(Path(sys.prefix).glob("lib/*/site-packages/pnnx/pnnx"))  # its Python package requires torch
    command = [str(converter), str(file), f"inputshape={shapes}"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=file.parent)
    if missing := [line for line in (done.stdout + done.stderr).splitlines() if "ignore" in line.lower()]:
        raise RuntimeError(f"pnnx: {missing[0].strip()}")
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    written = file.with_suffix(".ncnn.param"), file.with_suffix(".ncnn.bin")
    if net.load_param(str(written[0])) or net.load_model(str(written[1])):
        raise RuntimeError("ncnn does not load what pnnx wrote")

    def call(batch: Arrays) -> list[np.ndarray]:
        extractor = net.create_extractor()
        for index, value in enumerate(batch.values()):
            extractor.input(f"in{index}", ncnn.Mat(np.ascontiguousarray(value[0])).clone())
        return [_extracted(extractor, f"out{index}") for index in range(len(outputs))]

    return call


def _extracted(extractor: Any, name: str) -> np.ndarray:
    code, value = extractor.extract(name)
    if code:
        raise RuntimeError(f"ncnn does not give {name}")
    return np.array(value)[None]


def opencv(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with OpenCV's DNN module."""
    import cv2

    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(str(file))

    def call(batch: Arrays) -> list[np.ndarray]:
        for name, value in batch.items():
            net.setInput(value, name)
        return list(net.forward(list(outputs)))

    return call


def executorch(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with ExecuTorch."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(file).load_method("forward")

    def call(batch: Arrays) -> list[np.ndarray]:
        return [output.numpy() for output in method.execute([torch.from_numpy(value) for value in batch.values()])]

    return call


def litert(file: Path, feeds: Arrays, outputs: Sequence[str], threads: int) -> Call:
    """Load with LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(file), num_threads=threads).get_signature_runner()

    def call(batch: Arrays) -> list[np.ndarray]:
        results = run(**{f"args_{index}": value for index, value in enumerate(batch.values())})
        return [results[f"output_{index}"] for index in range(len(outputs))]

    return call


# pragma: no mutate end


def serve(load: Callable[[Arrays], Call], outputs: Sequence[str], requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the stream ends."""
    call: Call | None = None
    placed: dict[int, Arrays] = {}
    seconds = 0.0
    while True:
        try:
            head, arrays = receive(requests)
        except EOFError:
            return
        try:
            if head["place"]:
                placed[head["batch"]] = arrays
                call = call or load(arrays)
                send(replies, {}, {})
            else:
                assert call, "nothing was placed"
                batch = placed[head["batch"]]
                if head["hot"] and seconds < SHORT:
                    call(batch)
                start = time.perf_counter()
                results = call(batch)
                seconds = time.perf_counter() - start
                send(replies, {"seconds": seconds}, dict(zip(outputs, map(np.asarray, results), strict=True)))
        except Exception as error:
            message = "".join(traceback.format_exception_only(error))
            send(replies, {"failed": message}, {})


# pragma: no mutate start  # runs in a process of its own, where mutants are not seen


def main(job: dict) -> None:
    """Serve one file."""
    with open(job["read"], "rb") as requests, open(job["write"], "wb") as replies:  # noqa: PTH123  # descriptors
        runtime = globals()[job["runtime"]]
        serve(
            lambda feeds: runtime(Path(job["file"]), feeds, job["outputs"], job["threads"]),
            job["outputs"],
            requests,
            replies,
        )


# pragma: no mutate end

if __name__ == "__main__":
    if sys.argv[1] == "vulkan":
        sys.stdout.write(json.dumps(vulkan()))
    elif sys.argv[1] == "placed":
        sys.stdout.write(json.dumps(placed(sys.argv[2:])))
    else:
        main(json.loads(sys.argv[1]))
