import json
import re
from pathlib import Path

import numpy as np
import pytest

from stn_export import cli
from stn_export.artifacts.manifest import NetworkDirectory
from stn_export.config import DATASETS, DEFAULT_MODELS, MODELS
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.export import modelcard
from stn_export.export.modelcard import DATA_NOTES, MODEL_NOTES, contract_text, write_model_card
from stn_export.train.checkpoint import load_checkpoint
from stn_export.train.data import Dataset, example_images, normalise
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def card(trained_run: Path) -> str:
    """What the export stage wrote at its end."""
    return (trained_run / "MODEL_CARD.md").read_text()


def test_every_artifact_is_listed(card: str, trained_run: Path):
    for model in DEFAULT_MODELS:
        directory = NetworkDirectory(trained_run / model)
        for artifact in directory.artifacts.values():
            size = (directory.path / artifact.file).stat().st_size
            [row] = (line for line in card.splitlines() if f"`{model}/{artifact.file}`" in line)
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert cells[1] == artifact.format
            assert cells[3:5] == [artifact.precision, str(artifact.opset or "–")]
            assert cells[6:] == [f"{size:,}", f"`{artifact.sha256[:12]}`"]


def test_accuracy_is_that_of_the_checkpoints(card: str, trained_run: Path):
    for model in DEFAULT_MODELS:
        history = [json.loads(line) for line in (trained_run / model / "history.jsonl").read_text().splitlines()]
        assert f"| {model} | {100 * history[-1]['test_accuracy']:.2f} % |" in card


def test_what_a_reader_needs_is_there(card: str):
    for words in ("39,884", "31,340", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9", "| quick | adamw | 0.003 |", "Apache-2.0"):
        assert words in card
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    expected = ["Intended use", "Classes", "Training", "Test accuracy", "Limits", "Files", "Loading one", "Licence"]
    assert headings == expected


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


def test_the_snippet_runs(card: str, run: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch):
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code.splitlines()) == 3
    monkeypatch.chdir(run)
    images = example_images(digits, 4)
    names = {"images": normalise(images).numpy()}
    exec(code, names)
    expected = load_checkpoint(run / "stn" / "checkpoint.pt").model(normalise(images))
    np.testing.assert_allclose(names["log_probs"], expected.numpy(), atol=1e-5, rtol=0)


def test_it_is_rewritten_only_when_it_changes(run: Path, capsys: pytest.CaptureFixture[str]):
    path = run / "MODEL_CARD.md"
    before = path.read_text(), path.stat().st_mtime_ns
    assert not write_model_card(run)
    assert (path.read_text(), path.stat().st_mtime_ns) == before
    path.write_text("edited")
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert "MODEL_CARD.md" in capsys.readouterr().out
    assert path.read_text() == before[0]


def test_a_run_of_one_model(run: Path):
    (run / "stn" / "manifest.json").unlink()
    assert write_model_card(run)
    card = (run / "MODEL_CARD.md").read_text()
    assert "`stn/" not in card
    assert 'InferenceSession("cnn/plain-fp32.onnx"' in card


def test_an_entry_that_the_matrix_no_longer_has_is_dropped_by_export(run: Path, stn: NetworkDirectory):
    manifest = stn.path / "manifest.json"
    content = json.loads(manifest.read_text())
    content["artifacts"]["old"] = content["artifacts"]["matmul-fp32"] | {"name": "old", "parent_sha256": "0" * 64}
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="stale"):
        write_model_card(run)
    assert cli.run(export.main, ["--run", str(run)]) == 0
    assert "old" not in stn.artifacts
    assert not write_model_card(run)


def test_every_model_and_data_set_has_its_words():
    assert set(DATA_NOTES) == set(DATASETS)
    assert set(MODEL_NOTES) == set(MODELS)


@pytest.mark.parametrize(
    ("contract", "text"),
    [
        (
            {"shape": ["N", 3, 32, 32], "dtype": "float32", "mean": 0.5, "std": 0.5},
            "N×3×32×32 float32, (x / 255 - 0.5) / 0.5",
        ),
        ({"shape": ["N", 32, 32, 3], "dtype": "uint8"}, "N×32×32×3 uint8, bytes as they are"),
    ],
)
def test_a_contract_in_words(contract: dict, text: str):
    assert contract_text(contract) == text


def test_the_template_is_installed_with_the_package():
    assert (REPOSITORY / "stn_export" / "resources" / modelcard.TEMPLATE).exists()
