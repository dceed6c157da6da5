"""A network of one batch size: its card counts examples, and says in batches of how many."""

import json
import re
from pathlib import Path

import pytest
import torch

import stn_export
from stn_export.api import LARGER, LONGEST_CALL, _larger_batch
from stn_export.program.specs import Contract, TensorSpec
from stn_export.results.card import by_word, card
from stn_export.results.contents import Held
from stn_export.run.manifest import PROGRAM
from tests.bench_rows import FEW
from tests.made_records import in_contest, timed
from tests.test_answer import content
from tests.test_mistakes import CODE, LINE, module

EAGER, FOLDED = FEW[:2]
ROWS = (timed(EAGER, 8e-4, 8), timed(FOLDED, 4e-4, 8), in_contest(FOLDED, "eager", 0.5, 8))


def of_batch(held: Held, batch: int | str) -> Held:
    held.directories[0].artifacts[PROGRAM].contract = Contract((TensorSpec("images", "float32", (batch, 3, 4, 4)),), ())
    return held


def test_an_example_of_a_fixed_batch_is_a_share_of_it():
    said = by_word(card(of_batch(content(*ROWS), 8)))
    assert said["deploy"].startswith("stn/folded-fp32.onnx")
    assert said["latency"].startswith("0.0500 ms per example in batches of 8 (0.0495 to 0.0505), inputs in place")
    assert said["throughput"].startswith("20,000 examples/s (19,802 to 20,202), inputs in place, at batch 8")


def test_a_larger_batch_of_a_network_that_takes_any_is_no_latency():
    assert "deploy" not in by_word(card(of_batch(content(*ROWS), "N")))


@pytest.mark.parametrize(("batch", "stated"), [("N", False), (1, True)])
def test_a_throughput_is_of_several_examples_unless_the_network_takes_one(batch: int | str, stated: bool):
    rows = [timed(EAGER, 8e-4), timed(FOLDED, 4e-4)]
    said = by_word(card(of_batch(content(*rows), batch)))
    assert "latency" in said
    assert ("throughput" in said) == stated


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(1e-4, LARGER[0]), (LONGEST_CALL / LARGER[-1], LARGER[-1]), (LONGEST_CALL, None)]
)
def test_a_larger_batch_is_timed_where_its_calls_are_short(seconds: float, wanted: int | None):
    row = in_contest(FOLDED, "eager", 0.5)
    assert _larger_batch(row | {"seconds": seconds, "baseline_seconds": seconds / 2}) == wanted


@pytest.mark.slow
def test_check_takes_the_batch_of_its_examples_and_says_where_its_file_is(tmp_path: Path):
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    result = stn_export.check(module(tmp_path / "code.py", "plates"), torch.rand(8, 3, 24, 94))
    said = by_word(result.card)
    assert result
    assert re.match(r"[\d.]+ ms per example in batches of 8 \(", said["latency"])
    assert "at batch 8" in said["throughput"]
    assert f"code.py:{LINE} fixes the batch at 8" in said["note"]
    name = said["file"].partition(",")[0]
    assert said["file"] == f"{name}, in memory only: result.save({name!r}) writes it"
    result = stn_export.check(module(tmp_path / "code.py", "free"), torch.rand(4, 3, 24, 94), run=tmp_path / "run")
    said = by_word(result.card)
    assert Path(said["file"]).is_file()
    timed_at = {
        row["extra_info"]["batch"] for row in json.loads((tmp_path / "run" / "bench.json").read_bytes())["benchmarks"]
    }
    assert len(timed_at & {*LARGER}) == 1  # whose throughput is stated, if it is the best
    assert "examples/s" in said["throughput"]
