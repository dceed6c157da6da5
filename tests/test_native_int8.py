"""Layers in int8 as C: equal to whole numbers on any target and number of threads, and close to the int8 file."""

import math
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export.onnx import to_onnx
from stn_export.export.precision import floats_of_c, int8_layers, outputs, quantise
from stn_export.native import convolution, operators
from stn_export.native import source as source_module
from stn_export.native.build import TARGETS, build, no_compiler
from stn_export.native.source import Source, write_source
from stn_export.native.writer import FloatLayer, Int8Layer
from stn_export.program.program import Program
from stn_export.run.environment import cpu_facts
from stn_export.run.manifest import NetworkDirectory
from stn_export.runners import native as runner_module
from stn_export.runners.native import Native
from stn_export.verify import __main__ as verify
from tests.captured_modules import program_of
from tests.processors import EMULATED, Emulated
from tests.runs import enter_networks
from tests.sweeps import swept
from tests.test_native import STRICT
from tests.test_native_random import MAIN, SANITIZED

pytestmark = pytest.mark.skipif(bool(no_compiler()), reason=no_compiler())
SHAPE = 24, 20, 13
WAYS = "wide", "tall"


@dataclass(frozen=True)
class Case:
    """A convolution of a part of the input, with the steps and zero points of its bytes; steps are powers of two."""

    sizes: tuple[int, int, int, int]  # channels of input and output, height and width of input
    options: dict
    ending: str = ""
    x: tuple[float, int] = (0.25, 101)
    y: tuple[float, int] = (2.0, 77)


CASES = [
    Case((3, 10, 20, 13), {"kernel_size": 5}, "relu pooled"),  # fewer than four channels, none whole in a vector
    Case((8, 32, 12, 12), {"kernel_size": 3, "padding": 1}, "relu", y=(4.0, 0)),
    Case((24, 41, 9, 13), {"kernel_size": 1}),  # more than one tile, and not whole tiles
    Case((24, 33, 3, 3), {"kernel_size": 3, "padding": 1}, "relu6"),
    Case((16, 64, 6, 5), {"kernel_size": 3, "padding": 1}, "pooled", x=(0.5, 255), y=(8.0, 128)),
    Case((7, 20, 11, 13), {"kernel_size": (2, 3), "padding": (1, 2), "stride": 2}, x=(0.5, 0)),
    Case((6, 14, 11, 13), {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False}, y=(1.0, 255)),
    Case((12, 18, 10, 7), {"kernel_size": 3, "padding": 1, "groups": 2}, "relu"),  # six channels of each group
    Case((24, 80, 4, 4), {"kernel_size": 1, "groups": 2, "stride": (1, 2)}),
    Case((4, 7, 20, 3), {"kernel_size": (1, 3), "stride": (3, 1)}),
    Case((6, 5, 18, 13), {"kernel_size": 3, "padding": 1}, "pooled relu", x=(0.125, 33)),  # in many strips, odd rows
]


class Network(nn.Module):
    """All cases on parts of one input; weights are whole steps."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases
        self.layers = nn.ModuleList(nn.Conv2d(*case.sizes[:2], **case.options) for case in cases)
        random = torch.Generator().manual_seed(3)
        for layer in self.layers:
            steps = 2.0 ** -torch.randint(3, 6, (layer.out_channels,), generator=random)
            whole = torch.randint(-64, 65, layer.weight.shape, generator=random)
            layer.weight.data = whole * steps.view(-1, 1, 1, 1)
            if layer.bias is not None:
                layer.bias.data = torch.randint(-900, 900, layer.bias.shape, generator=random) / 8
            layer.register_buffer("steps", steps)

    def forward(self, values: Tensor) -> Tensor:
        """Join what all layers give."""
        return self.joined(values, lambda layer, _, x: layer(x))

    def joined(self, values: Tensor, computed: Callable[[nn.Conv2d, Case, Tensor], Tensor]) -> Tensor:
        results = []
        for layer, case in zip(self.layers, self.cases, strict=True):
            channels, _, height, width = case.sizes
            x = computed(layer, case, values[:, :channels, :height, :width].contiguous())
            for ending in case.ending.split():
                x = {"relu": F.relu, "relu6": F.relu6, "pooled": lambda x: F.max_pool2d(x, 2)}[ending](x)
            results.append(x.flatten(1))
        return torch.cat(results, 1)

    def int8(self) -> list[Int8Layer | FloatLayer]:
        """What an int8 file says of them."""
        found: list[Int8Layer | FloatLayer] = []
        for index, (layer, case) in enumerate(zip(self.layers, self.cases, strict=True)):
            whole = (layer.weight / layer.steps.view(-1, 1, 1, 1)).to(torch.int8)
            bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias
            bias = (bias / (layer.steps * case.x[0])).long()
            found.append(Int8Layer(f"layer {index}", whole, layer.steps, bias, case.x, case.y))
        return found

    def expected(self, values: Tensor) -> np.ndarray:
        """The arithmetic of QuantizeLinear and DequantizeLinear, which is exact here, in float64."""
        return self.joined(values.double(), whole_numbers).float().numpy()


def whole_numbers(layer: nn.Conv2d, case: Case, x: Tensor) -> Tensor:
    """One convolution as ONNX defines it: rounded to the nearest step, halves to even, and saturated."""
    bias = None if layer.bias is None else layer.bias.double()
    summed = layer._conv_forward(rounded(x, *case.x), layer.weight.double(), bias)
    return rounded(summed, *case.y)


def rounded(x: Tensor, scale: float, zero: int) -> Tensor:
    """A tensor in bytes and back."""
    return ((x / scale).round().add(zero).clamp(0, 255) - zero) * scale


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(CASES).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def program(network: Network) -> Program:
    return program_of(network, {"images": ("N", *SHAPE)}, ["result"])


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Quarters of the finest step: exact halves are among them, and values beyond the range of every layer."""
    drawn = torch.randn(11, *SHAPE, generator=torch.Generator().manual_seed(0)) * 14
    return (drawn * 32).round() / 32


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "CACHED", 900)
    monkeypatch.setattr(runner_module, "SHARED", 0)


def test_the_values_reach_all_that_can_go_wrong(network: Network, images: Tensor):
    for layer, case in zip(network.layers, CASES, strict=True):
        channels, _, height, width = case.sizes
        x = images[:, :channels, :height, :width].double()
        steps = x / case.x[0]
        halves = (steps - steps.floor()) == 0.5
        assert halves.any()
        assert case.x[1] in (0, 255) or ((steps + case.x[1] > 255).any() and (steps + case.x[1] < 0).any())
        bias = None if layer.bias is None else layer.bias.double()
        sums = layer._conv_forward(rounded(x, *case.x), layer.weight.double(), bias) / case.y[0] + case.y[1]
        assert ((sums > 0) & (sums < 255)).double().mean() > 0.05
        assert (sums < 0).any()
        assert (sums > 255).any()
        assert ((sums - sums.floor()) == 0.5).any()


def able(target: str) -> bool:
    """Whether this processor runs code for a target."""
    return set(TARGETS[target][1]) <= set(cpu_facts().get("flags", "").split())


@pytest.mark.parametrize("target", swept(filter(able, TARGETS), "native", "generic"))
def test_every_convolution_is_exact_on_any_number_of_threads(
    target: str,
    network: Network,
    program: Program,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_strips: None,
):
    write_source(program, "net", target, int8=network.int8()).write(tmp_path / "net.c")
    source = (tmp_path / "net.c").read_text(encoding="utf-8").partition("APART layer_")[2]
    assert set(re.findall(r" (\w+)_bytes\(c, b, ", source)) == set(WAYS)
    assert "_convolution(c, " not in source
    for threads, count in ((1, 11), (2, 1), (2, 3), (3, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers = Native(tmp_path / "net.c", "cpu", program.contract).infer({"images": images[:count].numpy()})
        np.testing.assert_array_equal(answers["result"], network.expected(images[:count]))


class Rows(nn.Module):
    """Linear layers of one row an example, of several, and of more than one tile; weights are whole steps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(39, 45), nn.Linear(13, 16, bias=False), nn.Linear(260, 70)])
        random = torch.Generator().manual_seed(4)
        for layer in self.layers:
            layer.weight.data = torch.randint(-64, 65, layer.weight.shape, generator=random) / 8
            if layer.bias is not None:
                layer.bias.data = torch.randint(-900, 900, layer.bias.shape, generator=random) / 4

    def forward(self, values: Tensor) -> Tensor:
        """Join what all layers give."""
        return self.joined(values, lambda layer, *_: layer)

    def joined(self, values: Tensor, made: Callable) -> Tensor:
        parts = (values[:, 0, :3].flatten(1), values[:, 1, :7].reshape(-1, 13), values[:, 2].flatten(1))
        results = [made(layer, *STEPS)(x) for layer, x in zip(self.layers, parts, strict=True)]
        return torch.cat([x.reshape(values.shape[0], -1) for x in (results[0].relu(), *results[1:])], 1)

    def expected(self, values: Tensor) -> np.ndarray:
        """The arithmetic of the int8 file in float64, which is exact here."""

        def made(layer: nn.Linear, x: tuple[float, int], y: tuple[float, int]) -> Callable[[Tensor], Tensor]:
            bias = None if layer.bias is None else layer.bias.double()
            return lambda rows: rounded(F.linear(rounded(rows, *x), layer.weight.double(), bias), *y)

        return self.joined(values.double(), made).float().numpy()


STEPS = (0.25, 101), (8.0, 78)


@pytest.mark.parametrize("target", swept(filter(able, TARGETS), "native"))
def test_linear_layers_are_exact(
    target: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_strips: None
):
    monkeypatch.setattr(operators, "HEAVY", 5000)  # the last layer goes by groups of examples
    monkeypatch.setattr(source_module, "INSIDE", 100)  # weights are in a file of their own
    rows = Rows().eval().requires_grad_(False)
    layers: list[Int8Layer | FloatLayer] = []
    for index, layer in enumerate(rows.layers):
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        whole, scales = (8 * layer.weight).to(torch.int8), torch.full([len(layer.weight)], 1 / 8)
        layers.append(Int8Layer(f"layer {index}", whole, scales, (bias * 32).long(), *STEPS))
    program = program_of(rows, {"images": ("N", *SHAPE)}, ["result"])
    source = write_source(program, "net", target, int8=layers)
    assert re.findall(r"\w+(?=\((?:\(bytes\)|c_))", source.c.partition("STEP(0)")[2]) == ["rows_of_bytes"] * 3
    assert source.weights
    source.write(tmp_path / "net.c")
    for threads, count in ((1, 11), (2, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers = Native(tmp_path / "net.c", "cpu", program.contract).infer({"images": images[:count].numpy()})
        expected = rows.expected(images[:count])
        np.testing.assert_array_equal(answers["result"], expected)
        assert {-78 * 8.0, 177 * 8.0} < set(expected[:, 45:].ravel().tolist())
    sanitized = ran(source, tmp_path, images[:9], expected.shape[1], "-fsanitize=address,undefined")
    np.testing.assert_array_equal(sanitized, [rows.expected(images[:9])] * 2)


def ran(
    source: Source, folder: Path, images: Tensor, count: int, *flags: str, emulator: Sequence[str] = ()
) -> np.ndarray:
    """What a program with the C gives on one thread, then on two."""
    source.write(folder / "net.c")
    sizes = {"batch": len(images), "input": images[0].numel(), "output": count, "parts": 2}
    (folder / "main.c").write_text(MAIN.format(**sizes), encoding="utf-8")
    build(folder / "net.c", folder / "net", [*SANITIZED, *flags, "-pthread", str(folder / "main.c")])
    command = [*emulator, str(folder / "net")]
    done = subprocess.run(command, input=images.numpy().tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:3000]
    return np.frombuffer(done.stdout, np.float32).reshape(2, len(images), count)


@pytest.mark.parametrize(
    ("target", "sanitizer"),
    [("native", "address,undefined"), pytest.param("generic", "thread,undefined", marks=pytest.mark.slow)],
)
def test_sanitizers_find_nothing(
    target: str,
    sanitizer: str,
    network: Network,
    program: Program,
    images: Tensor,
    tmp_path: Path,
    small_strips: None,
):
    expected = network.expected(images[:3])
    source = write_source(program, "net", target, int8=network.int8())
    answers = ran(source, tmp_path, images[:3], expected.shape[1], f"-fsanitize={sanitizer}")
    np.testing.assert_array_equal(answers, [expected] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("machine", EMULATED, ids=lambda machine: machine.name)
def test_it_is_exact_on_other_processors(
    machine: Emulated,
    network: Network,
    program: Program,
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if missing := machine.missing():
        pytest.skip(f"{missing} not installed")
    monkeypatch.setenv("CC", machine.compiler)
    expected = network.expected(images[:2])
    source = write_source(program, "net", machine.target, int8=network.int8())
    emulator = machine.command(tmp_path)[:-1]
    answers = ran(source, tmp_path, images[:2], expected.shape[1], "-static", emulator=emulator)
    np.testing.assert_array_equal(answers, [expected] * 2)


@pytest.mark.parametrize(("target", "case"), [("native", 0), ("x86-64-v3", 3), ("generic", 4)])
def test_the_compiler_does_not_warn_where_one_way_alone_is_used(target: str, case: int, tmp_path: Path):
    network = Network(CASES[case : case + 1]).eval().requires_grad_(False)
    program = program_of(network, {"images": ("N", *SHAPE)}, ["result"])
    write_source(program, "net", target, int8=network.int8()).write(tmp_path / "net.c")
    build(tmp_path / "net.c", tmp_path / "net.so", STRICT)


def test_c_in_float32_has_nothing_of_it(program: Program):
    assert "bytes *b" not in write_source(program, "net").c


def test_a_layer_that_the_program_has_not_is_named(network: Network, program: Program):
    layers = network.int8()
    other = Int8Layer("stray", -layers[0].weight, layers[0].scales, layers[0].bias, layers[0].x, layers[0].y)
    with pytest.raises(UserError, match="stray of the int8 file is no layer of the program"):
        write_source(program, "net", int8=[*layers, other])


class Twice(nn.Module):
    """One convolution applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Add both results."""
        return self.layer(images) + self.layer(images * 7)


@pytest.mark.parametrize("floats", [0, 1])
def test_of_two_layers_with_the_same_weights_each_gets_its_own(floats: int):
    program = program_of(Twice(), {"images": ("N", 8, 9, 9)}, ["result"])
    weight = program.module.get_parameter("layer.weight").detach()
    scale = weight.abs().max() / 64
    whole, scales = (weight / scale).round().to(torch.int8), scale.expand(8)
    layers = [Int8Layer(f"{x}", whole, scales, torch.zeros(8).long(), (x, 3), (0.5, 128)) for x in (0.25, 0.125)]
    layers[floats] = FloatLayer("float", weight)
    functions = write_source(program, "net", int8=layers).c.partition("APART layer_")[2].split("APART layer_")
    assert ["_bytes(c, b" in function for function in functions] == [index != floats for index in (0, 1)]
    assert f"{{{1 / layers[1 - floats].x[0]}f, 0.5f" in functions[1 - floats]


def test_sums_of_more_than_32_bits_are_refused(network: Network, program: Program):
    layers = network.int8()
    layers[0].bias[0] = (1 << 31) - 500_000
    with pytest.raises(
        UserError, match=r"conv2d.* at .*test_native_int8.py.* has sums in int8 that 32 bits do not hold"
    ):
        write_source(program, "net", int8=layers)


class Residual(nn.Module):
    """Batch norms, a convolution that is read twice, depthwise and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.ReLU6(), nn.Conv2d(24, 24, 1))
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.hidden, self.scores = nn.Linear(24 * 16, 32), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = F.max_pool2d(x + self.wide(x), 2)
        return self.scores(self.hidden(self.depthwise(x).flatten(1)).relu())


def test_it_computes_what_the_int8_file_computes(tmp_path: Path):
    torch.manual_seed(0)
    module = Residual()
    with torch.no_grad():
        for _ in range(3):
            module.train()(torch.randn(16, 3, 16, 16))
    program = program_of(module, {"images": ("N", 3, 16, 16)}, ["result"])
    model = to_onnx(program, "plain")
    batch = {"images": torch.randn(64, 3, 16, 16).numpy()}
    floats = floats_of_c(model)
    quantised = quantise(model, [batch], floats)
    layers = int8_layers(quantised)
    assert [type(layer) for layer in layers] == [*[Int8Layer] * 3, FloatLayer, Int8Layer, FloatLayer]
    assert len(floats) == 1
    write_source(program, "net", int8=layers).write(tmp_path / "net.c")
    answers = Native(tmp_path / "net.c", "cpu", program.contract).infer(batch)["result"]
    file, exact = (outputs(each, [batch])["result"] for each in (quantised, model))
    assert 0 < relative(answers, exact) < 1.3 * relative(file, exact)
    assert relative(answers, file) < relative(file, exact)


def relative(values: np.ndarray, others: np.ndarray) -> float:
    return math.sqrt(np.square(values - others).sum() / np.square(others).sum())


@pytest.mark.slow
def test_the_chain_takes_it_as_an_int8_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = enter_networks(tmp_path)
    words = ["--run", str(run), "--only", "native-int8"]
    assert cli.run(export.main, words) == 0
    capsys.readouterr()
    assert cli.run(verify.main, ["--run", str(run), "--only", "native-cpu"]) == 0
    assert re.findall(r"(\w+)/native-int8 +native-cpu .* within int8's bounds", capsys.readouterr().out) == [
        "stn",
        "cnn",
    ]
    details = NetworkDirectory(run / "stn").listed("native-int8").details["int8"]
    assert details["kept_in_float32"]
    capsys.readouterr()
    assert cli.run(export.main, words) == 0
    assert capsys.readouterr().out.count("up to date") == 2
