"""How long training takes: an epoch of our loop against the tutorial's, and on CUDA what capturing it brings.

python -m pytest benchmarks/tools --confcutdir benchmarks/tools --dataset digits --benchmark-json bench-train.json
python -m benchmarks.tools.keep_training_speed bench-train.json
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.tools.training_speed import RECIPE, Loop, StartUp, race
from benchmarks.tools.tutorial import WORKERS, Tutorial
from stn_export.bench.session import refusing
from stn_export.run.environment import resolve_device
from stn_export.train.data import Dataset, load_dataset

MODELS = ("stn", "cnn")
SEEDS = 8
STARTS = 3

# The tutorial's loader is taken as it is: its workers are forked beside threads, and may be more than the cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes"),
]

CONTESTS_ON_CUDA = {
    "captured against plain, stn": (Loop("stn", captured=True), Loop("stn", captured=False)),
    "captured against plain, cnn": (Loop("cnn", captured=True), Loop("cnn", captured=False)),
    "TF32 against float32, stn": (Loop("stn", True, "tf32"), Loop("stn", True)),
    "bfloat16 against float32, stn": (Loop("stn", True, "bf16"), Loop("stn", True)),
    f"one seed against {SEEDS} at once, stn": (Loop("stn", True), Loop("stn", True, seeds=SEEDS)),
}


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where training runs."""
    with refusing():
        return resolve_device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def dataset(pytestconfig: pytest.Config, device: torch.device) -> Dataset:
    """What is trained on, in place on the device."""
    with refusing():
        return load_dataset(pytestconfig.getoption("--dataset"), pytestconfig.getoption("--data")).to(device)


@pytest.fixture
def pairs(pytestconfig: pytest.Config) -> int:
    """How many epochs of either loop take turns."""
    return pytestconfig.getoption("--pairs")


@pytest.fixture
def on_cuda(device: torch.device) -> None:
    """Skip elsewhere."""
    if device.type != "cuda":
        pytest.skip("a row of CUDA's only: make bench-train DEVICE=cuda")


@pytest.fixture
def row(benchmark: BenchmarkFixture, dataset: Dataset, device: torch.device) -> BenchmarkFixture:
    """The benchmark, saying of itself where and on what it ran."""
    benchmark.extra_info.update(
        device=device.type,
        threads=torch.get_num_threads(),
        dataset=dataset.name,
        images=len(dataset.train),
        batch=RECIPE.batch_size,
        workers=WORKERS,
    )
    return benchmark


@pytest.fixture
def start_up(pytestconfig: pytest.Config, device: torch.device, tmp_path: Path) -> Iterator[StartUp]:
    """The stage as ``make train`` starts it."""
    starts = StartUp(pytestconfig.getoption("--dataset"), pytestconfig.getoption("--data"), device, tmp_path)
    yield starts
    starts.end()


@pytest.mark.parametrize("model", MODELS)
def test_epoch(row: BenchmarkFixture, model: str, dataset: Dataset, device: torch.device, pairs: int) -> None:
    """An epoch and its test pass: our loop, as ``make train`` runs it, against the tutorial's."""
    row.group = row.extra_info["what"] = f"our loop against the tutorial's, {model}"
    ours = Loop(model, captured=device.type == "cuda").epoch(dataset, device)
    row.extra_info.update(race(row, ours, Tutorial(model, dataset, device), pairs))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("contest", CONTESTS_ON_CUDA)
def test_loop(row: BenchmarkFixture, contest: str, dataset: Dataset, device: torch.device, pairs: int) -> None:
    """An epoch of one of our loops against another of them."""
    row.group = row.extra_info["what"] = contest
    ours, baseline = (loop.epoch(dataset, device) for loop in CONTESTS_ON_CUDA[contest])
    row.extra_info.update(race(row, ours, baseline, pairs))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("model", MODELS)
def test_whole_training(row: BenchmarkFixture, model: str, dataset: Dataset, device: torch.device) -> None:
    """All epochs of the reference recipe with their tests, the capture included."""
    row.group = row.extra_info["what"] = f"recipe {RECIPE.name}, {RECIPE.epochs} epochs, {model}"
    Loop(model, captured=True).epoch(dataset, device)()  # CUDA and its libraries are loaded
    row.pedantic(Loop(model, captured=True).train, (dataset, device), rounds=1)
    row.extra_info["seconds"] = list(row.stats.stats.data)


def test_first_step(row: BenchmarkFixture, start_up: StartUp) -> None:
    """From a fresh process to its first step, the data set's cache being warm."""
    row.group = row.extra_info["what"] = "from the start of training's process to its first step"
    row.pedantic(start_up.until_first_step, setup=start_up.end, rounds=STARTS, warmup_rounds=1)
    row.extra_info["seconds"] = list(row.stats.stats.data)
