"""Two runs compared: regressions are found, noise is not, and what cannot be compared is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.bench import compare
from tests.bench_files import rows_of, timed, write


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base.json", rows_of(0))


def run(*arguments: object) -> int:
    return cli.run(compare.main, list(map(str, arguments)))


def slow_down(row: dict, factor: float) -> None:
    for name in ("p50", "p50_low", "p50_high", "seconds", "ratio", "ratio_low", "ratio_high"):
        if name in row["extra_info"]:
            row["extra_info"][name] *= factor
    if "p50" in row["extra_info"]:
        row["extra_info"]["examples_per_second"] /= factor


def test_the_same_file_twice(base: Path, capsys: pytest.CaptureFixture):
    assert run(base, base) == 0
    assert "slower" not in capsys.readouterr().out


def test_rows_without_a_verdict_are_listed_where_that_is_asked_for(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    rows = rows_of(0)
    slow_down(rows["test_eager[openvino]"], 0.5)
    new = write(tmp_path / "new.json", rows)
    for arguments, listed in (((), False), (("--all",), True)):
        assert run(base, new, *arguments) == 0
        said = capsys.readouterr().out
        assert "0.500" in said
        assert ("1.000" in said) == listed
        assert "38 rows compared: 37 cannot tell, 1 faster" in said


def test_the_table_of_changes(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(compare.cli, "table", lambda *what: shown.append(what))
    found = [
        compare.Change(said, "seconds", ratio, ratio - 0.1, ratio + 0.1, said)
        for said, ratio in (("slower", 2.0), ("same", 1.0), ("faster", 0.5), ("cannot tell", 1.1))
    ]
    rows = [
        (each.row, "seconds", f"{each.ratio:.3f}", f"{each.low:.3f} to {each.high:.3f}", each.row) for each in found
    ]
    for everything, listed in ((False, rows[::2]), (True, rows)):
        compare.show(found, [], everything)
        title, dropped = "New run against base: below 1 is faster", ("by", "interval")
        assert shown.pop() == (title, compare.COLUMNS, listed, dropped)
    compare.show(found[1:2], [], everything=False)
    assert not shown


def test_noise_is_no_regression(base: Path, tmp_path: Path):
    alarms = [run(base, write(tmp_path / "new.json", rows_of(seed, noise=0.03))) for seed in range(100, 140)]
    assert sum(alarms) <= 1  # of 40 comparisons of 38 rows


def test_a_machine_that_is_slower_today_is_no_regression(base: Path, tmp_path: Path):
    rows = rows_of(1, noise=0.02, drift=1.08)
    assert run(base, write(tmp_path / "new.json", rows)) == 0


@pytest.mark.parametrize(
    ("row", "factor"),
    [("test_eager[openvino]", 1.1), ("test_overhead[onnxruntime]", 1.1), ("test_latency[stn-openvino-16]", 1.5)],
)
def test_a_regression_is_found_and_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture, row: str, factor: float
):
    rows = rows_of(1, noise=0.02)
    slow_down(rows[row], factor)
    assert run(base, write(tmp_path / "new.json", rows)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("failed: 1 rows are slower, 0 missing\nslower, ")
    assert row in errors


def test_a_slowdown_of_everything_is_found(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(base, write(tmp_path / "new.json", rows_of(1, noise=0.02, drift=1.6))) == 1
    assert "test_latency[stn-eager-1]" in capsys.readouterr().err


def test_a_row_that_is_gone_fails_and_a_new_one_is_listed(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = rows_of(0)
    del rows["test_latency[stn-openvino-16]"]
    rows["test_latency[stn-new-1]"] = timed("test_latency[stn-new-1]", "new", "stn", 1, 1e-3)
    assert run(base, write(tmp_path / "new.json", rows)) == 1
    output = capsys.readouterr()
    assert "missing from" in output.err
    assert "test_latency[stn-openvino-16]" in output.err
    assert "new: test_latency.py::test_latency[stn-new-1]" in output.out


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"cpu": "Other CPU"}, "CPU Test CPU @ 1 GHz and Other CPU"),
        ({"gpu": "NVIDIA H100"}, "GPU None and NVIDIA H100"),
        ({"threads": 2}, "threads 1 and 2"),
        ({"gpu": "NVIDIA H100", "threads": 2}, "GPU None and NVIDIA H100; threads 1 and 2"),
    ],
)
def test_other_machines_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture, machine: dict, said: str
):
    assert run(base, write(tmp_path / "new.json", rows_of(1), **machine)) == 2
    hint = "time both on one machine, or add --across-machines (ACROSS=1) to see ratios to eager only"
    assert (
        " ".join(capsys.readouterr().err.split()) == f"error: the files are of different machines: {said} hint: {hint}"
    )


def test_across_machines_there_are_ratios_to_eager_only(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = rows_of(1)
    slow_down(rows["test_eager[openvino]"], 2)
    assert run(base, write(tmp_path / "new.json", rows, cpu="Other CPU"), "--across-machines", "--json") == 0
    found = json.loads(capsys.readouterr().out)["changes"]
    assert {change["by"] for change in found} == {"ratio to eager", "contest: eager"}


def test_nothing_in_common(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    row = timed("test_latency[other]", "new", "stn", 1, 1e-3)
    assert run(base, write(tmp_path / "new.json", {"other": row})) == 1
    assert capsys.readouterr().err == "failed: the files have no comparable row in common\n"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmarks": []}', '{"benchmarks": [1], "machine_info": 3}'])
def test_nonsense_files(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture, text: str):
    (tmp_path / "new.json").write_text(text, encoding="utf-8")
    assert run(base, tmp_path / "new.json") == 2
    assert "is not a benchmark file of stn_export" in capsys.readouterr().err


def rename(content: dict) -> None:
    for row in content["benchmarks"]:
        row["extra_info"]["model"] = row["extra_info"].pop("network")


@pytest.mark.parametrize("spoil", [lambda content: content.pop("work"), rename])
def test_files_of_an_older_format_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture, spoil: Callable[[dict], object]
):
    content = json.loads(base.read_text(encoding="utf-8"))
    spoil(content)
    (tmp_path / "old.json").write_text(json.dumps(content), encoding="utf-8")
    assert run(tmp_path / "old.json", base) == 2
    assert "is not a benchmark file of stn_export" in capsys.readouterr().err


def test_no_file_at_all(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(base, tmp_path / "nowhere.json") == 2
    assert "there is no file" in capsys.readouterr().err
    assert run("", base) == 2
    assert "BASE=file.json" in capsys.readouterr().err
