"""Why PyTorch cannot use a GPU is said: an old driver, hidden GPUs, a GPU older than the wheels, one without TF32."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stn_export import cli, doctor
from stn_export.errors import UserError
from stn_export.run import environment, gpu
from stn_export.run.gpu import Driver
from stn_export.runners import RUNNERS, registry
from tests.rehearsal.surface import rehearsed

STUB = """
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
"""
OLD, NEW = Driver((12, 4), "550.54.15", 1), Driver((13, 0), "580.65.06", 1)
HIDDEN = Driver((13, 0), "580.65.06", 0)
WHEELS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def without_gpu(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, cuda: str | None, visible: str | None) -> None:
    """A machine whose PyTorch, of this CUDA, sees no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(gpu, "driver", lambda: driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("driver", "cuda", "visible", "reason", "remedy"),
    [
        (None, "13.0", None, "PyTorch sees no GPU here", "NVIDIA GPU and its driver"),
        (
            OLD,
            "13.0",
            None,
            "driver 550.54.15 (CUDA 12.4) is older than this PyTorch's CUDA 13.0",
            "580 or newer, or install PyTorch's cu126 build",
        ),
        (
            Driver((11, 4), "", 1),
            "12.6",
            None,
            "the driver (CUDA 11.4) is older than this PyTorch's CUDA 12.6",
            "525 or newer, or install PyTorch's cu118 build",
        ),
        (
            OLD,
            "12.6",
            None,
            "PyTorch sees no GPU here, although driver 550.54.15 (CUDA 12.4) shows 1",
            "torch.zeros(1).cuda()",
        ),
        (HIDDEN, "13.0", "", "CUDA_VISIBLE_DEVICES= hides every GPU", "unset it"),
        (HIDDEN, "13.0", "7", "CUDA_VISIBLE_DEVICES=7 hides every GPU", "nvidia-smi -L"),
        (HIDDEN, "13.0", None, "PyTorch sees no GPU here: driver 580.65.06 (CUDA 13.0) shows none", "nvidia-smi"),
        (NEW, None, None, "PyTorch sees no GPU here: it is built without CUDA", "CUDA build"),
    ],
)
def test_what_hides_a_gpu_is_named(
    driver: Driver | None,
    cuda: str | None,
    visible: str | None,
    reason: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
):
    without_gpu(monkeypatch, driver, cuda, visible)
    obstacle = gpu.obstacle()
    assert obstacle is not None
    assert obstacle.reason == reason
    assert remedy in obstacle.remedy
    with pytest.raises(UserError) as error:
        environment.resolve_device("cuda")
    assert error.value.message == f"DEVICE=cuda, but {reason}"
    assert remedy in error.value.hint


def test_auto_says_why_it_is_not_on_the_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    without_gpu(monkeypatch, OLD, "13.0", None)
    assert environment.resolve_device("auto").type == "cpu"
    said = " ".join(" ".join(capsys.readouterr()).split())
    assert (
        "not on the GPU: driver 550.54.15 (CUDA 12.4) is older than this PyTorch's CUDA 13.0 (update it to 580" in said
    )
    without_gpu(monkeypatch, None, "13.0", None)  # nobody expects one there
    assert environment.resolve_device("auto").type == "cpu"
    assert not "".join(capsys.readouterr())


def test_a_real_process_with_an_old_driver_says_so_everywhere(tmp_path: Path):
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    (tmp_path / "driver.c").write_text(STUB, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "driver.c"], check=True)
    script = """
from stn_export import cli, doctor
from stn_export.onnx_graph.placement import cuda_works
print(cli.start(["doctor"]), cuda_works())
print(cli.start(["train", "--device", "cuda", "--run", "nowhere"]))
"""
    variables = {"LD_LIBRARY_PATH": str(tmp_path), "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, cwd=tmp_path, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    older = "(CUDA 12.4) is older than this PyTorch's CUDA"
    assert older in next(line for line in done.stdout.splitlines() if line.startswith("GPU"))
    assert "0 False" in done.stdout
    assert "CUDA runners" in next(line for line in done.stdout.splitlines() if older in line and "runners" in line)
    assert older in done.stderr
    assert "UserWarning" not in done.stderr
    assert "onnxruntime" not in done.stderr
    assert done.stdout.splitlines()[-1] == "2"


def seen(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], kernels: list[str]) -> None:
    """A machine whose PyTorch sees this GPU."""
    properties = SimpleNamespace(name=name, major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: properties)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: kernels)


@pytest.mark.parametrize(
    ("name", "capability", "kernels", "usable"),
    [
        ("Tesla T4", (7, 5), WHEELS, True),
        ("NVIDIA A10", (8, 6), WHEELS, True),
        ("NVIDIA L4", (8, 9), WHEELS, True),  # runs the code of 8.6
        ("NVIDIA H100", (9, 0), WHEELS, True),
        ("Tesla V100", (7, 0), WHEELS, False),
        ("Quadro P4000", (6, 1), WHEELS, False),
        ("a GPU to come", (13, 0), WHEELS, False),  # no machine code of its major version, and no PTX
        ("a GPU to come", (13, 0), [*WHEELS, "compute_120"], True),
        ("NVIDIA H100", (9, 0), ["sm_90a"], True),
        ("anything", (5, 2), [], True),  # PyTorch does not tell
    ],
)
def test_a_gpu_without_kernels_is_named(
    name: str, capability: tuple[int, int], kernels: list[str], usable: bool, monkeypatch: pytest.MonkeyPatch
):
    seen(monkeypatch, name, capability, kernels)
    obstacle = gpu.obstacle()
    assert (obstacle is None) == usable == gpu.is_usable()
    if obstacle:
        version = f"{capability[0]}.{capability[1]}"
        assert (
            obstacle.reason
            == f"{name} has compute capability {version}, for which this PyTorch has no kernels: they begin at 7.5"
        )


def test_rows_of_tf32_are_left_out_where_the_gpu_has_none():
    with rehearsed(), pytest.MonkeyPatch.context() as patch:
        rows = [spec for spec in RUNNERS if spec.name.endswith("-tf32")]
        assert len(rows) == 6
        assert not any(spec.unavailable() for spec in rows)
        seen(patch, "Tesla T4", (7, 5), WHEELS)
        assert {spec.unavailable() for spec in rows} == {"TF32 needs compute capability 8.0, and Tesla T4 has 7.5"}
        assert not any(spec.unavailable() for spec in RUNNERS if spec.name in ("eager-cuda", "onnxruntime-cuda"))


def test_results_carry_how_the_gpu_is_set_up():
    with rehearsed():
        facts = gpu.describe()
    assert facts["gpu"] == "NVIDIA H100, rehearsed"
    assert (facts["gpus"], facts["compute_capability"]) == (1, "9.0")
    assert (facts["gpu_power_limit_watts"], facts["gpu_largest_sm_clock_mhz"]) == (700.0, 1980)
    assert (facts["gpu_persistence_mode"], facts["gpu_mig_mode"]) == (True, False)


def test_what_compiling_needs_is_asked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    [compiled] = [spec for spec in RUNNERS if spec.name == "compiled-cpu"]
    monkeypatch.setattr(registry.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(registry.sysconfig, "get_path", lambda name: str(tmp_path))
    assert compiled.unavailable() == "torch.compile needs Python's headers (Python.h), and they are not here"
    assert "python3-dev" in doctor.remedy(compiled.unavailable())
    (tmp_path / "Python.h").touch()
    assert not compiled.unavailable()


def test_a_full_gpu_is_told_from_a_full_machine():
    error = cli.as_user_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."))
    assert error is not None
    assert error.message == "the GPU's memory is full"
    host = cli.as_user_error(RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"))
    assert host is not None
    assert host.message == "there is not enough memory"
