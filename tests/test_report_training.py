"""The training part of the report, and the part that says what samplers look at."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.report import charts_training, drawing, training_sections
from stn_export.report.charts_training import PANELS, Frame, accuracy_curves, theta_histograms, windows
from stn_export.run.manifest import POINTS_FILE
from stn_export.run.schemas import Reference
from tests.report_files import comparison, write_points, write_training

pytestmark = pytest.mark.usefixtures("charts_drawn_once")


@pytest.fixture
def grid(entered_run: Path, tmp_path: Path) -> Path:
    """``digits`` with two seeds and points, and ``beside`` with one seed."""
    for name, seeds in (("digits", 2), ("beside", 1)):
        run = Path(shutil.copytree(entered_run, tmp_path / name))
        write_training(run, comparison(seeds), caveats=(f"{name}/stn is unfinished and was left out.",))
        write_points(run)
    return tmp_path


def test_the_gain_is_a_table_a_figure_and_a_sentence(grid: Path, capsys: pytest.CaptureFixture[str]):
    run = grid / "digits"
    assert cli.run(report.main, ["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "Nothing has been exported yet" in out
    assert "digits/stn is unfinished" in out
    assert "spatial transformer 90.00%" in out
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert [(row["label"], row["count"]) for row in content["training"]] == [
        ("spatial transformer", 2),
        ("plain CNN", 2),
        ("wide CNN", 2),
    ]
    assert [(row["label"], row["mean"]) for row in content["gains"]] == [
        ("plain CNN", pytest.approx(20)),
        ("wide CNN", pytest.approx(10)),
    ]
    html, markdown = (run / "report.html").read_text(encoding="utf-8"), (run / "report.md").read_text(encoding="utf-8")
    assert html.partition("<script>")[0].count("<svg ") == 5  # accuracy, gain twice, theta, windows
    for text in (html, markdown):
        assert "Does the transformer help?" in text
        assert (
            "epochs: against the plain CNN the transformer gains; against the wide CNN the transformer gains." in text
        )
        assert "2,064,000" in text
        assert "output grid outside the image, %" in text
        assert "None" not in text.partition("<script>")[0]
    for name in ("accuracy", "gain", "gain-differences", "warped", "theta", "windows"):
        assert (run / "figures" / f"{name}.png").exists()


def test_other_runs_stand_beside_it(grid: Path):
    assert cli.run(report.main, ["--run", str(grid / "digits"), "--beside", str(grid / "beside")]) == 0
    content = json.loads((grid / "digits" / "report.json").read_text(encoding="utf-8"))
    assert [row["count"] for row in content["gains"]] == [2, 2, 1, 1]
    assert content["gains"][-1]["finding"] == "one seed only: no interval"
    assert [one["charts"] for one in content["learned"]] == [["theta", "windows"], ["theta-2", "windows-2"]]
    assert content["cards"].keys() == {"digits", "beside"}
    assert [one["title"] for one in content["learned"]] == [
        f"{name}: spatial transformer" for name in ("digits", "beside")
    ]
    markdown = (grid / "digits" / "report.md").read_text(encoding="utf-8")
    assert "| one seed only: no interval |" in markdown
    assert "## Side by side" in markdown
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
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "How it was trained" not in html
    assert "What was learned" not in html


def test_one_seed_has_a_gain_but_no_spread_to_draw(grid: Path):
    content = report.collect(grid / "beside")
    assert len(content.gains) == 2
    assert "gain" not in content.figures


def test_what_a_transformer_looks_at_is_told_in_pixels_of_its_image(grid: Path):
    [one] = report.collect(grid / "digits").learned
    assert (one.title, one.site, one.examples) == ("spatial transformer", "site0", 50)
    kept = torch.load(grid / "digits" / POINTS_FILE)["networks"]["stn"]["sites"]["site0"]
    assert one.parts["shift_x"].mean == pytest.approx(16 * kept["theta"][:, 0, 2].mean().item(), rel=1e-5)
    assert one.parts["outside"].mean == pytest.approx(100 * kept["outside"].mean().item(), rel=1e-5)


def test_a_site_without_theta_has_pictures_and_what_lies_outside(grid: Path):
    site = {"outside": torch.tensor([0.25, 0.75]), "image_size": [24, 94], "align_corners": True}
    write_points(grid / "digits", sites={"site0": site})
    content = report.collect(grid / "digits")
    [one] = content.learned
    assert one.parts.keys() == {"outside"}
    assert one.parts["outside"].mean == 50
    assert "charts" not in one.as_dict()
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
    assert [one.site for one in content.learned] == ["site0", "site1", "site2", "site3"]
    assert content.unshown == ["spatial transformer: site4, site5"]
    report.write_report(content, grid / "digits")
    for name in ("report.html", "report.md"):
        assert "Not drawn: spatial transformer: site4, site5." in (grid / "digits" / name).read_text(encoding="utf-8")


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
    assert some.parts["shear"].mean == 0  # of those that have one
    assert "shear" not in none.parts


@pytest.mark.draws
def test_curves_have_a_band_where_there_are_seeds(grid: Path):
    content = report.collect(grid / "digits", [grid / "beside"])
    several, single = (values_of(content.figures[name]) for name in ("accuracy", "accuracy-2"))
    spread = [(row["network"], row["low"] < row["mean"] < row["high"]) for row in several]
    assert spread == [(label, True) for label in ("spatial transformer", "plain CNN", "wide CNN") for _ in range(2)]
    assert all(row["low"] == row["mean"] == row["high"] for row in single)
    assert "spatial transformer 90.50 % after 2 epochs" in content.figures["accuracy"].text


def values_of(chart: charts_training.Chart) -> list[dict]:
    """The rows that a chart draws; it can be drawn."""
    assert drawing.to_svg(chart).count("<svg ") == 1
    return chart.spec["data"]["values"]


def test_the_published_run_lies_below_the_curves():
    rows = values_of(accuracy_curves([comparison(1, reference=Reference([0.4, 0.5, 0.6], None))]))
    assert [row["mean"] for row in rows[:3]] == pytest.approx([40, 50, 60])
    assert rows[0]["network"] == "the published run"


def test_a_transformer_that_never_moved_can_be_drawn():
    parts = {name: np.full(9, 1.0) for name in training_sections.LABELS} | {"shear": np.full(9, np.nan)}
    rows = values_of(theta_histograms(parts, "theta"))
    assert {row["part"]: row["examples"] for row in rows} == {PANELS[part]: 9 for part in parts if part != "shear"}
    corners = values_of(windows(np.zeros((9, 4, 2)), Frame(24, 94), "where"))
    assert len({row["of"] for row in corners}) == 10
    assert [(row["x"], row["y"]) for row in corners if row["frame"]] == [(0, 0), (94, 0), (94, 24), (0, 24), (0, 0)]
