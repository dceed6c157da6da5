"""The stage: grids, interruptions, torchrun, and what it says."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.errors import CheckFailedError, UserError
from stn_export.run.manifest import CHECKPOINT, PROGRAM, TRAINING_FILE, NetworkDirectory, network_directories
from stn_export.run.schemas import read_trainings
from stn_export.run.store import read_json
from stn_export.train import __main__ as train
from stn_export.train.__main__ import train_cells
from stn_export.train.data import Dataset, seen_in_training
from stn_export.train.handover import CONTRACT, captured, examples_of, load_checkpoint
from stn_export.train.sweep import Cell, Interrupts, recipe_for
from stn_export.train.trainer import Settings, Trainer, evaluate
from tests.conftest import REPOSITORY
from tests.runs import lively

CPU = torch.device("cpu")


def finish(settings: Settings, dataset: Dataset, path: Path, interrupts: Interrupts | None = None) -> bytes:
    """Train to the end in ``path`` and return the checkpoint's bytes."""
    directory = NetworkDirectory(path / settings.model)
    train_cells([Cell(settings, directory, path)], dataset, CPU, interrupts or Interrupts())
    return (directory.path / "checkpoint.pt").read_bytes()


@pytest.fixture
def entering_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end with their checkpoint: capturing the network takes a second, and is tried by itself."""
    monkeypatch.setattr(train, "enter_trained", lambda *_: None)


def interrupt_at(step: int, interrupts: Interrupts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Request the end within the step of this number, counted from 1 over all epochs."""
    whole, calls = Trainer.step, iter(range(1, 10_000))

    def interrupted(self: Trainer, chosen: torch.Tensor) -> torch.Tensor:
        interrupts.requested = next(calls) == step
        return whole(self, chosen)

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.usefixtures("entering_nothing")
def test_two_runs_of_one_seed_give_the_same_bytes(settings: Settings, small: Dataset, tmp_path: Path):
    first = finish(settings, small, tmp_path / "a")
    assert first == finish(settings, small, tmp_path / "b")
    assert first != finish(replace(settings, seed=2), small, tmp_path / "c")


@pytest.mark.parametrize(
    ("model", "step", "kept"),
    [
        ("stn", 1, "step 1 of 9 of epoch 1 is kept"),
        ("stn", 16, "step 7 of 9 of epoch 2 is kept"),
        ("cnn", 18, "epoch 2 of 3 is kept"),
        ("cnn-matched", 26, "step 8 of 9 of epoch 3 is kept"),
    ],
)
@pytest.mark.usefixtures("entering_nothing")
def test_going_on_gives_the_bytes_of_an_uninterrupted_run(
    model: str,
    step: int,
    kept: str,
    settings: Settings,
    small: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = replace(settings.recipe, flip=True, crop=2)  # all that draws random numbers
    settings = replace(settings, model=model, recipe=recipe, validation=64, keep="best")
    uninterrupted = finish(settings, small, tmp_path / "a")
    with monkeypatch.context() as patch:
        interrupts = Interrupts()
        interrupt_at(step, interrupts, patch)
        with pytest.raises(KeyboardInterrupt, match=f"{kept}; run again to go on"):
            finish(settings, small, tmp_path / "b", interrupts)
    directory = tmp_path / "b" / model
    assert sorted(path.name for path in directory.iterdir()) == ["history.jsonl", "training.pt"]
    assert finish(settings, small, tmp_path / "b") == uninterrupted
    assert not (directory / "training.pt").exists()
    assert len((directory / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def dying_training(moment: int, settings: Settings, small: Dataset, run: Path) -> None:
    """Train in a process that kills itself at so many moments from its start.

    Moments are the beginning of every step, and whatever puts a file in its place, takes it away or flushes it to disk.
    """
    torch.set_num_threads(1)
    train.enter_trained = lambda *_: None  # which takes seconds, and is tried by itself
    left = iter(range(moment - 1, -1, -1))

    def dying(do: Callable) -> Callable:
        def counted(*arguments: object) -> object:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return do(*arguments)

        return counted

    for place, name in ((Trainer, "step"), (os, "fsync"), (Path, "replace"), (Path, "rename")):
        setattr(place, name, dying(getattr(place, name)))
    unlink = dying(Path.unlink)
    Path.unlink = lambda path, missing_ok=False: unlink(path, missing_ok)
    if not Cell(settings, NetworkDirectory(run / settings.model), run).up_to_date:
        finish(settings, small, run)


def killed_at(moment: int, settings: Settings, small: Dataset, run: Path) -> bool:
    """Whether ``dying_training`` came so far; a fork server's children have none of this process's threads."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    child = server.Process(target=dying_training, args=(moment, settings, small, run))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), "training failed, it was not killed"
    return child.exitcode != 0


@pytest.mark.usefixtures("entering_nothing")
def test_kills_at_every_step_and_every_write_lose_no_file_and_change_no_byte(
    settings: Settings, small: Dataset, tmp_path: Path
):
    epochs, before = 5, torch.get_num_threads()
    settings = replace(settings, recipe=replace(settings.recipe, epochs=epochs))
    cell = Cell(settings, NetworkDirectory(tmp_path / "b" / settings.model), tmp_path / "b")
    torch.set_num_threads(1)  # as in the processes that die
    uninterrupted = finish(settings, small, tmp_path / "a")
    torch.set_num_threads(before)
    complete, kills, moment = [0], 0, 1
    while killed_at(moment, settings, small, cell.run):
        kills += 1
        history = cell.directory.path / "history.jsonl"
        rows = history.read_text(encoding="utf-8").splitlines() if history.exists() else []
        assert [json.loads(row)["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) >= complete[-1], "an epoch that was complete is lost"
        moment = 1 if complete[-1] < len(rows) == epochs else moment + 1  # then all writes behind the last epoch
        complete.append(len(rows))
    assert set(complete) == set(range(epochs + 1))  # kills lie within the first epoch, between epochs, behind the last
    assert kills >= 15
    assert cell.up_to_date
    assert (cell.directory.path / "checkpoint.pt").read_bytes() == uninterrupted


def test_a_diverging_run_names_the_step_the_rate_and_what_is_kept(settings: Settings, small: Dataset, tmp_path: Path):
    wild = replace(settings, recipe=replace(settings.recipe, optimizer="sgd", one_cycle=False, learning_rate=1e6))
    with pytest.raises(CheckFailedError, match=r"stn \(seed 1\) diverged in epoch 1 at step \d+ of 10 .*rate 1e\+06"):
        finish(wild, small, tmp_path)
    assert not (tmp_path / "stn" / "checkpoint.pt").exists()


@pytest.mark.usefixtures("entering_nothing")
def test_the_best_epoch_is_kept_where_that_is_asked_for(settings: Settings, small: Dataset, tmp_path: Path):
    settings = replace(settings, recipe=replace(settings.recipe, epochs=6), validation=200, keep="best")
    finish(settings, small, tmp_path)
    directory = NetworkDirectory(tmp_path / "stn")
    rows = [json.loads(line) for line in (directory.path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    best = max(rows, key=lambda row: row["validation_accuracy"])
    model = load_checkpoint(directory.path / "checkpoint.pt").model
    trainer = Trainer(settings, small, CPU)
    assert (len(trainer.train), len(trainer.held_out)) == (440, 200)
    assert evaluate(model, trainer.held_out)[1] == best["validation_accuracy"]


@pytest.fixture
def on_small(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the stage on ``small``, on the CPU."""
    monkeypatch.setattr(train, "load_dataset", lambda name, data: small)
    return lambda run, *arguments: cli.run(train.main, ["--device", "cpu", "--run", str(run), *arguments])


def test_a_grid_puts_further_seeds_beside_the_first(
    on_small: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--models", "stn,cnn-matched", "--seed", "4", "--seeds", "2", "--epochs", "1"]
    assert on_small(tmp_path, *arguments) == 0
    out = capsys.readouterr().out
    assert "cnn-matched: seeds 4, 5\n" in out
    assert "Test accuracy: the last epoch" in out
    assert "2,088,076" in out
    assert "2,064,000" in out
    seeds = {path.parent.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("checkpoint.pt")}
    assert sorted(seeds) == ["cnn-matched", "seed-5/cnn-matched", "seed-5/stn", "stn"]
    assert load_checkpoint(seeds["seed-5/stn"]).meta["settings"]["seed"] == 5
    [one] = read_trainings(tmp_path).runs
    assert {name: sorted(those.seeds) for name, those in one.models.items()} == {
        "stn": ["4", "5"],
        "cnn-matched": ["4", "5"],
    }
    roles = [(each.name, each.facts.role) for each in network_directories(tmp_path / "seed-5")]
    assert roles == [("stn", "subject"), ("cnn-matched", "other")]
    assert {path.name for path in tmp_path.rglob("examples.pt")} == {"examples.pt"}
    assert NetworkDirectory(tmp_path / "seed-5" / "stn").facts.examples["file"] == "../../examples.pt"
    assert on_small(tmp_path, *arguments) == 0
    assert capsys.readouterr().out.count("up to date") == 4


@pytest.fixture(scope="module")
def trained(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``stn`` and ``cnn`` after two epochs on ``small``. Shared: copy it."""
    run = tmp_path_factory.mktemp("trained") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "load_dataset", lambda name, data: small)
        assert cli.run(train.main, ["--epochs", "2", "--device", "cpu", "--run", str(run)]) == 0
    return run


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "digits"))


@pytest.fixture
def own_stn(own: Path) -> NetworkDirectory:
    return NetworkDirectory(own / "stn")


def test_the_trained_network_is_a_program_that_computes_the_same(own_stn: NetworkDirectory, small: Dataset):
    model, program = load_checkpoint(own_stn.path / "checkpoint.pt").model, own_stn.program()
    [images] = program.values(own_stn.examples().take(20))
    with torch.inference_mode():
        assert torch.equal(program.run([images])["log_probs"], model(images))
        own_model = program.own_module()
        assert torch.equal(own_model(images), model(images))
        assert torch.equal(program.points([images])["site0/theta"], model.transformer.theta(images))
    assert own_stn.listed(PROGRAM).parent_sha256 == own_stn.listed(CHECKPOINT).sha256
    assert own_stn.listed(PROGRAM).contract == CONTRACT


def test_the_run_says_what_it_is_and_what_it_is_tried_on(own: Path, small: Dataset):
    stn, cnn = network_directories(own)
    assert (stn.facts.label, stn.facts.role) == ("spatial transformer", "subject")
    assert (cnn.facts.label, cnn.facts.role, cnn.facts.note) == ("plain CNN", "plain", "the same classifier alone")
    assert (stn.facts.classes, stn.facts.parameters) == (tuple("0123456789"), 39_884)
    assert stn.facts.examples["file"] == "../examples.pt"
    assert "drawn from the fonts" in stn.facts.examples["source"]
    examples = cnn.examples()
    assert torch.equal(examples.inputs["images"], small.test.images)
    assert torch.equal(examples.labels, small.test.labels)
    assert torch.equal(examples.calibration["images"], small.train.images[:512])
    assert torch.equal(examples.calibration_labels, small.train.labels[:512])
    assert (examples.classes, examples.source) == (stn.facts.classes, stn.facts.examples["source"])
    assert (own / "examples.pt").stat().st_size < 3072 * (200 + 512) * 1.1  # not all that they were cut from


def test_int8_is_calibrated_on_what_training_sees(small: Dataset):
    affine = replace(small, name="cifar10-affine")
    found = examples_of(affine)
    assert torch.equal(found.calibration["images"], seen_in_training(affine, 512))
    assert not torch.equal(found.calibration["images"], small.train.images[:512])
    assert found.classes[0] == "airplane"


def test_what_was_captured_has_the_contract_that_training_states():
    program = captured(lively("cnn-matched"), "cnn-matched")
    for stated, value in zip(CONTRACT.outputs, program.run(torch.zeros(1, 5, 3, 32, 32)).values(), strict=True):
        assert stated.fits(tuple(value.shape))
        assert stated.dtype == "float32"
    assert not program.sites


def remove_program(run: Path) -> None:
    (run / "stn" / "program.pt2").unlink()


def spoil_program(run: Path) -> None:
    (run / "stn" / "program.pt2").write_bytes(b"edited")


def forget_program(run: Path) -> None:
    NetworkDirectory(run / "stn").forget(PROGRAM)


def remove_examples(run: Path) -> None:
    (run / "examples.pt").unlink()


def spoil_examples(run: Path) -> None:
    (run / "examples.pt").write_bytes(b"edited")


def remove_results(run: Path) -> None:
    (run / TRAINING_FILE).unlink()


def test_a_manifest_of_another_version_is_refused(
    own: Path, on_small: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    path = own / "stn" / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"schema": "stn_export/manifest/1"}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert on_small(own, "--epochs", "2") == 2
    assert f"{path} is not of schema stn_export/manifest/2\nhint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil",
    [remove_program, spoil_program, forget_program, remove_examples, spoil_examples, remove_results],
    ids=lambda function: function.__name__,
)
def test_what_is_missing_is_written_without_training(
    spoil: Callable[[Path], None],
    trained: Path,
    own: Path,
    on_small: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    spoil(own)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("trained again"))
    assert on_small(own, "--epochs", "2") == 0
    assert capsys.readouterr().out.count("up to date") == 2
    for before in trained.rglob("[!.]*"):
        if before.is_file():
            assert (own / before.relative_to(trained)).read_bytes() == before.read_bytes(), before


def test_other_examples_are_told_to_every_network(own: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch):
    fewer = replace(small, test=small.test[:50])
    monkeypatch.setattr(train, "load_dataset", lambda name, data: fewer)
    assert cli.run(train.main, ["--epochs", "2", "--device", "cpu", "--run", str(own)]) == 0
    assert [len(directory.examples()) for directory in network_directories(own)] == [50, 50]


def test_a_stopped_training_is_said_to_be_unfinished(
    own: Path, on_small: Callable[..., int], monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    (own / "cnn" / "training.pt").touch()  # as where it is killed after an epoch
    monkeypatch.setattr(train, "train_cells", stopped)
    assert on_small(own, "--epochs", "2") == 130
    assert read_trainings(own).caveats == ["digits/cnn is unfinished and was left out."]


def test_the_state_is_never_ahead_of_the_history(
    settings: Settings, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A training that was killed behind its last epoch goes on from the state, and writes no history again."""
    written: list[str] = []
    monkeypatch.setattr(train, "write_atomically", lambda path, content: written.append(path.name))
    train.save(tmp_path, Trainer(settings, small, torch.device("cpu")))
    assert written == ["history.jsonl", "training.pt"]


@pytest.mark.parametrize(("settings_of_it", "left"), [("its own", False), ("others", True), ("damaged", True)])
def test_a_state_that_a_kill_left_beside_its_checkpoint_is_deleted(
    settings_of_it: str, left: bool, settings: Settings, small: Dataset, tmp_path: Path
):
    cell = Cell(settings, NetworkDirectory(tmp_path / settings.model), tmp_path)
    cell.directory.path.mkdir()
    further = replace(settings, recipe=replace(settings.recipe, epochs=9))
    trainer = Trainer(settings if settings_of_it == "its own" else further, small, torch.device("cpu"))
    train.save(cell.directory.path, trainer)
    if settings_of_it == "damaged":
        (cell.directory.path / "training.pt").write_bytes(b"no archive")
    train.delete_states([cell])
    assert (cell.directory.path / "training.pt").exists() is left


@pytest.mark.slow
def test_sigterm_finishes_the_step_saves_and_exits_with_130(tmp_path: Path):
    command = [sys.executable, "-m", "stn_export.train", "--device", "cpu", "--models", "cnn", "--run", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    while " epoch " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "is kept; run again to go on" in err
    assert "Traceback" not in err
    assert (tmp_path / "cnn" / "training.pt").exists()


@pytest.mark.slow
def test_torchrun_shares_the_grid_and_changes_no_byte(tmp_path: Path):
    arguments = ["--device", "cpu", "--models", "stn,cnn", "--epochs", "1", "--seeds", "2", "--run"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    for start, path in ((torchrun, tmp_path / "two"), (["-m"], tmp_path / "one")):
        command = [sys.executable, *start, "stn_export.train", *arguments, str(path)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    found = {path.relative_to(tmp_path / "two"): path for path in (tmp_path / "two").rglob("checkpoint.pt")}
    assert len(found) == 4
    for name, path in found.items():
        assert path.read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_training_again_does_nothing_and_says_so(
    own: Path, on_small: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in own.rglob("[!.]*")}
    assert on_small(own, "--epochs", "2") == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert {path: path.stat().st_mtime_ns for path in own.rglob("[!.]*")} == before


def test_other_epochs_train_again_and_make_the_exports_stale(
    own: Path, own_stn: NetworkDirectory, on_small: Callable[..., int]
):
    before = own_stn.listed(CHECKPOINT).sha256, own_stn.listed(PROGRAM).sha256
    export = replace(own_stn.listed(PROGRAM), name="an export", parent_sha256=before[1])
    own_stn.add(export)
    assert on_small(own, "--epochs", "1") == 0
    assert own_stn.listed(CHECKPOINT).sha256 != before[0]
    assert own_stn.program()
    with pytest.raises(UserError, match="stale"):
        own_stn.open(replace(export, sha256=own_stn.listed(PROGRAM).sha256))


def test_the_manifest_and_the_history_say_how_it_went(own_stn: NetworkDirectory):
    checkpoint = own_stn.listed(CHECKPOINT)
    assert checkpoint.settings["recipe"]["epochs"] == 2
    assert checkpoint.details["device"] == "cpu"
    assert checkpoint.environment["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = [json.loads(line) for line in (own_stn.path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    assert read_json(own_stn.path / "manifest.json", "stn_export/manifest/2")


def test_recipes_follow_the_data_set():
    assert recipe_for("cifar10", None, None).name == "reference"
    assert recipe_for("digits", None, None).name == "quick"
    assert recipe_for("digits", "reference", 7).epochs == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist"], "unknown data set 'mnist'"),
        (["--recipe", "magic"], "unknown recipe 'magic'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--epochs", "0"], "EPOCHS=0 trains nothing"),
        (["--epochs", "many"], "argument --epochs: 'many' is no whole number"),
        (["--nonsense"], "unrecognized arguments"),
        (["--models", "resnet"], "unknown model 'resnet'"),
        (["--seeds", "0"], "argument --seeds: 0 is less than 1"),
        (["--keep", "best"], "--keep best needs held-out images"),
        (["--validation", "10000"], "10000 images cannot be held out of 10000"),
        (["--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_nonsense_is_one_line_and_a_hint(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run(train.main, arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "hint:" in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert cli.run(train.main, ["--device", "cuda"]) == 2
    assert "PyTorch sees no GPU" in capsys.readouterr().err
