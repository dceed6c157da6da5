"""README says what the kept files say."""

import json
from pathlib import Path

import pytest

from tests import readme
from tests.readme import BLOCKS, PAGE, REPOSITORY, page


def test_every_figure_is_that_of_the_kept_files():
    text = PAGE.read_text()
    assert page(text) == text, "README's figures are not those of benchmarks/results: 'make readme' writes them"


@pytest.mark.parametrize("name", BLOCKS)
def test_a_typed_figure_does_not_stay(name: str):
    before, rest = PAGE.read_text().split(f"<!-- {name} -->\n")
    inside, after = rest.split("<!-- end -->", 1)
    digit = next(place for place in range(len(inside) - 1, -1, -1) if inside[place].isdigit())
    wrong = inside[:digit] + str((int(inside[digit]) + 1) % 10) + inside[digit + 1 :]
    typed = f"{before}<!-- {name} -->\n{wrong}<!-- end -->{after}"
    assert typed != PAGE.read_text() == page(typed)


def test_figures_are_read_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / readme.KEPT).mkdir(parents=True)
    for path in (REPOSITORY / readme.KEPT).glob("*.json"):
        content = path.read_text()
        if path.name == "training-tuned-cpu.json":
            run = json.loads(content)
            run["runs"][0]["models"]["stn"]["mean"] = 0.5
            content = json.dumps(run)
        (tmp_path / readme.KEPT / path.name).write_text(content)
    monkeypatch.setattr(readme, "REPOSITORY", tmp_path)
    readme.kept.cache_clear()
    try:
        assert "`tuned` gives the very same network 50.00 % on CIFAR-10" in readme.tuned()[0]
    finally:
        readme.kept.cache_clear()


def test_what_is_said_in_round_numbers():
    runs = {run["dataset"]: run for run in readme.kept("training-gain-cpu.json")["runs"]}
    text = " ".join(PAGE.read_text().split())
    assert f"the transformer is worth {runs['digits']['differences']['cnn']['mean']:.0f} points of accuracy" in text
    assert "| the published run (a spatial transformer) | 57.29 % |" in readme.reference()[-2].replace("  ", " ")
