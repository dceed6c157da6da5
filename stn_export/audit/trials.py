"""One ONNX file in one runtime, in a process and an environment of its own: ``python trials.py NAME FILE FEEDS OUT``.

Stands alone: it imports NumPy and the runtime, and nothing of this package. FEEDS and OUT are ``.npz``; outputs are in
the file's order. Whatever it raises is the runtime's refusal.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]


def openvino(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(feeds)
    return [results[each] for each in compiled.outputs]


def tract(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import tract

    model = tract.onnx().load(str(file))
    for index in range(model.input_count()):
        value = feeds[model.input_name(index)]
        kind = {"float32": "f32", "uint8": "u8"}[value.dtype.name]
        model.set_input_fact(index, ",".join(map(str, (*value.shape, kind))))
    ordered = [feeds[model.input_name(index)] for index in range(model.input_count())]
    return [each.to_numpy() for each in model.into_model().into_runnable().run(ordered)]


def tvm(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = relax.transform.DecomposeOpsForInference()(from_onnx(onnx.load(file)))
    machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target("llvm")), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(value) for value in feeds.values()))
    return [each.numpy() for each in ([result] if hasattr(result, "numpy") else result)]


def iree(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import iree.compiler as compiler
    import iree.runtime as runtime

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "model.mlir"
        importer = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(file), "-o", str(text)]
        subprocess.run([*importer, "--opset-version", "21"], check=True, capture_output=True)
        content = compiler.compile_file(
            str(text), target_backends=["llvm-cpu"], input_type="onnx", extra_args=["--iree-llvmcpu-target-cpu=host"]
        )
    config = runtime.Config("local-task")
    module = runtime.load_vm_module(runtime.VmModule.copy_buffer(config.vm_instance, content), config)
    function = next(module[name] for name in module.vm_module.function_names if "$" not in name and name != "__init")
    calls = [_hosted(function(*feeds.values())) for _ in range(10)]  # it has given another answer each time
    return max(calls, key=lambda call: max(float(np.abs(a - b).max()) for a, b in zip(call, calls[0], strict=True)))


def _hosted(result: Any) -> list[np.ndarray]:
    found = result if isinstance(result, tuple | list) else [result]
    return [np.nan_to_num(np.asarray(each.to_host()), nan=np.inf) for each in found]


def mnn(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import MNN.expr
    import MNN.nn

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.mnn"
        converter = [str(Path(sys.executable).with_name("mnnconvert")), "-f", "ONNX", "--bizCode", "x", "--modelFile"]
        done = subprocess.run([*converter, str(file), "--MNNModel", str(model)], capture_output=True, text=True)
        if not model.is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if "Error" in line or "Don't" in line]
            raise RuntimeError(said[0] if said else "mnnconvert writes no file")
        outputs = Path(file).with_suffix(".outputs").read_text().split()
        module = MNN.nn.load_module_from_file(str(model), list(feeds), outputs)
        kinds = {"float32": MNN.expr.float, "uint8": MNN.expr.uint8, "int64": MNN.expr.int64}
        given = [
            MNN.expr.const(np.ascontiguousarray(value), list(value.shape), MNN.expr.NCHW, kinds[value.dtype.name])
            for value in feeds.values()
        ]
        packed = [MNN.expr.convert(each, MNN.expr.NC4HW4) if len(each.shape) == 4 else each for each in given]
        found = module.onForward(packed)
        return [np.array(MNN.expr.convert(each, MNN.expr.NCHW).read()) for each in found]


def ncnn(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import ncnn

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.onnx"
        copy.write_bytes(file.read_bytes())
        kinds = {"float32": "f32", "uint8": "u8", "int64": "i64"}
        shapes = ",".join(f"[{','.join(map(str, v.shape))}]{kinds[v.dtype.name]}" for v in feeds.values())
        converter = next(Path(sys.prefix).glob("lib/*/site-packages/pnnx/pnnx"))  # its Python part wants torch
        done = subprocess.run(
            [str(converter), str(copy), f"inputshape={shapes}"], capture_output=True, text=True, cwd=folder
        )
        if missing := [line for line in (done.stdout + done.stderr).splitlines() if "ignore" in line.lower()]:
            raise RuntimeError(f"pnnx: {missing[0].strip()}")
        net = ncnn.Net()
        net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
        if net.load_param(f"{folder}/model.ncnn.param") or net.load_model(f"{folder}/model.ncnn.bin"):
            raise RuntimeError("ncnn does not load what pnnx wrote")
        extractor = net.create_extractor()
        for index, value in enumerate(feeds.values()):
            extractor.input(f"in{index}", ncnn.Mat(np.ascontiguousarray(value[0])).clone())
        names = Path(file).with_suffix(".outputs").read_text().split()
        found = []
        for index in range(len(names)):
            code, value = extractor.extract(f"out{index}")
            if code:
                raise RuntimeError(f"ncnn does not give out{index}")
            found.append(np.array(value)[None])
        return found


def opencv(file: Path, feeds: Feeds) -> list[np.ndarray]:
    import cv2

    net = cv2.dnn.readNetFromONNX(str(file))
    for name, value in feeds.items():
        net.setInput(value, name)
    return list(net.forward(Path(file).with_suffix(".outputs").read_text().split()))


def main(name: str, file: str, feeds: str, out: str) -> None:
    """Run one trial."""
    trial: Callable[[Path, Feeds], list[np.ndarray]] = globals()[name]
    with np.load(feeds) as content:
        found = trial(Path(file), {key: content[key] for key in content.files})
    np.savez(out, *found)


if __name__ == "__main__":
    main(*sys.argv[1:])
