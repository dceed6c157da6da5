"""Every caveat that applies is on the card, the worst first; only what is verified today is deployed."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console

from benchmarks.tools.kept import verified
from stn_export import cli
from stn_export.results.card import STAGES, by_word, card
from stn_export.results.choice import program
from stn_export.results.contents import Held
from stn_export.run.records import Check, Timing
from tests import made_records
from tests.bench_files import prove
from tests.made_records import in_contest, timed
from tests.report_files import comparison
from tests.test_answer import EAGER, FOLDED, INT8, PLAIN, content
from tests.test_disturbance import PLAIN_NAME, speedup

ORT = "onnxruntime-cpu"
MACHINE = "timed on one machine: another processor may rank the files differently"
QUIET = (timed(FOLDED, 1e-4), timed(INT8, 2e-4), timed(EAGER, 18e-4), timed(PLAIN, 5e-5))
CONTRADICTING = speedup(40.2, 24.1, 66.9)
BUSY = in_contest(FOLDED, "overhead", 2.0, blocks=1472, disturbed_blocks=7, baseline=PLAIN_NAME)


def caveats(held: Held) -> list[str]:
    """The caveats of the whole card."""
    return [sentence for word, sentence in card(held) if word == "caveat"]


def with_check(held: Held, artifact: str, runner: str = ORT, **changed: object) -> Held:
    """The run with one check changed; it must be there."""
    checks = [
        structs.replace(check, **changed) if (check.artifact, check.runner) == (artifact, runner) else check
        for check in held.checks
    ]
    assert checks != list(held.checks)
    return with_checks(held, *checks)


def with_checks(held: Held, *checks: Check) -> Held:
    """The run with these checks instead."""
    return replace(held, verified=structs.replace(held.verified, checks=checks))


def failing(held: Held) -> Held:
    return with_check(held, "matmul-int8", failure="accuracy falls\nby 1.50 points,   more than 1", multiple=None)


def aged(held: Held) -> Held:
    return with_check(held, "plain-fp32", sha256="old")


def unchecked(held: Held) -> Held:
    return with_checks(held, *(check for check in held.checks if program(check)[:2] != ("cnn", "program")))


def outrun(held: Held) -> Held:
    return replace(held, rows=[*held.rows, timed(FOLDED, 3e-5) | {"runner": "openvino-cpu"}])


def busy(held: Held) -> Held:
    return replace(held, rows=[*held.rows, BUSY, timed(FOLDED, 3e-3, 64, disturbed=True)])


def contradicting(held: Held) -> Held:
    return replace(held, rows=[*held.rows, CONTRADICTING])


def launched(held: Held) -> Held:
    slow, quick = (timed(FOLDED, 1e-4, batch) | {"device": "cuda", "runner": "eager-cuda"} for batch in (1, 64))
    return replace(held, rows=[*held.rows, slow | {"launch_seconds": 9.1e-5}, quick | {"launch_seconds": 8.9e-5}])


def gainless(held: Held) -> Held:
    several = comparison(3)
    changed = replace(
        several.differences["cnn"], finding="no measurable gain", sentence="the transformer is at +0.3 points"
    )
    return replace(held, trainings=(replace(several, differences={"cnn": changed}),))


def single(held: Held) -> Held:
    return replace(held, trainings=(comparison(1),))


def nameless(held: Held) -> Held:
    networks = {"stn": made_records.network(labels=False), "cnn": made_records.network(labels=True)}
    return replace(held, verified=structs.replace(held.verified, networks=networks))


def over_budget(held: Held) -> Held:
    return replace(held, not_timed=["latency of a", "test_latency.py::test_b", "c", "d"])


BY_NAME: dict[str, tuple[Callable[[Held], Held], str]] = {
    "failed": (
        failing,
        "failed, never deployed: 1 check: stn/matmul-int8 on onnxruntime-cpu: "
        "accuracy falls by 1.50 points, more than 1",
    ),
    "stale": (aged, "stale: cnn/plain-fp32 changed since verify ran; run `stn-export verify` again"),
    "unverified": (unchecked, "not verified, never deployed: cnn/program"),
    "faster": (outrun, "faster, but nothing verifies it: folded-fp32 in openvino-cpu"),
    "disturbed": (
        busy,
        "disturbed by other work: 1 of 5 timings and 7 of 1,472 blocks (their figures are marked †)",
    ),
    "contradicted": (
        contradicting,
        "speed-up over eager PyTorch at batch 1: the paired comparison says 40.2 × (24.1 to 66.9), separate timings "
        "18.0 × (17.6 to 18.4) (both marked ‡): the machine changed between them, run `stn-export bench --again`",
    ),
    "launches": (
        launched,
        "bound by launches, not by the GPU: folded-fp32 in eager-cuda at batch 1; a CUDA graph launches once",
    ),
    "no gain": (gainless, "against the plain CNN the transformer is at +0.3 points"),
    "one seed": (single, "trained with one seed, so the accuracy gain has no confidence interval"),
    "no labels": (nameless, "no labels: the accuracy of stn is not known"),
    "not timed": (
        over_budget,
        "not timed, the budget was spent: 4 rows (latency of a, b, c and 1 more); run `stn-export bench` again",
    ),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_one_caveat_alone(name: str):
    make, sentence = BY_NAME[name]
    assert caveats(make(content(*QUIET))) == [sentence, MACHINE]


def test_a_verified_run_that_nothing_was_timed_of_has_none():
    assert caveats(content()) == []
    assert caveats(content(*QUIET)) == [MACHINE]


def test_all_caveats_at_once_are_all_said_the_worst_first():
    held = content(*QUIET)
    for name, (make, _) in BY_NAME.items():
        if name != "no gain":  # either is of the same training
            held = make(held)
    one = held.trainings[0].differences["cnn"]
    lost = replace(one, count=3, finding="loss", sentence="the transformer loses 2.1 points")
    even = replace(one, count=3, finding="no measurable gain", sentence="the transformer is at +0.3 points")
    differences = {"one": one, "even": even, "lost": lost}
    held = replace(held, trainings=(replace(held.trainings[0], differences=differences),))
    found = caveats(held)
    wanted = [sentence for _, sentence in BY_NAME.values()]
    wanted.insert(7, "against the plain CNN the transformer loses 2.1 points")
    assert found == [
        *(each.replace("1 of 5 timings and 7 of 1,472", "1 of 8 timings and 7 of 1,497") for each in wanted),
        MACHINE,
    ]
    assert len(card(held)) > 15
    assert all("\n" not in sentence for sentence in found)
    assert set(found) == {sentence for word, sentence in card(held, "bench") if word == "caveat"}
    assert set(found) == {sentence for word, sentence in card(held, "verify") if word == "caveat"}
    assert "; ".join(found) == by_word(card(held))["caveat"]


def test_a_caveat_names_three_and_counts_the_rest():
    held = content(*QUIET)
    checks = [structs.replace(held.checks[0], artifact=f"a{number}", failure="off") for number in range(1234)]
    said = caveats(with_checks(held, *checks))[0]
    assert said == (
        "failed, never deployed: 1,234 checks: stn/a0 on eager-cpu: off; stn/a1 on eager-cpu: off; "
        "stn/a2 on eager-cpu: off and 1,231 more"
    )


def test_rows_that_bench_left_out_are_named_by_their_tests():
    """They are kept with the reason of each."""
    left_out = {"test_latency.py::test_cold[stn-onnxruntime-cpu-folded-fp32-1]": "budget"}
    assert caveats(replace(content(), not_timed=left_out)) == [
        "not timed, the budget was spent: 1 row (cold[stn-onnxruntime-cpu-folded-fp32-1]); run `stn-export bench` again"
    ]


def test_checks_on_other_examples_are_stale():
    held = with_check(content(*QUIET), "folded-fp32", examples_sha256="of other labels")
    assert caveats(held)[0] == "stale: what stn is tried on changed since verify ran; run `stn-export verify` again"
    assert ("stn", "folded-fp32", ORT) not in held.proved
    assert ("stn", "folded-fp32", ORT) in content(*QUIET).proved


def test_stale_timings_are_named():
    rows = (*QUIET, timed(FOLDED, 1e-5) | {"artifact": "plain-fp32", "network": "cnn", "sha256": "old"})
    assert caveats(content(*rows))[0] == ("stale: cnn/plain-fp32 changed since bench ran; run `stn-export bench` again")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"examples_sha256": "other"}, "what stn is tried on"),
        ({"sha256": "old", "examples_sha256": "other"}, "stn/folded-fp32"),
        ({"baseline_sha256": "old"}, "stn/folded-fp32's baseline"),
    ],
)
def test_what_changed_since_a_timing_is_named(changed: dict, words: str):
    row = timed(FOLDED, 1e-5) | changed
    assert content(row).current.changed(row) == words
    assert content(row).is_current(row) == (not words)
    assert [each for each in caveats(content(row)) if each.startswith("stale")] == (
        [f"stale: {words} changed since bench ran; run `stn-export bench` again"] if words else []
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda held: with_check(held, "matmul-int8", failure="off"),
        lambda held: with_check(held, "matmul-int8", sha256="old"),
        lambda held: replace(held, rows=[row | {"sha256": "old"} if row.format == "onnx" and
                                         row.artifact == "matmul-int8" else row for row in held.rows]),
        lambda held: with_checks(held, *(check for check in held.checks if check.artifact != "matmul-int8")),
        lambda held: with_checks(held, *held.checks, *(structs.replace(check, failure="off") for check in held.checks
                                                       if check.artifact == "matmul-int8")),
    ],
    ids=["failed", "checked before it changed", "timed before it changed", "never verified", "passed and failed"],
)  # fmt: skip
def test_what_is_not_verified_today_is_not_deployed(spoil: Callable[[Held], Held]):
    """The int8 file is by far the fastest."""
    held = content(timed(FOLDED, 1e-4), timed(INT8, 1e-6), timed(EAGER, 18e-4))
    assert "stn/matmul-int8.onnx" in by_word(card(held))["deploy"]
    assert by_word(card(spoil(held)))["deploy"] == f"stn/folded-fp32.onnx (runner {ORT})"
    alone = spoil(content(timed(INT8, 1e-6)))
    assert "deploy" not in by_word(card(alone))
    assert "confidence" not in by_word(card(alone))


def test_a_run_that_nothing_was_verified_of_deploys_nothing():
    assert "deploy" not in by_word(card(content(*QUIET, proved={("cnn", "plain-fp32", ORT): 0.7})))


def test_results_that_are_stored_name_no_file_that_changed_since_it_was_timed(tmp_path: Path):
    prove(tmp_path, "onnxruntime-cpu", "torchscript-cpu")
    row = made_records.timing({"artifact": "some-fp32", "runner": "onnxruntime-cpu", "sha256": "0"})
    stored = ["stn", "some-fp32", "onnxruntime-cpu"], ["stn", "some-fp32", "torchscript-cpu"]
    assert verified(tmp_path, [row])["proved"] == [*stored]
    assert verified(tmp_path, [row | {"sha256": "old"}])["proved"] == [stored[1]]


def confidence(*rows: Timing, **environment: object) -> str:
    held = content(*rows)
    return by_word(card(replace(held, environment=held.environment | environment)))["confidence"]


def test_confidence_says_no_where_most_was_disturbed():
    most = BUSY | {"disturbed_blocks": 1471}
    assert confidence(*QUIET, most) == (
        "no: 1,471 of 1,472 blocks were disturbed by other work; on a <fast> one, 1 thread"
    )
    timings = [row | {"disturbed": True} for row in QUIET[:3]]
    assert confidence(*timings, QUIET[3], BUSY).startswith("no: 3 of 4 timings were disturbed by other work;")
    assert confidence(*QUIET, BUSY).startswith("measurably faster than every other verified file;")
    assert confidence(*QUIET, most | {"device": "cuda"}).startswith("measurably faster")  # another device


def test_confidence_of_a_file_without_rivals():
    assert confidence(timed(FOLDED, 1e-4)).startswith("the only verified file that was timed; on")


def test_confidence_names_instruction_sets():
    sets = ["AVX2", "AVX-512", "VNNI"]
    assert confidence(*QUIET, cpu="AMD EPYC", instruction_sets=sets).endswith(
        "; on AMD EPYC (AVX2, AVX-512, VNNI), 1 thread"
    )
    assert confidence(*QUIET, cpu="AMD EPYC", instruction_sets=[]).endswith("; on AMD EPYC, 1 thread")


def test_both_figures_that_contradict_each_other_are_marked():
    found = by_word(card(content(*QUIET, CONTRADICTING)))
    assert found["latency"] == (
        "0.100 ms per example (0.0990 to 0.101)‡, inputs in place; speed-up over eager PyTorch 40.2 × (24.1 to 66.9)‡"
    )
    disturbed = caveats(content(*QUIET, CONTRADICTING | {"disturbed_blocks": 1}))
    assert disturbed[1].endswith(": measured while disturbed, run `stn-export bench --again`")


def test_contradictions_that_the_card_does_not_quote_are_counted():
    other = CONTRADICTING | {"artifact": "matmul-int8"}
    overhead = in_contest(FOLDED, "overhead", 9.0, baseline=PLAIN_NAME)
    assert caveats(content(*QUIET, overhead, other))[:-1] == [
        "overhead at batch 1: the paired comparison says 9.00 × (8.73 to 9.27), separate timings 2.00 × (1.96 to "
        "2.04) (both marked ‡): the machine changed between them, run `stn-export bench --again`",
        "1 paired comparison in the report against separate timings (marked ‡): eager of matmul-int8 in "
        "onnxruntime-cpu, batch 1; run `stn-export bench --again`",
    ]


def test_words_of_the_card():
    held = contradicting(busy(single(content(*QUIET))))
    whole = [word for word, _ in card(held)]
    assert list(dict.fromkeys(whole)) == [
        *("deploy", "latency", "throughput", "overhead", "accuracy", "verified", "confidence", "caveat"),
    ]
    words = {word for stage in STAGES.values() for word in stage}
    assert not words & {"ship", "cost", "equal", "sure", "mind"}


def test_a_card_is_read_on_eighty_columns(monkeypatch: pytest.MonkeyPatch):
    """Wrapped lines stand below their own sentence, and nothing is lost."""
    drawn = io.StringIO()
    target = Console(file=drawn, width=80, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(cli, "_aside", lambda: target)
    lines = card(failing(contradicting(content(*QUIET))))
    cli.card(lines)
    printed = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in drawn.getvalue().splitlines()]
    assert max(map(len, printed)) <= 80
    starts = [line[: cli.LABEL].strip() for line in printed]
    assert [start for start in starts if start] == [word for word, _ in lines]
    assert "" in starts
    assert " ".join(line[cli.LABEL :] for line in printed) == " ".join(sentence for _, sentence in lines)
