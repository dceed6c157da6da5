import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import writing
from stn_export.export.writing import contract_text, write_model_card
from stn_export.program.specs import Pixels, TensorSpec
from stn_export.run.manifest import NetworkDirectory
from stn_export.run.schemas import read_trainings
from tests.conftest import REPOSITORY

NETWORKS = ("stn", "cnn")


@pytest.fixture(scope="module")
def card(trained_run: Path) -> str:
    """What the export stage wrote at its end."""
    return (trained_run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_every_artifact_is_listed(card: str, trained_run: Path):
    for model in NETWORKS:
        directory = NetworkDirectory(trained_run / model)
        for name, artifact in directory.artifacts.items():
            if name == "checkpoint":
                continue
            size = (directory.path / artifact.file).stat().st_size
            [row] = (line for line in card.splitlines() if f"`{model}/{artifact.file}`" in line)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1] == artifact.format
            assert cells[3:5] == [artifact.precision, str(artifact.opset or "–")]
            assert cells[6:] == [f"{size:,}", f"`{artifact.sha256[:12]}`"]


def test_accuracy_is_that_of_the_trainings(card: str, trained_run: Path):
    [training] = read_trainings(trained_run).runs
    assert set(training.models) == set(NETWORKS)
    for name, model in training.models.items():
        assert f"| digits | {name} | quick | 2 | 1 | {100 * model.mean:.2f} % | – |" in card


def test_a_run_that_was_not_trained_here_has_no_accuracy(run: Path):
    (run / "training.json").unlink()
    assert write_model_card(run)
    assert "accuracy" not in (run / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_what_a_reader_needs_is_there(card: str):
    for words in ("39,884", "31,340", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "Apache-2.0"):
        assert words in card
    assert "| stn | site0 | transformer (networks.py:" in card
    assert "| stn | inputs | images | N×3×32×32 float32, (x / 255 - 0.5) / 0.5 |" in card
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    sections = ["Intended use", "Inputs and outputs", "Where they sample", "Classes", "Training and test accuracy"]
    assert headings == [*sections, "Limits", "Files", "How to call them", "Licence"]


def test_nothing_in_it_is_of_this_machine_or_day(card: str, trained_run: Path):
    assert str(Path.home()) not in card
    assert str(trained_run) not in card
    assert not re.search(r"20\d\d-\d\d-\d\d|\d\d:\d\d", card)


def test_tables_are_whole(card: str):
    for table in re.findall(r"(?:^\|.*\|\n)+", card, re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) > 2
        assert len({row.count("|") for row in rows}) == 1
    assert card.endswith(".\n")
    assert "\n\n\n" not in card


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
def test_every_format_and_kind_of_input_is_called(
    card: str, run: Path, stn: NetworkDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(run)
    titles = re.findall(r"^(\S+\.\w+), in (?:Python|C\b|C\+\+|Rust|JavaScript)", card, re.MULTILINE)
    artifacts = {f"stn/{each.file}": each for name, each in stn.artifacts.items() if name != "checkpoint"}
    kinds = {name: (each.format, each.contract.inputs[0].dtype) for name, each in artifacts.items()}
    assert {kinds[title] for title in titles if title in kinds} == set(kinds.values())
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        assert len(code.splitlines()) <= 10
        exec(code, {})
    assert "log_probs (1, 10) float32" in capsys.readouterr().out


def test_the_c_program_of_the_card_runs(card: str, run: Path, stn: NetworkDirectory, tmp_path: Path):
    if not (native := stn.artifacts.get("native-fp32")):
        pytest.skip("there is no C compiler here")
    code = next(text for text in re.findall(r"```c\n(.*?)```", card, re.DOTALL))
    (tmp_path / "main.c").write_text(code, encoding="utf-8")
    sources = [tmp_path / "main.c", stn.path / native.file, f"-I{stn.path}", "-lm", "-o", tmp_path / "main"]
    subprocess.run(["cc", "-std=gnu11", *sources], check=True)
    said = subprocess.run([tmp_path / "main"], capture_output=True, encoding="utf-8", check=True).stdout
    [found] = re.fullmatch(r"log_probs\[0\] = (\S+)\n", said).groups()
    program = stn.program()
    expected = program.run((torch.zeros(1, 3, 32, 32),))["log_probs"][0, 0]
    assert float(found) == pytest.approx(float(expected), abs=1e-4)


def test_it_is_rewritten_only_when_it_changes(run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "MODEL_CARD.md"
    before = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
    assert not write_model_card(run)
    assert (path.read_text(encoding="utf-8"), path.stat().st_mtime_ns) == before
    path.write_text("edited", encoding="utf-8")
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert "MODEL_CARD.md" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == before[0]


def test_a_run_of_one_model(run: Path):
    (run / "stn" / "manifest.json").unlink()
    assert write_model_card(run)
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "`stn/" not in card
    assert 'InferenceSession("cnn/plain-fp32.onnx"' in card


def test_an_entry_that_the_matrix_no_longer_has_is_dropped_by_export(run: Path, stn: NetworkDirectory):
    manifest = stn.path / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["artifacts"]["old"] = content["artifacts"]["matmul-fp32"] | {"name": "old", "parent_sha256": "0" * 64}
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="stale"):
        write_model_card(run)
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert "old" not in stn.artifacts
    assert not write_model_card(run)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            TensorSpec("images", "float32", ("N", 3, 32, 32), pixels=Pixels((0.5,), (0.5,))),
            "N×3×32×32 float32, (x / 255 - 0.5) / 0.5",
        ),
        (
            TensorSpec("images", "float32", ("N", 3, 9, 9), pixels=Pixels((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))),
            "N×3×9×9 float32, (x / 255 - (0.1, 0.2, 0.3)) / (1, 1, 1)",
        ),
        (TensorSpec("images", "uint8", ("N", 32, 32, 3), layout="NHWC"), "N×32×32×3 uint8, bytes as they are"),
        (TensorSpec("count", "int64", ()), "scalar int64"),
    ],
)
def test_a_contract_in_words(spec: TensorSpec, text: str):
    assert contract_text([spec]) == text


def test_the_template_is_installed_with_the_package():
    assert (REPOSITORY / "stn_export" / "resources" / writing.TEMPLATE).exists()
