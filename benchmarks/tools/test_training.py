"""Time training: an epoch of our loop against the tutorial's, and on CUDA the gain of capturing it.

python -m pytest benchmarks/tools --confcutdir benchmarks/tools --dataset digits --benchmark-json bench-train.json
python -m benchmarks.tools.training_speed bench-train.json
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

# The tutorial's loader is unchanged: it forks workers beside threads, possibly more than there are cores.
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
    """Return the device that training runs on."""
    with refusing():
        return resolve_device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def dataset(pytestconfig: pytest.Config, device: torch.device) -> Dataset:
    """Return the data set to train on, on the device."""
    with refusing():
        return load_dataset(pytestconfig.getoption("--dataset"), pytestconfig.getoption("--data")).to(device)


@pytest.fixture
def pairs(pytestconfig: pytest.Config) -> int:
    """Return how many epochs of each loop are timed alternately."""
    return pytestconfig.getoption("--pairs")


@pytest.fixture
def on_cuda(device: torch.device) -> None:
    """Skip a test on other devices than CUDA."""
    if device.type != "cuda":
        pytest.skip("a row of CUDA's only: make bench-train DEVICE=cuda")


@pytest.fixture
def row(benchmark: BenchmarkFixture, dataset: Dataset, device: torch.device) -> BenchmarkFixture:
    """Return the benchmark with facts about device and data set."""
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
    """Yield the stage as ``make train`` starts it."""
    starts = StartUp(pytestconfig.getoption("--dataset"), pytestconfig.getoption("--data"), device, tmp_path)
    yield starts
    starts.end()


@pytest.mark.parametrize("model", MODELS)
def test_epoch(row: BenchmarkFixture, model: str, dataset: Dataset, device: torch.device, pairs: int) -> None:
    """Compare an epoch and its test pass: our loop, as ``make train`` runs it, with the tutorial's."""
    row.group = row.extra_info["what"] = f"our loop against the tutorial's, {model}"
    ours = Loop(model, captured=device.type == "cuda").epoch(dataset, device)
    row.extra_info.update(race(row, ours, Tutorial(model, dataset, device), pairs))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("contest", CONTESTS_ON_CUDA)
def test_loop(row: BenchmarkFixture, contest: str, dataset: Dataset, device: torch.device, pairs: int) -> None:
    """Compare an epoch of one of our loops with another of them."""
    row.group = row.extra_info["what"] = contest
    ours, baseline = (loop.epoch(dataset, device) for loop in CONTESTS_ON_CUDA[contest])
    row.extra_info.update(race(row, ours, baseline, pairs))


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("model", MODELS)
def test_whole_training(row: BenchmarkFixture, model: str, dataset: Dataset, device: torch.device) -> None:
    """Time all epochs of the reference recipe with their tests, including the capture."""
    row.group = row.extra_info["what"] = f"recipe {RECIPE.name}, {RECIPE.epochs} epochs, {model}"
    Loop(model, captured=True).epoch(dataset, device)()  # loads CUDA and its libraries
    row.pedantic(Loop(model, captured=True).train, (dataset, device), rounds=1)
    row.extra_info["seconds"] = list(row.stats.stats.data)


def test_first_step(row: BenchmarkFixture, start_up: StartUp) -> None:
    """Time a fresh process until its first step, with the data set cached."""
    row.group = row.extra_info["what"] = "from the start of training's process to its first step"
    row.pedantic(start_up.until_first_step, setup=start_up.end, rounds=STARTS, warmup_rounds=1)
    row.extra_info["seconds"] = list(row.stats.stats.data)
