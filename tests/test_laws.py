"""The laws of figures: the golden run and all kept files obey; what breaks one is said, not kept, not shown."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from benchmarks.tools import results_page
from stn_export import cli
from stn_export.bench import compare
from stn_export.errors import UserError
from stn_export.program.specs import Contract
from stn_export.results import laws
from stn_export.results.card import by_word, card
from stn_export.results.choice import Marks, program
from stn_export.results.contents import Held, held
from stn_export.run.manifest import Artifact, Facts, NetworkDirectory
from stn_export.run.schemas import Result, read_bench
from tests import golden, made_records
from tests.golden import CHECKS, CURVES
from tests.readme import KEPT, REPOSITORY

KEPT_FILES = [path for path in sorted((REPOSITORY / KEPT).glob("*.json")) if b'"benchmarks"' in path.read_bytes()]
SHAS = {name[:2]: " ".join(name[:2]) for name in CHECKS}


def test_the_golden_run_obeys():
    assert laws.broken_by_file(golden.bench_content(golden.rows())) == []
    checks = golden.checks(SHAS)
    assert list(laws.broken_by_checks(checks)) == []
    assert list(laws.broken_by_accuracies({name: CURVES[name]["0"][-1] for name in ("stn", "cnn")}, checks)) == []


@pytest.mark.parametrize("path", KEPT_FILES, ids=lambda path: path.stem)
def test_every_kept_file_obeys(path: Path):
    assert laws.broken_by_file(read_bench(path, Result)) == []


def picked(rows: list[dict], **facts: object) -> dict:
    """The first row that has these."""
    return next(row for row in rows if facts.items() <= row.items())


def test_a_median_lies_in_its_interval():
    def swapped(rows: list[dict], low: str, high: str, **facts: object) -> None:
        row = picked(rows, **facts)
        row[low], row[high] = row[high], row[low]

    for low, high, facts in (
        ("p50_low", "p50_high", {"regime": "request"}),
        ("ratio_low", "ratio_high", {"contest": "default"}),
    ):
        rows = golden.rows()
        swapped(rows, low, high, **facts)
        [found] = laws.broken_by_rows(made_records.timings(rows))
        assert (found.law, "stn/folded-fp32 in onnxruntime-cpu, batch 1" in found.figure) == (
            "a median lies in its interval",
            True,
        )


Change = Callable[[list[dict]], object]


def changed(key: str, factor: float, **facts: object) -> Change:
    def change(rows: list[dict]) -> None:
        row = picked(rows, **facts)
        row[key] = [[*node[:3], factor * node[3]] for node in row[key]] if key == "nodes" else factor * row[key]

    return change


CHANGES = {
    "percentiles rise": changed("p99", 0.5, regime="device"),
    "a rate is that of the median": changed("examples_per_second", 1.002, regime="offline"),
    "the parts of a profile add up to the call": changed("nodes", 0.99, regime="breakdown"),
    "a ratio is that of its two times": changed("seconds", 1.5, contest="default"),
}


@pytest.mark.parametrize("law", CHANGES)
def test_a_row_that_breaks_a_law_is_named(law: str):
    rows = golden.rows()
    CHANGES[law](rows)
    assert [found.law for found in laws.broken_by_rows(made_records.timings(rows))] == [law]


def test_parts_add_up_to_the_call_whose_nodes_nobody_kept():
    content = golden.bench_content(golden.rows())
    row = next(row for row in content["benchmarks"] if "breakdown" in row["extra_info"])
    row["extra_info"].pop("nodes")
    assert laws.broken_by_file(content) == []
    row["stats"]["median"] *= 1.01
    assert [found.law for found in laws.broken_by_file(content)] == ["the parts of a profile add up to the call"]


def test_what_is_contradicted_is_marked_on_all_three_figures(monkeypatch: pytest.MonkeyPatch):
    rows = golden.rows()
    assert len(Marks(made_records.timings(rows)).contradicted) == 1
    usual = Marks.of
    for hidden in ("contest", "p50"):
        monkeypatch.setattr(
            Marks, "of", lambda self, row, hidden=hidden: "" if getattr(row, hidden) else usual(self, row)
        )
        found = laws.broken_by_rows(made_records.timings(rows))
        assert {each.law for each in found} == {"what is contradicted is marked"}
        assert len(found) == {"contest": 1, "p50": 2}[hidden]


PEAK = {"flops": {"fp32": 8e10}, "bytes": 1e10, "source": "measured: loops", "widths": {"256": 8e10}}


@pytest.mark.parametrize(
    ("flops", "peak", "broken"),
    [
        (9_000_000, PEAK, False),
        (11_000_000, PEAK, True),
        (11_000_000, None, False),
        (11_000_000, {**PEAK, "widths": {}}, False),  # what a product reached is no peak
        (11_000_000, {**PEAK, "widths": {}, "source": "its maker"}, True),
    ],
)
def test_no_peak_is_beaten(flops: int, peak: dict | None, broken: bool):
    row = golden.row_of("stn", "native-fp32", "native-cpu", 1, "device", format="native")
    row |= golden.timed(123.4, 119.1, 131.9, 1)
    work = {"stn": {"1": {"flops": 2 * flops, "native_flops": flops}}}
    content = golden.bench_content([row | {"precision": "fp32"}]) | {"work": work, "peak": peak}
    assert [found.law for found in laws.broken_by_file(content)] == ["no peak is beaten"] * broken


def test_every_forced_theta_is_counted():
    compared = {"examples ×1": {}, "theta upside down": {}, "site1/theta scale 10": {}}
    checks = [structs.replace(check, comparisons=compared) for check in golden.checks(SHAS)]
    assert list(laws.broken_by_checks(checks)) == []
    [index] = [index for index, check in enumerate(checks) if program(check)[1:] == ("folded-fp32", "onnxruntime-cuda")]
    fewer = {"examples ×1": {}, "theta upside down": {}}
    checks[index] = structs.replace(checks[index], comparisons=fewer)
    [found] = laws.broken_by_checks(checks)
    assert str(found) == (
        "1 theta (site1/theta scale 10) of stn/folded-fp32 in onnxruntime-cuda: every forced theta is counted"
    )
    noted = ("site1/theta scale 10: not forced, the file does not show where",)
    checks[index] = structs.replace(checks[index], notes=noted)
    assert list(laws.broken_by_checks(checks)) == []


@pytest.fixture
def golden_run(tmp_path: Path) -> Held:
    """What a run holds whose networks were trained here; manifests are made up."""
    run, contract = tmp_path / "run", Contract((), ())
    directories = []
    for name in ("stn", "cnn"):
        listed = {
            kind: Artifact(kind, kind, name, "pt2", f"{name} {kind}", contract, settings={"seed": 0, "keep": "last"})
            for kind in ("checkpoint", "program")
        }
        directories.append(Directory(run / name, listed))
    checks = [check for check in golden.checks(SHAS) if check.artifact == "program"]
    return Held(run, directories, [golden.comparison()], made_records.verified(*checks))


class Directory(NetworkDirectory):
    """A network that lies nowhere."""

    def __init__(self, path: Path, listed: dict[str, Artifact]) -> None:
        super().__init__(path)
        self.listed_here = listed

    @property
    def artifacts(self) -> dict[str, Artifact]:
        return self.listed_here

    @property
    def facts(self) -> Facts:
        return Facts(*golden.LABELS[self.name])


def test_accuracy_in_training_is_that_in_verification(golden_run: Held):
    assert golden_run.trained_accuracies == {name: CURVES[name]["0"][-1] for name in ("stn", "cnn")}
    assert golden_run.broken_laws == []
    first, *others = golden_run.checks
    other = structs.replace(first, accuracy=first.accuracy - 0.002)  # of other images, say
    [found] = replace(golden_run, verified=made_records.verified(other, *others)).broken_laws
    assert str(found) == (
        "94.13 % of stn/program in eager-cpu against 94.33 % in training: accuracy in training is that in verification"
    )
    other = structs.replace(other, sha256="old")  # of another file
    assert replace(golden_run, verified=made_records.verified(other, *others)).broken_laws == []


@pytest.mark.parametrize(("seed", "keep", "accuracy"), [(2, "last", 0.9678), (1, "best", 0.9), (7, "last", None)])
def test_a_network_s_own_seed_counts(seed: int, keep: str, accuracy: float | None, golden_run: Held):
    stn = golden_run.directories[0].artifacts
    stn["checkpoint"] = replace(stn["checkpoint"], settings={"seed": seed, "keep": keep})
    golden_run.trainings[0].models["stn"].seeds["1"] = 0.9  # of the best epoch
    assert golden_run.trained_accuracies.get("stn") == accuracy


def test_the_card_says_what_cannot_be_right(tmp_path: Path):
    run = golden.write(tmp_path / "digits")
    assert "cannot be right" not in by_word(card(held(run)))["caveat"]
    content = json.loads((run / "bench.json").read_text(encoding="utf-8"))
    content["benchmarks"][0]["extra_info"]["p50_low"] *= 2
    (run / "bench.json").write_text(json.dumps(content), encoding="utf-8")
    said = by_word(card(held(run)))["caveat"]
    assert (
        "figures that cannot be right, do not rely on them: p50 0.000613 of stn/program in eager-cpu, batch 1" in said
    )


def test_what_breaks_a_law_is_neither_kept_nor_shown_nor_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row for row in golden.rows() if row["device"] == "cpu"]
    right, wrong = tmp_path / "right.json", tmp_path / "wrong.json"
    right.write_text(json.dumps(golden.bench_content(rows)), encoding="utf-8")
    rows[0]["p50_high"] /= 2
    wrong.write_text(json.dumps(golden.bench_content(rows)), encoding="utf-8")
    out = tmp_path / "RESULTS.md"
    assert cli.run(results_page.main, ["--keep", str(wrong), "--kept", str(tmp_path / "kept"), "--out", str(out)]) == 2
    assert "wrong.json contradicts itself: p50 0.000613 of stn/program in eager-cpu" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(UserError, match=r"wrong\.json contradicts itself"):
        results_page.document(tmp_path)
    assert cli.run(compare.main, [str(right), str(wrong)]) == 2
    assert cli.run(compare.main, [str(right), str(right)]) == 0
