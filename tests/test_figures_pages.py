"""What pages say: measured figures find their way into all of them, and a fact that stands twice has one source."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.tools import runtimes_page
from benchmarks.tools.kept import KEPT, PROOF_SCHEMA
from benchmarks.tools.training_speed import pairs_ratio
from stn_export.bench.plan import GRIDS
from stn_export.cli import options
from stn_export.export.destinations import DESTINATIONS, RULES
from stn_export.export.lowerings import LOWERINGS
from stn_export.results.choice import SIDE
from stn_export.results.statistics import METHOD
from stn_export.runners.external.environments import ON_CPU
from tests import figures, readme
from tests.conftest import REPOSITORY
from tests.zoo import ZOO


def text_of(page: str) -> str:
    """A page on one line."""
    return " ".join((REPOSITORY / page).read_text(encoding="utf-8").split())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the pages and of the kept files."""
    for path in (*readme.PAGES, *(REPOSITORY / KEPT).glob("*.json"), REPOSITORY / "benchmarks" / "RESULTS.md"):
        target = tmp_path / "copy" / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (tmp_path / "copy" / "docs" / "pictures").mkdir()
    return tmp_path / "copy"


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """What a run on another day leaves: as kept now, and with the figures that are new."""
    kept = tmp_path / "work" / "kept"
    kept.mkdir(parents=True)
    timed = readme.bench()
    timed["benchmarks"] = [row for row in timed["benchmarks"] if row["extra_info"].get("contest") != "pytorch"]
    rows = [row["extra_info"] for row in timed["benchmarks"]]
    deployed = next(row for row in rows if row.get("contest") == "eager" and row["runner"] == "native-cpu")
    whole = next(row for row in timed["benchmarks"] if row["extra_info"] is deployed)
    for number, runner in enumerate(("eager-cpu", "eager-channels-last-cpu", "compiled-cpu"), 1):
        said = {"contest": "pytorch", "by_host": True, "baseline": f"stn-{runner}", "baseline_runner": runner}
        ends = {"ratio": number / 20, "ratio_low": number / 20.5, "ratio_high": number / 19.5, "batch": 1}
        more = said | ends | {"baseline_threads": 1, "seconds": 5e-5, "baseline_seconds": 1e-3 / number}
        timed["benchmarks"].append(whole | {"name": runner, "fullname": runner, "extra_info": deployed | more})
    for work in (work for batches in timed["work"].values() for work in batches.values()):
        work["native_flops"] = round(0.8 * work["flops"])
    peak = {"flops": {"fp32": 117e9}, "widths": {"256": 117e9}, "bytes": 26e9, "source": "measured: a loop"}
    timed |= {"datetime": "2027-01-02T03:04:05+00:00", "peak": peak}
    (kept / "amd-epyc-2027-01-02.json").write_text(json.dumps(timed), encoding="utf-8")
    for name in ("digits-cpu.json", "coverage.json"):
        shutil.copyfile(REPOSITORY / KEPT / name, kept / name)
    proof = readme.kept("proof-*.json") | {"datetime": "2027-01-02T04:00:00"}
    for row in (row for trial in proof["trials"] for row in trial["rows"]):
        row["planted"] = 1.0375
    (kept / "proof-amd-epyc-2027-01-02.json").write_text(json.dumps(proof), encoding="utf-8")
    (tmp_path / "work" / figures.RUN / "figures").mkdir(parents=True)
    (tmp_path / "work" / figures.RUN / "figures" / figures.PICTURES[0]).write_bytes(b"drawn")
    readme.kept.cache_clear()
    return tmp_path / "work"


def test_what_was_measured_stands_on_every_page_in_the_place_of_the_old(checkout: Path, measured: Path):
    changed = figures.publish(measured, checkout)
    names = {path.name for path in (checkout / KEPT).glob("*.json")}
    assert {"amd-epyc-2027-01-02.json", "proof-amd-epyc-2027-01-02.json"} <= names
    assert not {name for name in names if "2026-11-25" in name}
    assert {"training-gain-cpu.json", "runtimes.json", "coverage.json"} <= names
    front = " ".join((checkout / "README.md").read_text(encoding="utf-8").split())
    assert "speed-up over torch.compile on 1 thread 6.67 ×" in front
    assert "the fastest of torch.compile, eager PyTorch in channels_last and eager PyTorch, each on 1 thread" in front
    assert "2027-01-02" in front
    assert "were not timed beside it" not in front
    kept = (checkout / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    assert "### Requests against torch.compile on 1 thread" in kept
    assert "Peak: 117 GFLOP/s in float32 (117 at 256 bits), 26.0 GB/s (measured: a loop)." in kept
    [line] = [line for line in kept.splitlines() if line.startswith("| spatial transformer | 1 | 4.2 M | 3.3 M |")]
    fastest = min(
        row.p50 for row in readme.timings() if row.network == "stn" and row.batch == 1 and row.regime == "device"
    )
    rate = 4_176_152 / fastest / 1e9
    assert line.endswith(f"| native-cpu native-fp32 | {rate:.1f} | {0.8 * rate / 117:.1%} |")
    page = (checkout / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| planted 3% | 1.03 | 1 |" in page
    assert "more was planted than is named" not in page
    assert (checkout / "docs" / "pictures" / figures.PICTURES[0]).read_bytes() == b"drawn"
    assert {"README.md", "RESULTS.md", "benchmarks.md", figures.PICTURES[0]} <= set(changed)
    assert figures.publish(measured, checkout) == []
    assert readme.bench()["datetime"].startswith("2026")  # this checkout's own


def test_a_card_of_another_run_than_the_timings_is_refused(checkout: Path, measured: Path):
    path = measured / "kept" / "digits-cpu.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["answer"]["cpu"]["latency"]["sha256"] = "another"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="of two runs: keep both with 'make figures'"):
        figures.publish(measured, checkout)


def test_all_is_measured_before_anything_is_written(tmp_path: Path):
    listed = figures.steps(tmp_path, figures.WHOLE)
    written = [word for step in listed for word in step.words if str(KEPT) in word or word.startswith("docs")]
    assert written == []
    assert [step.name for step in listed[:5]] == ["train", "export", "verify", "bench", "report"]
    assert not any("--budget" in step.words for step in listed)
    tiny = {step.name: step.words for step in figures.steps(tmp_path, figures.TINY)}
    assert tiny["bench"][-2:] == ("--budget", "20s")
    for step in listed:
        module = step.words[2]
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").exists() or module in ("stn_export", "pytest")


def test_figures_of_a_tree_with_changes_or_of_a_tiny_run_are_not_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "git_commit", lambda: "724c86de3cef-dirty")
    with pytest.raises(figures.UserError, match="this tree is 724c86de3cef-dirty"):
        figures.main([])
    with pytest.raises(figures.UserError, match="not kept"):
        figures.main(["--tiny"])


def test_the_time_of_a_request_and_of_its_speedup_are_said_to_be_of_two_kinds():
    latency = readme.answer().latency()
    request = [row for row in readme.timings() if row.regime == "request" and row.runner == "native-cpu"]
    assert latency.startswith(f"{1e3 * request[0].p50:.4f} ms per example")
    assert ", host array to host array; " in latency
    [*_, fastest] = sorted((row for row in readme.timings() if row.contest == "pytorch"), key=lambda row: -row.ratio)
    assert fastest.by_host  # a request on either side
    assert "inputs in place" not in latency


def test_the_headlines_interval_covers_every_time_of_its_baseline_in_the_run():
    pattern = r"speed-up over torch\.compile on (\d) threads? ([\d.]+) × \(([\d.]+) to ([\d.]+)\)"
    threads, middle, low, high = map(float, re.search(pattern, readme.answer().latency()).groups())
    contests = [row for row in readme.timings() if row.contest == "pytorch" and row.batch == 1]
    rows = [row for row in contests if (row.baseline_runner, row.baseline_threads) == ("compiled-cpu", threads)]
    [ours] = [row for row in rows if row.runner == "native-cpu"]
    assert low < middle < high
    for row in rows:
        expected = row.baseline_seconds / ours.baseline_seconds / ours.ratio
        assert 0.995 * low <= expected <= 1.005 * high


def test_the_fastest_of_many_is_the_fastest_that_was_timed():
    many = [row for row in readme.timings() if row.contest == "eager" and row.batch == 256]
    best = min(many, key=lambda row: row.ratio)
    assert f"in float32 `{best.artifact}` in {best.runner}, {1 / best.ratio:.2f} ×" in text_of("docs/benchmarks.md")
    assert all(getattr(best, name) for name in SIDE)


def test_every_shown_interval_has_a_width():
    for page in ("README.md", "docs/benchmarks.md", "docs/runtimes.md", "docs/lowerings.md", "benchmarks/RESULTS.md"):
        for low, high in re.findall(r"\((\S+)(?: \S+)? to (\S+?)(?: \S+)?\)", text_of(page)):
            assert low != high, f"{page}: {low} to {high}"


def test_intervals_of_training_speed_are_recomputed_and_name_the_machine():
    content = readme.kept("training-speed-cpu.json")
    said = text_of("docs/training.md")
    for row in (row for row in content["rows"] if "baseline_seconds" in row):
        found = pairs_ratio(row["seconds"], row["baseline_seconds"])
        assert f"{found['ratio']:.2f} × ({found['ratio_low']:.2f} to {found['ratio_high']:.2f})" in said
    assert content["environment"]["cpu"] in said
    assert f"Student's over 5 epochs of either in turn, {METHOD.load_spread:.1%} wider" in said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (2.8, 5.7, "gains 4.2 points (2.8 to 5.7) over the plain CNN"),
        (-0.6, 5.7, "has no measurable gain over the plain CNN (+4.2 points, −0.6 to 5.7)"),
        (-9.5, -0.2, "is 4.2 points (0.2 to 9.5) behind the plain CNN"),
    ],
)
def test_what_the_interval_of_a_gain_allows_to_say(low: float, high: float, said: str):
    mean = -4.2 if high < 0 else 4.2
    assert readme.against({"mean": mean, "low": low, "high": high, "label": "plain CNN"}) == said


def test_the_gain_on_cifar_is_stated_by_recipe_wherever_it_is_stated():
    for page in ("README.md", "docs/training.md"):
        said = text_of(page)
        assert "gains 1.4 points (1.2 to 1.6) over the plain CNN" in said
        assert "there is no measurable gain" not in said
        assert "nothing ([figures]" not in said


def test_the_power_that_is_claimed_holds_on_every_machine_that_is_claimed():
    kept = json.loads((REPOSITORY / KEPT / "coverage.json").read_text(encoding="utf-8"))["contests"]

    def found(row: dict, slowdown: str) -> float:
        verdicts = row["verdicts"][slowdown]
        return verdicts.get("slower", 0) / sum(verdicts.values())

    claimed = [row for row in kept.values() if row["claimed"]]
    assert min(found(row, "5%") for row in claimed) >= 0.8
    assert min(found(row, "3%") for row in claimed) >= 0.4
    [once] = [row for name, row in kept.items() if name.startswith("one load only")]
    assert 0.55 < found(once, "5%") < 0.65
    said = text_of("docs/method.md")
    assert 'four in five at least are found on the worst of the machines marked "claimed"' in said
    assert "in three of five contests" in said


def test_blocks_and_loads_are_those_of_the_grids():
    said = text_of("docs/method.md")
    assert f"(25 blocks are the quick grid's; the full one has {GRIDS['full'].blocks}." in said
    assert GRIDS["quick"].blocks == 25
    assert METHOD.loads == 5
    assert "either side is loaded five times" in said


def test_lowerings_stand_with_their_opsets():
    page = (REPOSITORY / "docs" / "lowerings.md").read_text(encoding="utf-8")
    for name, spec in LOWERINGS.items():
        assert f"`{name}`" in page
        if name != "plain":
            assert f"| `{name}` | {spec.default_opset} ({min(spec.opsets)} to {max(spec.opsets)}) |" in page
    assert "`default`" in page


def test_counts_in_words_are_those_of_the_tables():
    assert len(ON_CPU) == 10
    assert "ten, tried and not guessed" in text_of("README.md")
    assert len(ZOO) == 10
    assert "ten networks written for the tests (nine sample, `NoSampler` does not)" in text_of("docs/networks.md")
    assert "nine kinds of other people's, one that does not sample" in text_of("README.md")


def test_every_destination_stands_on_the_page_of_runtimes():
    page = (REPOSITORY / "docs" / "runtimes.md").read_text(encoding="utf-8")
    assert set(RULES) < set(DESTINATIONS)
    for name in DESTINATIONS:
        assert re.search(rf"^\| {name} \| .* \| .* \|$", page, re.MULTILINE), name


def test_times_of_runtimes_say_of_what_they_are():
    page = text_of_lines("docs/runtimes.md")
    of_requests = all(row.get("by_host") for row in readme.kept("runtimes.json")["contests"])
    assert (runtimes_page.REQUESTS in page.replace("\n", " ")) == of_requests
    assert ("| runner | file | timed |" in page) != of_requests
    assert re.search(r"^\| native-cpu \| native-fp32 \| ", page, re.MULTILINE)


def text_of_lines(page: str) -> str:
    """A page as it stands."""
    return (REPOSITORY / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["all", "train", "verify", "bench", "doctor"])
def test_a_command_is_called_what_a_person_types(name: str):
    assert options.PARSERS[name]().prog == f"stn-export {name}"


def test_proofs_are_of_one_schema():
    assert readme.kept("proof-*.json")["schema"] == PROOF_SCHEMA
