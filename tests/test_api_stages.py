"""The stages in Python: a run is trained, exported, verified, timed and reported; progress reaches a notebook."""

import inspect
import io
import os
import threading
from pathlib import Path

import pytest
import rich.console

import stn_export
from stn_export import api, cli
from stn_export.cli.tables import OUTPUT
from stn_export.errors import CheckFailedError, UserError
from stn_export.run.records import Timing
from stn_export.run.store import sha256_of
from stn_export.train import __main__ as training
from tests.shapes import STROKES, draw_folder

STAGES = ("train", "export", "verify", "bench", "report")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that training was given."""
    seen: list[list[str]] = []
    monkeypatch.setattr(training, "main", seen.append)
    return seen


def test_every_stage_is_a_function_and_a_package():
    for name in STAGES:
        assert name in stn_export.__all__
        package = getattr(stn_export, name)
        assert callable(package)
        assert package.__name__ == f"stn_export.{name}"
        hints = inspect.signature(getattr(api, name))
        assert hints.return_annotation is not inspect.Signature.empty
        assert "Raises:" in inspect.getdoc(getattr(api, name))


def test_arguments_become_the_stages_own(given: list[list[str]], tmp_path: Path):
    run = stn_export.train(data=tmp_path, recipe="short", epochs=3, size=48, seeds=2, models=("stn", "cnn-matched"))
    assert run.path == Path(f"artifacts/folder-{tmp_path.name}")
    [words] = given
    options = cli.parse("train", words)
    assert (options.dataset, options.data, options.size, options.run) == ("folder", tmp_path, 48, run.path)
    assert (options.recipe, options.epochs, options.seeds, options.seed) == ("short", 3, 2, 0)
    assert (options.models, options.precision, options.device) == (("stn", "cnn-matched"), "fp32", "auto")


def test_without_data_it_is_the_digits_and_an_option_of_no_use_is_an_error(given: list[list[str]], tmp_path: Path):
    assert stn_export.train(epochs=1).path == Path("artifacts/digits")
    assert cli.parse("train", given[0]).dataset == "digits"


def test_every_option_of_a_training_has_its_parameter():
    """But those of the console alone."""
    theirs = {action.dest for action in cli.options.PARSERS["train"]()._actions}
    ours = set(inspect.signature(api.train).parameters)
    assert ours < theirs
    assert theirs - ours == {"help", "format", "brief", "wait", "validation", "keep", "tensorboard"}


def test_errors_of_users_are_raised_with_their_hint(tmp_path: Path):
    with pytest.raises(UserError, match=r"size 64 has no effect[^\n]*\nhint: "):
        stn_export.train(size=64)
    with pytest.raises(UserError, match="no run at"):
        stn_export.verify(tmp_path / "none")
    assert (OUTPUT.form, OUTPUT.brief) == ("table", False)


def test_a_missing_extra_is_an_error_of_the_users(monkeypatch: pytest.MonkeyPatch):
    def missing(_: object) -> None:
        raise ModuleNotFoundError(name="torchvision")

    monkeypatch.setattr(training, "main", missing)
    with pytest.raises(UserError, match=r"torchvision is not installed\nhint: pip install"):
        stn_export.train(epochs=1)


def test_a_benchmark_that_breaks_ends_no_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from stn_export.bench import __main__ as benching

    def exit_with(_: object) -> None:
        raise SystemExit(70)

    monkeypatch.setattr(benching, "main", exit_with)
    with pytest.raises(RuntimeError, match="exit code 70"):
        stn_export.bench(tmp_path)


class Notebook(io.TextIOBase):
    """A stream as ipykernel's: it writes into the page, and its descriptor is the server's terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.page = descriptor, io.StringIO()

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        return self.page.write(text)


@pytest.mark.parametrize("still", [False, True])
def test_progress_reaches_a_notebook(still: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stn_export.cli.progress_bar.EACH", 0.02)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    with (tmp_path / "terminal").open("wb") as terminal:
        notebook = Notebook(os.dup(terminal.fileno()))
        monkeypatch.setattr("sys.stdout", notebook)
        with cli.progress(word="bench", unit="rows", still=still) as bar:
            task = bar.add_task("bench", total=4)
            monkeypatch.setattr("sys.stdout", io.StringIO())  # as pytest captures what the work prints
            bar.update(task, advance=1)
            for _ in range(200):
                if "1 of 4 rows" in notebook.page.getvalue():
                    break
                threading.Event().wait(0.02)
        os.close(notebook.descriptor)
    assert "bench: 1 of 4 rows, about" in notebook.page.getvalue()
    assert (tmp_path / "terminal").read_bytes() == b""


def test_training_runs_outside_the_main_thread(tmp_path: Path):
    """As in a server; Python allows signal handlers in the main thread only."""
    folder = draw_folder(tmp_path / "shapes", train=4, test=2, turned=False)
    found: list[api.Run] = []
    options = {"size": 18, "epochs": 1, "models": ("cnn",), "device": "cpu", "run": tmp_path / "run"}
    thread = threading.Thread(target=lambda: found.append(stn_export.train(data=folder, **options)))
    thread.start()
    thread.join()
    [run] = found
    assert run.trainings[0].models["cnn"].label == "plain CNN"
    assert run.card[0][0] == "accuracy"
    assert "accuracy" in run._repr_html_()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    place = tmp_path_factory.mktemp("stages")
    folder = draw_folder(place / "shapes", train=20, test=6, turned=True)
    return stn_export.train(data=folder, size=26, epochs=2, device="cpu", run=place / "run")


@pytest.mark.slow
def test_a_run_on_ones_own_pictures_goes_through_every_stage(
    trained: api.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = stn_export.export(trained, only=("folded-fp32", "plain-fp32"))
    assert {(each.network, each.name) for each in files} == {("stn", "folded-fp32"), ("cnn", "plain-fp32")}
    assert all(sha256_of(trained.path / each.network / each.file) == each.sha256 for each in files)
    verified = stn_export.verify(str(trained.path))
    assert verified.passed
    assert {check.artifact for check in verified.checks} == {"folded-fp32", "plain-fp32", "program"}
    rows = stn_export.bench(trained, budget=25, suites=("latency", "overhead"), device="cpu")
    assert rows
    assert all(isinstance(row, Timing) for row in rows)
    page = stn_export.report(trained)
    text = page.read_text(encoding="utf-8")
    assert "4 classes, 80 for training and 24 for testing" in text
    assert str(trained).startswith("deploy")

    picture = next((trained.path.parent / "shapes" / "test" / "flag").iterdir())
    capsys.readouterr()
    assert cli.start(["predict", str(picture), "--artifact", str(trained.path / "stn" / files[0].file)]) == 0
    assert any(name in capsys.readouterr().out for name in STROKES)
    (trained.path / "dist").mkdir()
    from stn_export.play import __main__ as play

    for name in play.FILES:
        (trained.path / "dist" / name).write_text("", encoding="utf-8")
    arguments = ["--run", str(trained.path), "--build-only", "--runtime", str(trained.path / "dist")]
    assert cli.start(["play", *arguments, "--output", str(tmp_path / "page")]) == 0
    assert '"height": 26' in (tmp_path / "page" / "play.json").read_text(encoding="utf-8")


def test_what_differs_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def differs(_: object) -> None:
        raise CheckFailedError("1 of 2 checks", "stn/a on r: the grid is off")

    monkeypatch.setattr(api.verifying, "main", differs)
    with pytest.raises(CheckFailedError, match="the grid is off"):
        stn_export.verify(tmp_path)
