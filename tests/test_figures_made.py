"""Figures where they are made: from which split, of how many threads, by which clock, over which outputs.

Clocks tick a call, not a reading: a call that is timed and should not be makes a figure longer.
"""

import io
import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings as searching
from torch import Tensor, nn

from benchmarks.tools import kept
from stn_export.bench import profiling
from stn_export.bench.cases import Case
from stn_export.bench.plan import GRIDS
from stn_export.bench.profiling import MARK, WARM_UPS, profile_onnx, profile_program
from stn_export.bench.timing import time_case
from stn_export.onnx_graph import portability
from stn_export.onnx_graph.deployment import audit
from stn_export.onnx_graph.model import activation_bytes, infer, initialiser_bytes
from stn_export.program.sites import PARTS
from stn_export.program.specs import Arrays
from stn_export.results.tolerances import OUTPUT, TOLERANCES
from stn_export.runners import RUNNERS, Step
from stn_export.runners.external import serve
from stn_export.runners.pytorch import Captured
from stn_export.train.data import Dataset, Split, normalise
from stn_export.train.trainer import Settings, Trainer, run_epoch
from stn_export.verify import oracle, search
from stn_export.verify.checks import over_examples
from stn_export.verify.diagnosis import Scene, _mistakes, diagnose
from stn_export.verify.oracle import Reference, reference_of
from tests.captured_modules import examples_of, program_of

# Training: the split that a figure is of.


def right(model: nn.Module, split: Split) -> float:
    """The share of a split that a model tells, counted here."""
    with torch.inference_mode():
        scores = model.eval()(normalise(split.images))
    return sum(int(row.argmax()) == label for row, label in zip(scores, split.labels.tolist(), strict=True)) / len(
        split
    )


def test_test_figures_are_of_the_test_images_and_validation_s_of_those_held_out(settings: Settings, small: Dataset):
    """Only the training images have labels that can be learned."""
    wrong = replace(small, test=Split(small.test.images, (small.test.labels + 5) % 10))
    recipe = replace(settings.recipe, epochs=1)
    trainer = Trainer(replace(settings, recipe=recipe, validation=160), wrong, torch.device("cpu"))
    run_epoch([trainer])
    [row] = trainer.history
    shares = {name: right(trainer.model, split) for name, split in splits(trainer).items()}
    assert len(set(shares.values())) == 3
    assert row["test_accuracy"] == pytest.approx(shares["test"])
    assert row["validation_accuracy"] == pytest.approx(shares["validation"])
    assert len(trainer.held_out) + len(trainer.train) == len(small.train)


def splits(trainer: Trainer) -> dict[str, Split]:
    """What a trainer has, by what it is for."""
    return {"train": trainer.train, "validation": trainer.held_out, "test": trainer.test}


# The benchmarks' clocks and threads.


@dataclass(frozen=True)
class Ticking:
    """A target whose clock ticks a call: so many seconds each, in turn."""

    seconds: tuple[float, ...]
    made: list[float] = field(default_factory=list, compare=False)
    runner: object = field(default_factory=lambda: SimpleNamespace(device="cpu"))

    def step(self, batch: int) -> Step:
        """A call of a batch."""
        return Step(lambda: self.made.append(self.seconds[len(self.made) % len(self.seconds)]), lambda: sum(self.made))

    def facts(self, batch: int) -> dict:
        """Of a row."""
        return {"batch": batch}


class Benchmark:
    """What of pytest-benchmark's fixture a row needs: it reads the clock before and behind every round."""

    def __init__(self) -> None:
        self.extra_info: dict = {}
        self._timer: Callable[[], float] = lambda: 0.0
        self.stats: SimpleNamespace | None = None

    def pedantic(self, step: Step, rounds: int) -> None:
        """Time so many calls."""
        data = []
        for _ in range(rounds):
            started = self._timer()
            step()
            data.append(self._timer() - started)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data))


def test_a_row_is_the_median_of_its_calls_and_the_rate_is_that_of_the_median(monkeypatch: pytest.MonkeyPatch):
    """Calls that differ by factors: the interval's ends, the mean and the median all differ."""
    monkeypatch.setattr("stn_export.bench.timing.warm_up", lambda step, seconds: WARM)
    spread = np.random.default_rng(0).normal(0, 0.7, 70)
    target, benchmark = Ticking(tuple(2e-3 * np.exp(spread))), Benchmark()
    grid = replace(GRIDS["quick"], row_seconds=0.7)
    time_case(benchmark, Case(target, 64), grid)
    row = benchmark.extra_info
    assert len(target.made) == row["n"] == 70  # none but those of the row
    assert row["p50"] == pytest.approx(statistics.median(target.made))
    assert row["p50_low"] < 0.99 * row["p50"] < 1.01 * row["p50"] < row["p50_high"]
    assert row["examples_per_second"] == pytest.approx(64 / statistics.median(target.made))
    assert row["p90"] == pytest.approx(np.quantile(target.made, 0.9))
    assert row["p99"] is None  # of so few
    assert row["disturbed"] is True  # it never settled
    assert row["batch"] == 64


WARM = SimpleNamespace(call_seconds=1e-2, sample_seconds=1e-2, stable=False, facts=lambda: {})


def test_the_peak_is_measured_with_the_threads_that_were_timed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept, "measured_peak", lambda *threads: {"threads": torch.get_num_threads()})
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(3 - threads)
            assert kept.peak({"threads": threads}, "cpu") == {"threads": threads}
    finally:
        torch.set_num_threads(before)


def event(name: str, parent: SimpleNamespace | None = None, total: int = 0, own: int = 0) -> SimpleNamespace:
    """Of PyTorch's profiler, in microseconds; times on the GPU are others."""
    times = {"cpu_time_total": total, "self_cpu_time_total": own}
    return SimpleNamespace(
        name=name, cpu_parent=parent, **times, device_time_total=7 * total, self_device_time_total=own
    )


def profiler_of(events: list[SimpleNamespace]) -> Callable:
    """A profiler that saw these."""

    @contextmanager
    def profile(activities: list) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(events=lambda: events)

    return profile


@pytest.mark.parametrize(("on_gpu", "factor"), [(False, 1), (True, 7)])
def test_an_operator_s_time_is_its_own_and_that_of_all_it_calls(
    on_gpu: bool, factor: int, monkeypatch: pytest.MonkeyPatch
):
    """Three calls of a convolution (two operators deep), and of a node that runs one operator twice."""
    events, calls = [], 3
    for conv, add in ((100, 11), (140, 13), (310, 23)):
        node = event(f"{MARK}conv")
        outer = event("aten::conv2d", node, conv, own=2)
        inner = event("aten::convolution", outer, conv - 2, own=conv - 2)
        twice = event(f"{MARK}sum")
        events += [node, outer, inner, twice]
        events += [event("aten::add", twice, add, own=add), event("aten::add", twice, add + 2, own=1)]
        events.append(event("aten::stray", None, 999, own=999))  # of no node
        events.append(event("aten::relu", event(f"{MARK}other"), 3, own=3))
    monkeypatch.setattr(profiling, "profile", profiler_of(events))
    monkeypatch.setattr(profiling, "_Marked", lambda module: SimpleNamespace(run=lambda *values: None))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    of_nodes = {"conv": "localisation", "sum": "grid"}
    program = SimpleNamespace(on=lambda device: None, parts=lambda: of_nodes, sites=[1, 2])
    found = profile_program(program, [SimpleNamespace(is_cuda=on_gpu, device="cpu")], calls)
    assert {(node.name, node.op, node.part): pytest.approx(node.seconds) for node in found.nodes} == {
        ("conv", "aten::conv2d", "localisation"): factor * 140e-6,
        ("sum", "aten::add", "grid"): factor * 2 * 14e-6,  # the median of 11, 13, 13, 15, 23, 25, twice a call
        ("other", "aten::relu", "rest"): factor * 3e-6,
    }
    facts = found.facts()
    parts = dict.fromkeys(PARTS, 0.0) | {"localisation": factor * 140e-6, "grid": factor * 28e-6}
    parts["rest"] = factor * 3e-6
    assert facts["breakdown"] == pytest.approx(parts)
    assert found.sites_shown == 2


def test_warm_up_calls_are_in_no_node_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every call of the session leaves an event; the first ones took a second each."""
    path = tmp_path / "double.onnx"
    onnx.save(onnx.parser.parse_model(DOUBLE), path)
    usual = json.loads

    def slow(text: str) -> list[dict]:
        events = usual(text)
        nodes = [each for each in events if each["cat"] == "Node" and each["name"].endswith("_kernel_time")]
        for index, each in enumerate(nodes):
            each["dur"] = 10**6 if index < WARM_UPS else 30 + index
        return events

    monkeypatch.setattr(profiling.json, "loads", slow)
    [node] = profile_onnx(path, {"x": np.ones((3, 4), np.float32)}, [], 4, 1).nodes
    assert node.seconds == pytest.approx((30 + WARM_UPS + 1.5) * 1e-6)


DOUBLE = """<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, 4] x) => (float[batch, 4] y) { y = Mul (x, x) }"""


def asked(*messages: tuple[dict, Arrays]) -> io.BytesIO:
    """What a parent sends."""
    stream = io.BytesIO()
    for head, arrays in messages:
        serve.send(stream, head, arrays)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(("took", "made"), [(0.002, [2, 3, 5, 7]), (0.125, [2, 3, 4, 5])])
def test_a_runtime_s_child_times_one_call(took: float, made: list[int], monkeypatch: pytest.MonkeyPatch):
    """Its clock ticks a call: one that only warms the caches is in no figure."""
    clock = SimpleNamespace(now=0.0, calls=0, loaded=[])
    monkeypatch.setattr(serve, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def call(given: Arrays) -> list[np.ndarray]:
        clock.now, clock.calls = clock.now + took, clock.calls + 1
        return [np.array([clock.calls]), 2 * given["x"]]

    def load(feeds: Arrays) -> serve.Call:
        clock.now, clock.loaded = clock.now + 50, [*clock.loaded, feeds]
        return call

    one, two = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((1, 3), 7, np.float32)
    places = [({"batch": index, "place": True}, {"x": array}) for index, array in enumerate((one, two))]
    runs = [{"batch": index % 2, "place": False, "hot": hot} for index, hot in enumerate((True, False, True, True))]
    replies = io.BytesIO()
    serve.serve(load, ["y", "z"], asked(*places, *((run, {}) for run in runs)), replies)
    replies.seek(0)
    assert [serve.receive(replies) for _ in places] == [({}, {})] * 2
    assert [feeds["x"].tolist() for feeds in clock.loaded] == [one.tolist()]  # once, for the first
    found = [serve.receive(replies) for _ in runs]
    assert [head["seconds"] for head, _ in found] == [pytest.approx(took)] * 4
    assert [int(arrays["y"][0]) for _, arrays in found] == made
    assert [arrays["z"].tolist() for _, arrays in found] == [(2 * one).tolist(), (2 * two).tolist()] * 2


def test_a_runtime_s_child_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch):
    """Also where a runtime gives another number of outputs than the file has."""

    def load(feeds: Arrays) -> serve.Call:
        return lambda given: [given["x"]]

    run, place = {"batch": 0, "place": False, "hot": False}, {"batch": 0, "place": True}
    replies = io.BytesIO()
    serve.serve(load, ["y", "z"], asked((run, {}), (place, {"x": np.zeros(2, np.float32)}), (run, {})), replies)
    replies.seek(0)
    said = [serve.receive(replies) for _ in range(3)]
    assert [arrays for _, arrays in said] == [{}] * 3
    assert said[0][0] == {"failed": "AssertionError: nothing was placed\n"}
    assert said[1][0] == {}
    assert said[2][0]["failed"].startswith("ValueError: zip() argument 2 is shorter")


@pytest.mark.skipif(not shutil.which("node"), reason="there is no Node here")
def test_a_call_in_node_is_made_before_its_clock_is_read():
    """The other child has no test of its own clock: its warm call stands before the first reading, as in Python."""
    text = (Path(serve.__file__).with_name("serve.mjs")).read_text(encoding="utf-8")
    warm, started, timed = (text.index(part) for part in ("await call(placed", "const start = ", "seconds = (perf"))
    assert warm < started < timed
    done = subprocess.run(["node", "--check", Path(serve.__file__).with_name("serve.mjs")], capture_output=True)
    assert done.returncode == 0


# Verification: over all examples and all outputs.


class Warp(nn.Module):
    """Samples pictures by a given theta, and gives two figures of what it sees."""

    def __init__(self, align_grid: bool = False, align: bool = False) -> None:
        super().__init__()
        self.align_grid, self.align = align_grid, align

    def forward(self, images: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        grid = F.affine_grid(theta, images.shape, align_corners=self.align_grid)
        warped = F.grid_sample(images, grid, align_corners=self.align)
        return warped.mean((2, 3)), warped.amax((2, 3))


SHAPES = {"images": ("N", 2, 8, 10), "theta": ("N", 2, 3)}
PT2 = next(spec for spec in RUNNERS if spec.name == "pt2-cpu")


def warp(monkeypatch: pytest.MonkeyPatch, align_grid: bool = False, align: bool = False, part: int = 4) -> Reference:
    """The reference of a small sampler over twelve examples, in parts of four."""
    monkeypatch.setattr(oracle, "PART", part)
    monkeypatch.setattr(oracle, "challenges", lambda contract, examples, most: {"examples ×4": examples.take(4)})
    monkeypatch.setattr(oracle, "THETAS", {"upside down": oracle.THETAS["upside down"]})
    random = torch.Generator().manual_seed(3)
    theta = torch.tensor([[1.1, 0.2, 0.1], [-0.15, 0.8, -0.2]]) + 0.05 * torch.rand(12, 2, 3, generator=random)
    program = program_of(Warp(align_grid, align), SHAPES, ["mean", "most"])
    return reference_of(program, examples_of(12, images=(2, 8, 10), theta=theta))


def opened(known: Reference, path: Path, change: Callable[[Arrays, int], None]) -> Captured:
    """A runner of the network whose points are changed, call by call."""

    class Changed(Captured):
        calls = 0

        def points(self, feeds: Arrays) -> Arrays:
            found = {name: value.copy() for name, value in super().points(feeds).items()}
            change(found, self.calls)
            self.calls += 1
            return found

    path = path / "program.pt2"
    path.write_bytes(known.program.to_bytes({}))
    return replace(PT2, load=Changed).open(path, known.contract)


@pytest.mark.parametrize("worst_in", range(3))
def test_the_worst_grid_error_is_that_of_all_parts(worst_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = warp(monkeypatch)
    assert [len(part["mean"]) for part in known.parts] == [4, 4, 4]

    def change(found: Arrays, call: int) -> None:
        found["site0/grid"][1, 2, 3, 0] += (0.5 if call == worst_in else 0.25) / 5  # 5 pixels a unit
        found["mean"][2] += 0.1 * (call == worst_in)

    over = over_examples(opened(known, tmp_path, change), known)
    pixels = over.grid_pixels["site0"]
    assert pixels.worst == pytest.approx(0.5, abs=1e-4)
    assert pixels.mean == pytest.approx((0.5 + 2 * 0.25) / (12 * 8 * 10), abs=1e-5)
    index, error, output = over.differing[0]
    assert (index, output) == (4 * worst_in + 2, "mean")
    assert error == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("output", ["mean", "most"])
def test_a_search_measures_every_output(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half of what is allowed, in one of two outputs."""
    known, tolerance = warp(monkeypatch), TOLERANCES["fp32"]
    monkeypatch.setattr(search, "QUIET", searching(search.QUIET, max_examples=5))
    point = known.points[output]
    bound = tolerance.at(OUTPUT, point.scale)

    def change(found: Arrays, call: int) -> None:
        found[output] += 0.5 * (bound.absolute + bound.relative * np.abs(found[output]))

    found = search.search(opened(known, tmp_path, change), known, tolerance, seconds=60, examples=1)
    assert not found.failure
    assert found.excess == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("align_grid", [False, True])
@pytest.mark.parametrize("align", [False, True])
def test_no_diagnosis_names_what_is_right(align_grid: bool, align: bool, monkeypatch: pytest.MonkeyPatch):
    """Every mistake changes the point that it is named at, and says of no option what the network has."""
    known = warp(monkeypatch, align_grid, align)
    challenge = known.challenges["examples ×4"]
    said: set[str] = set()
    for name, point in known.points.items():
        true = challenge.true[name]
        for mistake, result in _mistakes(Scene(point, challenge, known.program, true)):
            said.add(mistake)
            if "images" in mistake:  # not of the site
                continue
            if (result := result()).shape == true.shape:
                assert np.abs(result - true).max() > 1e-3, f"{mistake} changes nothing at {name}"
    wrong = {f"align_corners is {not align_grid}", f"the sampler's align_corners is {not align}"}
    assert wrong == {mistake for mistake in said if "align_corners" in mistake}
    assert not said & {"the interpolation is bilinear", "the padding is zeros"}


@pytest.mark.parametrize("align", [False, True])
def test_a_wrong_align_corners_is_named_as_it_was_found(align: bool, monkeypatch: pytest.MonkeyPatch):
    known, other = warp(monkeypatch, align, align), warp(monkeypatch, align, not align)
    challenge, wrong = known.challenges["examples ×4"], other.challenges["examples ×4"]
    point = known.points["site0/warped"]
    said = diagnose(point, wrong.true["site0/warped"], challenge, known.program)
    assert said == f"the sampler's align_corners is {not align}"


# Graphs: all outputs, and bytes.

TWO = """<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, 4] x) => (float[batch, 4] first, float[batch, 4] second)
{ first = Relu (x) second = Neg (x) }"""


@pytest.mark.parametrize(("wrong", "verdict"), [("", "runs, tested here"), ("first", "runs, WRONG"), ("second",) * 2])
def test_a_runtime_that_gives_one_output_wrong_is_wrong(wrong: str, verdict: str, monkeypatch: pytest.MonkeyPatch):
    def trial(subject: portability.Subject) -> portability.Outputs:
        found = portability._reference(subject)
        return {name: value + (name == wrong) for name, value in found.items()}

    monkeypatch.setattr(portability, "RUNTIMES", (portability.Runtime("a runtime", trial=trial),))
    said, why = portability.portability(onnx.parser.parse_model(TWO))["a runtime"]
    assert said == ("runs, WRONG" if wrong else verdict)
    assert ("differs" in why) == bool(wrong)


SIZES = """<ir_version: 9, opset_import: ["" : 18]>
g (float[batch, 5] x) => (float[batch, 5] y)
<float[5] weight = {1, 2, 3, 4, 5}>
{ small = Cast <to = 2> (x) whole = Cast <to = 7> (small) back = Cast <to = 1> (whole) y = Mul (back, weight) }"""


def test_bytes_of_activations_and_weights():
    """At batch 1, by hand: five uint8, five int64, five float32 twice; the weights are five float32."""
    model = onnx.parser.parse_model(SIZES)
    assert activation_bytes(model, infer(model, {"x": (1, 5)})) == 5 * 1 + 5 * 8 + 5 * 4 + 5 * 4
    assert initialiser_bytes(model) == 5 * 4
    found = audit(model, "cpu")
    assert (found.activation_bytes, found.initialiser_bytes) == (85, 20)
