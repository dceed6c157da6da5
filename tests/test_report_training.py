"""The training part of the report, and the part that says what samplers look at."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_export import cli
from stn_export.artifacts.manifest import POINTS_FILE
from stn_export.artifacts.training import Reference
from stn_export.report import __main__ as report
from stn_export.report import figures, learned
from stn_export.report.figures_training import accuracy_curves, theta_histograms
from stn_export.report.thetas import Frame
from tests.report_files import comparison, write_points, write_training


@pytest.fixture
def grid(entered_run: Path, tmp_path: Path) -> Path:
    """``digits`` with two seeds and points, and ``beside`` with one seed."""
    for name, seeds in (("digits", 2), ("beside", 1)):
        run = Path(shutil.copytree(entered_run, tmp_path / name))
        write_training(run, comparison(seeds), caveats=(f"{name}/stn is not finished and left out.",))
        write_points(run)
    return tmp_path


def test_the_gain_is_a_table_a_figure_and_a_sentence(grid: Path, capsys: pytest.CaptureFixture[str]):
    run = grid / "digits"
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Nothing has been exported yet" in out
    assert "digits/stn is not finished" in out
    assert "Test accuracy: spatial transformer 90.00%" in out
    assert "epochs: against the plain CNN the transformer gains; against the wide CNN the transformer gains." in out
    content = json.loads((run / "report.json").read_text())
    assert [(row["label"], row["count"]) for row in content["training"]] == [
        ("spatial transformer", 2),
        ("plain CNN", 2),
        ("wide CNN", 2),
    ]
    assert [(row["label"], row["mean"]) for row in content["gains"]] == [
        ("plain CNN", pytest.approx(20)),
        ("wide CNN", pytest.approx(10)),
    ]
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert html.count("<svg") == 5
    for text in (html, markdown):
        assert "Does the transformer help?" in text
        assert "2,064,000" in text
        assert "output grid outside the image, %" in text
        assert "None" not in text
    for name in ("accuracy", "gain", "gain-differences", "warped", "theta"):
        assert (run / "figures" / f"{name}.png").exists()


def test_other_runs_stand_beside_it(grid: Path):
    assert cli.run(report.main, ["--run", str(grid / "digits"), "--beside", str(grid / "beside")]) == 0
    content = json.loads((grid / "digits" / "report.json").read_text())
    assert [row["count"] for row in content["gains"]] == [2, 2, 1, 1]
    assert content["gains"][-1]["finding"] == "one seed only: no interval"
    assert [one["theta"] for one in content["learned"]] == ["theta", "theta-2"]
    assert [one["title"] for one in content["learned"]] == [
        f"{name}: spatial transformer" for name in ("digits", "beside")
    ]
    markdown = (grid / "digits" / "report.md").read_text()
    assert "| one seed only: no interval |" in markdown
    for line in markdown.splitlines():
        if line.startswith("!["):
            assert (grid / "digits" / line.split("](")[1].rstrip(")")).exists()


def test_a_run_beside_it_that_is_not_there(grid: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(report.main, ["--run", str(grid / "digits"), "--beside", str(grid / "none")]) == 2
    assert "there is no run at" in capsys.readouterr().err


def test_a_network_that_nobody_trained_here_has_no_training_section(
    entered_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(entered_run, tmp_path / "run"))
    assert cli.run(report.main, ["--run", str(run)]) == 0
    assert "rain" not in capsys.readouterr().out
    html = (run / "report.html").read_text()
    assert "<h2>Training</h2>" not in html
    assert "What the samplers look at" not in html


def test_one_seed_has_a_gain_but_no_spread_to_draw(grid: Path):
    content = report.collect(grid / "beside")
    assert len(content.gains) == 2
    assert "gain" not in content.figures


def test_what_a_transformer_looks_at_is_told_in_pixels_of_its_image(grid: Path):
    [one] = report.collect(grid / "digits").learned
    assert (one["title"], one["site"], one["examples"]) == ("spatial transformer", "site0", 50)
    kept = torch.load(grid / "digits" / POINTS_FILE)["networks"]["stn"]["sites"]["site0"]
    assert one["parts"]["shift_x"]["mean"] == pytest.approx(16 * kept["theta"][:, 0, 2].mean().item(), rel=1e-5)
    assert one["parts"]["outside"]["mean"] == pytest.approx(100 * kept["outside"].mean().item(), rel=1e-5)


def test_a_site_without_theta_has_pictures_and_what_lies_outside(grid: Path):
    site = {"outside": torch.tensor([0.25, 0.75]), "image_size": [24, 94], "align_corners": True}
    write_points(grid / "digits", sites={"site0": site})
    content = report.collect(grid / "digits")
    [one] = content.learned
    assert one["parts"].keys() == {"outside"}
    assert one["parts"]["outside"]["mean"] == 50
    assert "theta" not in one
    assert {"warped", "theta"} & set(content.figures) == {"warped"}


def test_four_sites_are_drawn_and_the_others_named(grid: Path):
    site = {
        "outside": torch.tensor([0.25]),
        "image_size": [24, 94],
        "align_corners": True,
        "theta": torch.eye(2, 3)[None],
    }
    write_points(grid / "digits", sites={f"site{index}": site for index in range(6)}, pictures={"warped": {}})
    content = report.collect(grid / "digits")
    assert [one["site"] for one in content.learned] == ["site0", "site1", "site2", "site3"]
    assert content.unshown == ["spatial transformer: site4, site5"]
    report.write_report(content, grid / "digits")
    for name in ("report.html", "report.md"):
        assert "Not drawn: spatial transformer: site4, site5." in (grid / "digits" / name).read_text()


def test_points_of_another_program_are_not_shown(grid: Path):
    write_points(grid / "digits", program="another")
    content = report.collect(grid / "digits")
    assert content.learned == []
    assert "The points of digits/stn are of another program. Run 'make verify'." in content.warnings


def test_a_foreign_points_file(grid: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"schema": "other"}, grid / "digits" / POINTS_FILE)
    assert cli.run(report.main, ["--run", str(grid / "digits")]) == 2
    assert "is not of schema stn_export/points/1" in capsys.readouterr().err


def test_maps_that_flatten_the_image_do_not_stop_the_report(grid: Path):
    theta = torch.eye(2, 3).repeat(3, 1, 1)
    theta[1] = 0
    site = {"outside": torch.zeros(3), "image_size": [32, 32], "align_corners": False}
    write_points(grid / "digits", sites={"site0": site | {"theta": theta}, "site1": site | {"theta": 0 * theta}})
    some, none = report.collect(grid / "digits").learned
    assert some["parts"]["shear"]["mean"] == 0  # of those that have one
    assert "shear" not in none["parts"]


def test_curves_have_a_band_where_there_are_seeds(grid: Path):
    content = report.collect(grid / "digits", [grid / "beside"])
    [several], [single] = (content.figures[name].axes for name in ("accuracy", "accuracy-2"))
    assert (len(several.lines), len(several.collections)) == (3, 3)
    assert (len(single.lines), len(single.collections)) == (3, 0)
    [label, *_] = [text.get_text() for text in several.get_legend().get_texts()]
    assert label == "spatial transformer, 2 seeds: mean, worst to best"


def test_the_published_run_lies_below_the_curves():
    figure = accuracy_curves([comparison(1, reference=Reference([0.4, 0.5, 0.6], None))])
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "reference run"
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx([40, 50, 60])


def test_a_transformer_that_never_moved_can_be_drawn():
    parts = {name: np.full(9, 1.0) for name in learned.LABELS}
    figure = theta_histograms(parts, np.zeros((9, 4, 2)), Frame(24, 94))
    assert len(figure.axes[0].patches) == 40
    assert figure.axes[5].get_xlim() == (-1, 95)
    assert figure.axes[5].get_ylim() == (25, -1)
    assert figures.to_svg(figure, "theta").count("<svg") == 1
