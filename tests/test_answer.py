"""The card: what is shipped, in which words, from which rows; and that each of its lines has a cause."""

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from stn_export.program.specs import Contract
from stn_export.results.card import STAGES, Answer, by_word, card, close, figures
from stn_export.results.choice import (
    Proved,
    choose,
    contest_of,
    portability_of,
    program,
    proved_by,
    shipped,
    time_of,
    told_apart,
)
from stn_export.results.contents import Held, held
from stn_export.results.text import by_reason, significant, span, verdict_words
from stn_export.run.manifest import Facts
from stn_export.run.records import Timing
from stn_export.run.schemas import ModelComparison
from tests import made_records
from tests.bench_rows import ENVIRONMENT, FEW, NETWORKS
from tests.made_records import in_contest, timed

EAGER, FOLDED, INT8, PLAIN_EAGER, PLAIN = FEW
PROVED = {
    ("stn", "program", "eager-cpu"): 0.9,
    ("stn", "folded-fp32", "onnxruntime-cpu"): 0.9,
    ("stn", "matmul-int8", "onnxruntime-cpu"): 0.895,
    ("cnn", "program", "eager-cpu"): 0.7,
    ("cnn", "plain-fp32", "onnxruntime-cpu"): 0.7,
}


@dataclass
class Directory:
    """A network of a run that is nowhere."""

    name: str
    artifacts: dict

    @property
    def facts(self) -> Facts:
        return Facts(*NETWORKS[self.name])

    def read(self) -> object:
        return type("Content", (), {"refused": {}})


def content(
    *rows: Timing,
    proved: Proved = PROVED,
    trainings: tuple[ModelComparison, ...] = (),
    failed: tuple[tuple[str, str, str], ...] = (),
) -> Held:
    sha = {each[:2]: each[3] for each in FEW}
    checks = [
        made_records.check(
            network=network,
            artifact=artifact,
            runner=runner,
            sha256=sha[network, artifact],
            precision=artifact.partition("-")[2] or "fp32",
            failure="the grid is off" if (network, artifact, runner) in failed else "",
            accuracy=accuracy,
            multiple=1e40 if (network, artifact, runner) in failed else 1.5,
        )
        for (network, artifact, runner), accuracy in proved.items()
    ]
    listed = {
        network: {
            each[1]: type("Artifact", (), dict(zip(("network", "name", "form", "sha256"), each, strict=True)))
            for each in FEW
            if each[0] == network
        }
        for network in NETWORKS
    }
    for artifacts in listed.values():
        for name, artifact in artifacts.items():
            artifact.file, artifact.precision, artifact.lowering, artifact.details = f"{name}.onnx", "int8", None, {}
            artifact.contract = Contract((), ())
    verified = made_records.verified(*checks, networks={"stn": made_records.network(labels=True)})
    return Held(
        Path("a/run"), [Directory(*each) for each in listed.items()], trainings, verified, list(rows), ENVIRONMENT
    )


def said(*rows: Timing, **more: object) -> dict[str, str]:
    return by_word(card(content(*rows, **more)))


WHOLE = (
    timed(EAGER, 9e-4),
    timed(FOLDED, 1e-4),
    timed(INT8, 2e-4),
    timed(INT8, 32e-4, 64),
    timed(PLAIN, 5e-5),
    in_contest(FOLDED, "overhead", 2.0),
    in_contest(FOLDED, "eager", 0.2),
    in_contest(INT8, "overhead", 2.5, 16),
    in_contest(INT8, "eager", 0.5, 64),
)


def test_the_whole_card():
    assert card(content(*WHOLE)) == [
        ("deploy", "stn/folded-fp32.onnx (runner onnxruntime-cpu)"),
        (
            "latency",
            "0.100 ms per example (0.0990 to 0.101), inputs in place; speed-up over eager PyTorch 5.00 × (4.85 to "
            "5.15)",
        ),
        (
            "throughput",
            "20,000 examples/s (19,802 to 20,202), inputs in place, at batch 64 by matmul-int8 in "
            "onnxruntime-cpu; speed-up over eager PyTorch 2.00 × (1.94 to 2.06)",
        ),
        ("overhead", "2.00 × (1.94 to 2.06) the latency of the plain CNN at batch 1"),
        ("accuracy", "90.00 % (eager PyTorch 90.00 %, plain CNN 70.00 %)"),
        (
            "verified",
            "5 of 5 checks against the float64 reference passed; largest float32 error 1.5 × that of eager PyTorch",
        ),
        ("confidence", "measurably faster than every other verified file; on a <fast> one, 1 thread"),
        ("caveat", "timed on one machine: another processor may rank the files differently"),
    ]
    found = figures(content(*WHOLE))["cpu"]
    assert (found["latency"]["artifact"], found["latency"]["p50"]) == ("folded-fp32", 1e-4)
    assert (found["throughput"]["artifact"], found["throughput"]["batch"]) == ("matmul-int8", 64)


def test_a_tie_is_said_and_goes_to_the_more_portable_file():
    found = said(timed(INT8, 1e-4), timed(FOLDED, 1.01e-4), timed(PLAIN, 1e-5))
    assert found["deploy"].startswith("stn/folded-fp32.onnx (runner onnxruntime-cpu)")
    assert found["confidence"].startswith(
        "not measurably faster than matmul-int8 in onnxruntime-cpu; the most portable of them is deployed; on a"
    )
    assert found["overhead"] == "not measured against the plain CNN in onnxruntime-cpu"


def test_doubt_is_said():
    found = said(
        timed(FOLDED, 1e-4),
        in_contest(FOLDED, "overhead", 1.02, noise=0.1),
        in_contest(FOLDED, "eager", 0.98, noise=0.1),
    )
    assert found["overhead"] == "1.02 × (0.918 to 1.12) the latency of the plain CNN at batch 1, inconclusive"
    assert found["latency"].endswith("speed-up over eager PyTorch 1.02 × (0.928 to 1.13), inconclusive")


def test_accuracy_is_of_what_is_deployed():
    found = said(timed(INT8, 1e-4))
    assert found["accuracy"] == "89.50 % (eager PyTorch 90.00 %, plain CNN 70.00 %)"
    assert "accuracy" not in said(timed(INT8, 1e-4), proved=dict.fromkeys(PROVED))


def test_portability_goes_by_format_precision_and_the_runtimes_that_refuse():
    gather, folded = ("stn", "gather-fp32", "onnx", "g"), FOLDED
    verdicts = {"gather": {"TensorRT": ("should run", "")}, "folded": {"TensorRT": ("refused", "")}}
    tied = [timed(EAGER, 1e-4), timed(folded, 1e-4), timed(gather, 1e-4), timed(INT8, 1e-4)]
    assert choose(tied, verdicts).row.artifact == "gather-fp32"
    assert choose(tied, {"folded": {"ncnn": ("runs, WRONG", "")}}).row.artifact == "gather-fp32"
    assert choose(tied, {}).row.artifact == "folded-fp32"
    assert choose(tied[::3], {}).row.artifact == "matmul-int8"
    compiled = ("stn", "aotinductor-fp32", "aotinductor", "h")
    assert choose([timed(compiled, 1e-4), timed(EAGER, 1e-4)], {}).row.artifact == "program"


@pytest.mark.parametrize(
    ("seconds", "low", "apart"),
    [
        (1.15e-4, 1.13e-4, True),  # 1.1172 times where the other's interval ends is 1.1284
        (1.15e-4, 1.128e-4, False),
        (1.06e-4, 1.05e-4, False),  # what two moments of a machine explain
    ],
)
def test_two_medians_are_told_apart_where_no_drift_explains_them(seconds: float, low: float, apart: bool):
    assert told_apart(timed(FOLDED, 1e-4), timed(INT8, seconds, p50_low=low)) == apart
    assert not told_apart(timed(FOLDED, 1e-4), timed(INT8, seconds, p50_low=low), pairs=15)


def test_what_is_proved_passed_and_is_of_todays_files():
    check = made_records.check(artifact="a", runner="fast", sha256="1", accuracy=0.9)
    failed, old = replace(check, runner="slow", failure="off"), replace(check, artifact="b", sha256="old")
    assert proved_by([check, failed, old], lambda check: check.sha256 == "1") == {("stn", "a", "fast"): 0.9}


def test_portability_of_a_lowering_is_that_of_its_first_float32_file():
    def file(lowering: str, said: str, precision: str = "fp32", **details: object) -> SimpleNamespace:
        return SimpleNamespace(lowering=lowering, precision=precision, details={"portability": {"a": said}} | details)

    unknown = SimpleNamespace(lowering="plain", precision="fp32", details={})
    files = [file("matmul", "int8's", "int8"), file("matmul", "first"), file("matmul", "second"), unknown]
    assert portability_of([*files, file("folded", "its")]) == {"matmul": {"a": "first"}, "folded": {"a": "its"}}


def test_a_file_has_one_time():
    rows = [
        in_contest(FOLDED, "default", 0.5) | {"seconds": 4e-4},
        in_contest(FOLDED, "eager", 0.5) | {"seconds": 3e-4},
        in_contest(FOLDED, "overhead", 2.0, 64) | {"seconds": 9e-3},
        timed(FOLDED, 2e-4, inputs="cold: 3 buffers"),
        timed(FOLDED, 1e-4),
        timed(INT8, 7e-4),
    ]
    assert {time_of(row, rows) for row in rows if row.batch == 1 and row.artifact == "folded-fp32"} == {1e-4}
    assert time_of(rows[2], rows) == 9e-3
    assert time_of(rows[0], rows[:2]) == 3e-4
    assert contest_of(rows, "overhead", rows[4]).batch == 64
    assert shipped(rows, {program(rows[4]): None}, {}).quick.row is rows[4]


def test_every_stage_closes_with_its_card(entered_run: Path, run: Path, capsys: pytest.CaptureFixture[str]):
    assert dict(card(held(entered_run), "train"))["next"] == f"stn-export export --run {entered_run}"
    close(run, "export")
    printed = capsys.readouterr().out
    listed = [json.loads(path.read_text(encoding="utf-8"))["artifacts"] for path in run.glob("*/manifest.json")]
    exported = [each for each in chain.from_iterable(listed) if each not in ("checkpoint", "program")]
    assert f"{len(exported)} files of 2 networks" in printed
    assert f"stn-export verify --run {run}" in printed
    top = (run / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()[:8]
    assert any("| **accuracy** |" in line for line in top)
    for stage in (*STAGES, None):
        assert card(held(run), stage)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.10712, 0.10714, "0.10712 to 0.10714"),
        (0.107, 0.109, "0.107 to 0.109"),
        (19802, 20202, "19,802 to 20,202"),
        (0.107120001, 0.107120002, "±5e-07 %"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_the_ends_of_an_interval_read_differently(low: float, high: float, text: str):
    assert span(low, high) == text


def test_words():
    assert [verdict_words(*each) for each in (("fp32", True), ("fp32", False), ("fp16", True, 0.9998))] == [
        "equal",
        "FAILED",
        "within fp16's bounds (99.98 % agree)",
    ]
    assert verdict_words("int8", True, float("nan")) == "within int8's bounds"
    assert significant(123456.7) == "123,457"
    reasons = {f"r{index}-cuda": "no GPU here" for index in range(17)} | {"a-cpu": "b"}
    assert by_reason(reasons) == ["a-cpu: b", "17 CUDA runners: no GPU here"]


def test_a_closed_card_goes_nowhere_without_a_model_card(entered_run: Path, capsys: pytest.CaptureFixture[str]):
    close(entered_run, "train")
    assert "next" in capsys.readouterr().out
    assert not (entered_run / "MODEL_CARD.md").exists()


def test_the_next_command_can_be_pasted():
    held = SimpleNamespace(exports=["one"], checks=(), rows=(), run=Path("run dir/my rün"))
    assert Answer.next(SimpleNamespace(held=held)) == "stn-export verify --run 'run dir/my rün'"
