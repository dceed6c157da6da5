"""Derived figures of kept files are those of their raw values; what is typed in, or of an older method, is refused."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.tools.kept import KEPT
from stn_export import cli
from tests import readme, recomputed
from tests.conftest import REPOSITORY
from tests.recomputed import anew, kept_files, kind_of, stale, unlike

FILES = kept_files()
DERIVED = {path.name: content for path, content in FILES.items() if kind_of(content)}


def test_no_kept_figure_is_stale():
    assert stale(FILES) == []


def test_what_holds_derived_figures_is_known():
    kinds = {kind_of(content) for content in DERIVED.values()}
    assert kinds == set(recomputed.KINDS.values())
    others = {path.name for path in FILES} - set(DERIVED)
    assert others <= {
        *("cifar10-reference-cpu.json", "digits-cpu.json", "coverage.json", "faults.json", "fuzz.json", "soak.json"),
        "larger-cpu.json",
        "larger-int8-cpu.json",
        "networks.json",
        "runtimes.json",
        "webgpu.json",
    }  # counts and reports, whose raw values are kept nowhere


NAMES = ("mean", "deviation", "low", "high", "ratio", "ratio_low", "verdict", "found", "score", "sentence")
ALSO = ("ratio_high", "examples_per_second", "median_seconds", "passed")


def places(content: object, where: tuple = ()) -> Iterator[tuple]:
    """Every derived figure of a content."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in (*NAMES, *ALSO) and not isinstance(value, dict | list):
                yield (*where, key)
            if key != "stats":  # pytest-benchmark's own
                yield from places(value, (*where, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, (*where, index))


def typed(content: dict, place: tuple) -> dict:
    """The same with one figure that somebody typed in."""
    made = deepcopy(content)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    value = inner[place[-1]]
    if isinstance(value, bool):
        inner[place[-1]] = not value
    else:
        inner[place[-1]] = value * 1.01 + 0.1 if isinstance(value, float | int) else f"{value}!"
    return made


@pytest.mark.parametrize("name", DERIVED)
def test_a_figure_that_was_typed_in_is_found(name: str):
    content, found = DERIVED[name], {}
    for place in places(content):
        found.setdefault(place[-1], place)  # one of each kind
    assert found
    for place in found.values():
        wrong = typed(content, place)
        lines = list(unlike(wrong, anew(wrong)))
        raw = {"benchmarks", "trials"} & content.keys() and place[-1].startswith("ratio_")  # intervals are raw there
        if raw:
            assert any(".ratio " in line for line in lines)
        else:
            assert any(f"{place[-1]} is " in line for line in lines), place


def test_an_interval_over_seeds_is_student_s():
    run = anew(DERIVED["training-gain-cpu.json"])["runs"][0]
    for model in run["models"].values():
        values = [curve[-1] for curve in model["accuracies"].values()]
        spread = stats.sem(values)
        ends = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), spread)
        assert (model["low"], model["high"]) == pytest.approx(ends)
    ours, plain = (run["models"][name]["accuracies"] for name in ("stn", "cnn"))
    gains = [100 * (ours[seed][-1] - plain[seed][-1]) for seed in ours]
    assert run["differences"]["cnn"]["mean"] == pytest.approx(sum(gains) / len(gains))


def test_pages_are_not_made_of_stale_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    content = deepcopy(DERIVED["training-speed-cpu.json"])
    content["rows"][0]["ratio_high"] = 2.916542762819372  # of a method that was replaced
    monkeypatch.setattr(recomputed, "REPOSITORY", tmp_path)
    monkeypatch.setattr(readme, "PAGES", [])
    folder = tmp_path / KEPT
    folder.mkdir(parents=True)
    (folder / "training-speed-cpu.json").write_text(json.dumps(content), encoding="utf-8")
    assert cli.run(lambda _=None: readme.main()) == 1
    said = capsys.readouterr().err
    assert "training-speed-cpu.json: rows[0].ratio_high is 2.91" in said
    assert "'python -m tests.recomputed' makes them anew" in said
    recomputed.main()
    assert "training-speed-cpu.json" in capsys.readouterr().out
    assert json.loads((folder / "training-speed-cpu.json").read_text(encoding="utf-8")) == anew(content)
    assert cli.run(lambda _=None: readme.main()) == 0
    assert "up to date" in capsys.readouterr().out


def test_kept_files_are_those_of_the_repository():
    assert {path.parent for path in FILES} == {REPOSITORY / KEPT}
