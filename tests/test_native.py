"""Networks as C: built by both compilers, for other machines, into programs in three languages, and by the chain."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import rows
from stn_export.native import convolution, operators
from stn_export.native.build import build, built, no_compiler
from stn_export.native.source import write_source
from stn_export.program.program import Program
from stn_export.run.manifest import NetworkDirectory
from stn_export.runners import native as runner_module
from stn_export.runners.native import Native
from stn_export.verify import __main__ as verify
from tests.captured_modules import program_of
from tests.runs import built_in, enter_networks
from tests.sweeps import swept
from tests.zoo import ZOO

pytestmark = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
DOCUMENT = Path(__file__).parent.parent / "docs" / "native.md"
STRICT = ("-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
FOREIGN = ("GreyDigits", "PlateRectifier", "TwoSteps", "Homography", "Pyramid", "TextRectifier")
AARCH64 = "aarch64-linux-gnu-gcc"


def needs(tool: str) -> pytest.MarkDecorator:
    """A tool that is there and starts: rustup's rustc without a toolchain does not."""
    starts = shutil.which(tool) and not subprocess.run([tool, "--version"], capture_output=True, check=False).returncode
    return pytest.mark.skipif(not starts, reason=f"{tool} is not installed")


@pytest.fixture(scope="module")
def network() -> Program:
    return built_in("stn")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()


def expected(program: Program, images: np.ndarray) -> np.ndarray:
    return program.exact.points((torch.from_numpy(images),))["log_probs"].numpy()


def captured(module: nn.Module, *shape: int) -> Program:
    return program_of(module, {"images": ("N", *shape)}, ["result"])


def documented(language: str) -> tuple[str, str, str]:
    """A program's file name, its text and the commands that build and run it."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## Calling it from {language}")[1]
    program, commands = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)[:2]
    return re.match(r"(?://|#) (\S+)", program)[1], program, commands


@pytest.mark.parametrize(
    "language", ["C", pytest.param("Rust", marks=[needs("rustc"), pytest.mark.slow]), pytest.param("Python")]
)
def test_documented_programs_run_as_they_stand(language: str, network: Program, image: np.ndarray, tmp_path: Path):
    write_source(network, "stn").write(tmp_path / "native-fp32.c")
    (tmp_path / "image.f32").write_bytes(image.tobytes())
    name, program, commands = documented(language)
    (tmp_path / name).write_text(program, encoding="utf-8")
    assert len([line for line in program.splitlines()[1:] if len(line) > 1 and "include" not in line]) <= 10
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=os.environ | path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_allclose(np.array(done.stdout.split(), float), expected(network, image)[0], atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [pytest.param(each, marks=needs(each)) for each in ("gcc", "clang")])
@pytest.mark.parametrize("turn", range(3))
def test_no_compiler_warns(compiler: str, turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", compiler)
    for name, target in zip(FOREIGN[turn::3], ("native", "x86-64-v3", "generic")[turn::-1], strict=False):
        write_source(ZOO[name].program(), "net", target).write(tmp_path / "net.c")
        build(tmp_path / "net.c", tmp_path / "net.so", STRICT)


@pytest.mark.parametrize("name", swept(FOREIGN, FOREIGN[0]))
def test_other_peoples_networks_are_as_exact_as_eager(name: str, tmp_path: Path):
    program, batch = ZOO[name].program(), ZOO[name].examples(5).take(5)
    write_source(program, "net").write(tmp_path / "net.c")
    found = Native(tmp_path / "net.c", "cpu", program.contract).infer(program.contract.arrays(batch))
    values = program.values(batch)
    exact, eager = program.exact.points(values), program.run(values)
    for output, array in found.items():
        own = np.abs(eager[output].numpy() - exact[output].numpy()).max()
        assert np.abs(array - exact[output].numpy()).max() <= 2 * own + 1e-7


CONVOLUTIONS = [  # channels of input and output, height and width of input, and what they are computed by
    ((6, 6, 12, 13), {"kernel_size": 3, "padding": 1, "groups": 6}, "depthwise"),
    ((6, 6, 12, 13), {"kernel_size": 3, "padding": 1, "groups": 6, "stride": 2}, "depthwise"),
    ((24, 24, 3, 3), {"kernel_size": 5, "padding": 2, "groups": 24}, "depthwise"),
    ((8, 8, 9, 9), {"kernel_size": 3, "padding": 2, "groups": 8, "dilation": 2}, "depthwise"),
    ((64, 100, 3, 3), {"kernel_size": 1}, "tall"),
    ((48, 64, 3, 3), {"kernel_size": 3, "padding": 1}, "tall"),
    ((40, 64, 7, 6), {"kernel_size": 3, "padding": 1, "stride": 2}, "tall"),
    ((40, 40, 5, 5), {"kernel_size": (2, 3), "dilation": (2, 1)}, "tall"),
    ((16, 24, 12, 13), {"kernel_size": 1}, "plain"),
    ((3, 20, 12, 13), {"kernel_size": 3, "padding": 1, "stride": 2}, "plain"),
    ((8, 30, 12, 13), {"kernel_size": 1, "groups": 2}, "plain"),
    ((64, 24, 80, 6), {"kernel_size": (3, 1), "padding": (1, 0)}, "plain"),  # pooled, narrow and in many strips
    ((64, 24, 80, 6), {"kernel_size": 3, "padding": 1}, "fast"),
]


class Convolutions(nn.Module):
    """Each on a part of one tensor, those of tall inputs followed by pooling; then what else threads share."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(*sizes[:2], **options) for sizes, options, _ in CONVOLUTIONS)
        self.scores = nn.Linear(80 * 13, 37)
        self.register_buffer("spline", torch.randn(37, 80))

    def forward(self, values: Tensor) -> Tensor:
        outputs = []
        for layer, (sizes, _, _) in zip(self.layers, CONVOLUTIONS, strict=True):
            result = layer(values[:, : sizes[0], : sizes[2], : sizes[3]].contiguous()).relu()
            outputs.append((F.max_pool2d(result, 2) if sizes[2] == 80 else result).flatten(1))
        small = values[:, :5, :9, :11].contiguous()
        outputs += [F.interpolate(small, (13, 19), mode="bilinear").flatten(1), F.max_pool2d(small, 3, 2, 1).flatten(1)]
        outputs += [F.adaptive_avg_pool2d(small, (5, 3)).flatten(1), self.scores(values[:, 0].flatten(1))]
        outputs.append((self.spline @ values[:, 1, :, :2]).flatten(1))
        return torch.cat(outputs, 1)


@pytest.mark.parametrize("target", swept(("native", "x86-64-v3", "generic"), "native"))
def test_every_convolution_equals_float64_on_any_number_of_threads(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in (convolution, operators):
        monkeypatch.setattr(module, "HEAVY", 5000)  # layers as light as these go by groups of examples too
    monkeypatch.setattr(convolution, "CACHED", 4000)
    monkeypatch.setattr(runner_module, "SHARED", 0)
    torch.manual_seed(0)
    program = captured(Convolutions(), 64, 80, 13)
    write_source(program, "net", target).write(tmp_path / "net.c")
    source = (tmp_path / "net.c").read_text(encoding="utf-8")
    assert re.findall(r" (\w+)_convolution\(c, ", source.partition("APART layer_")[2]) == [
        kind for *_, kind in CONVOLUTIONS
    ]
    for threads, count in ((1, 11), (2, 1), (2, 3), (3, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        values = torch.randn(count, 64, 80, 13)
        exact = program.exact.points((values,))["result"].numpy()
        answers = Native(tmp_path / "net.c", "cpu", program.contract).infer({"images": values.numpy()})["result"]
        np.testing.assert_allclose(answers, exact, atol=4e-6 * np.abs(exact).max())


@pytest.mark.slow
@needs(AARCH64)
def test_it_compiles_for_another_processor_and_runs_there(
    network: Program, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CC", AARCH64)
    write_source(network, "stn", "generic").write(tmp_path / "native-fp32.c")
    name, program, _ = documented("C")
    (tmp_path / name).write_text(program, encoding="utf-8")
    build(tmp_path / "native-fp32.c", tmp_path / "main", [*STRICT[:3], "-static", str(tmp_path / name)])
    if emulator := shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static"):
        done = subprocess.run([emulator, tmp_path / "main"], input=image.tobytes(), capture_output=True, check=True)
        np.testing.assert_allclose(np.array(done.stdout.split(), float), expected(network, image)[0], atol=3e-6)


@pytest.fixture(scope="module")
def library(network: Program, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("library") / "stn.c"
    write_source(network, "stn").write(path)
    return ctypes.CDLL(str(built(path)))


def test_errors_have_codes(library: ctypes.CDLL, image: np.ndarray):
    out, memory = np.zeros(10, np.float32), np.zeros(library.stn_memory(), np.uint8)
    given, found, room = (ctypes.c_void_p(each.ctypes.data) for each in (image, out, memory))
    one, size = ctypes.c_size_t(1), ctypes.c_size_t(memory.size)
    assert library.stn_run(given, one, None) == library.stn_run(None, one, found) == 1
    assert library.stn_run_in(given, one, found, None, size) == 2
    assert library.stn_run_in(given, one, found, room, ctypes.c_size_t(memory.size - 1)) == 2
    assert not out.any()
    assert library.stn_run_in(given, one, found, room, size) == 0
    assert out.any()
    assert library.stn_abi() == 2
    for part, parts in ((-1, 1), (1, 1), (0, 0), (0, -1)):
        assert library.stn_run_part(given, one, found, part, parts, room, size) == 3
    assert library.stn_run_part(given, one, found, 0, 2, room, size) == 2


@needs("nm")
def test_nothing_is_allocated(network: Program, tmp_path: Path):
    write_source(network, "stn").write(tmp_path / "stn.c")
    build(tmp_path / "stn.c", tmp_path / "stn.so")
    found = subprocess.run(["nm", "-D", "--undefined-only", tmp_path / "stn.so"], capture_output=True, check=True)
    assert not re.search(rb"alloc|free|mmap|pthread", found.stdout), found.stdout


def test_threads_do_not_meet(library: ctypes.CDLL, network: Program):
    images = np.random.default_rng(0).standard_normal((4, 8, 3, 32, 32), np.float32)
    outs, failed = np.zeros((4, 8, 10), np.float32), []

    def work(part: int) -> None:
        given, found = (ctypes.c_void_p(each[part].ctypes.data) for each in (images, outs))
        for _ in range(50):
            outs[part] = 0
            failed.append(library.stn_run(given, ctypes.c_size_t(8), found))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(failed)
    np.testing.assert_allclose(outs.reshape(32, 10), expected(network, images.reshape(32, 3, 32, 32)), atol=3e-6)


class Rolled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.roll(1, 2)


class Mixed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - images.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Rolled(), r"aten.roll.default at .*test_native.py:\d+.* is not among"),
        (Mixed(), r"mean.* at .*test_native.py:\d+"),
    ],
)
def test_what_cannot_be_written_is_named_with_its_line(module: nn.Module, said: str):
    with pytest.raises(UserError, match=said):
        write_source(captured(module, 3, 8, 8), "net")


def test_a_processor_that_lacks_what_the_target_needs(
    network: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("stn_export.native.build._processor", lambda: "aarch64")
    write_source(network, "stn", "x86-64-v4").write(tmp_path / "stn.c")
    with pytest.raises(UserError, match="is for x86-64-v4: this processor has no avx512f"):
        built(tmp_path / "stn.c")


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return enter_networks(tmp_path_factory.mktemp("native"))


def test_a_file_of_another_generator_is_written_anew(entered: Path, monkeypatch: pytest.MonkeyPatch):
    [spec] = [spec for spec in rows.EXPORTS if spec.name == "native-fp32"]
    source = rows.Source(NetworkDirectory(entered / "stn"))
    export.export(source, [spec])
    assert export.is_fresh(source, spec)
    monkeypatch.setattr(rows, "generator", lambda: "another")
    assert not export.is_fresh(source, spec)


@pytest.mark.slow
def test_the_chain_takes_it_like_every_other_row(entered: Path, capsys: pytest.CaptureFixture[str]):
    rows = ["native-fp32", "native-fp32-uint8-nhwc", "native-fp32-generic"]
    assert cli.run(export.main, ["--run", str(entered), "--only", *rows]) == 0
    assert cli.run(verify.main, ["--run", str(entered), "--only", "native-cpu"]) == 0
    directory = NetworkDirectory(entered / "stn")
    native = directory.listed("native-fp32")
    assert [Path(each).suffix for each in sorted(native.beside)] == [".so", ".h"]
    assert native.parent_sha256[:64] in (directory.path / native.file).read_text(encoding="utf-8")[:4000]
    capsys.readouterr()
    assert cli.run(export.main, ["--run", str(entered), "--only", *rows]) == 0
    assert capsys.readouterr().out.count("up to date") == 6
    (directory.path / "native-fp32.h").write_text("changed", encoding="utf-8")
    with pytest.raises(UserError, match=r"native-fp32\.h was changed after it was written"):
        directory.open(native)


def test_without_a_compiler_there_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert cli.run(export.main, ["--run", str(enter_networks(tmp_path)), "--only", "native-fp32"]) == 2
    assert "native code needs a C compiler, and $CC, which is '/nowhere/cc', names none that" in capsys.readouterr().err
