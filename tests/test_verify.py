import json
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from stn_export import cli
from stn_export.export.onnx import to_onnx
from stn_export.program.specs import Arrays, Contract
from stn_export.run.manifest import Artifact, NetworkDirectory
from stn_export.run.network import enter, write_examples
from stn_export.run.records import Check, Comparison
from stn_export.run.store import load_tensors
from stn_export.runners import RUNNERS, OnnxRuntime, Runner, RunnerSpec
from stn_export.runners.pytorch import Captured
from stn_export.verify import __main__ as verify
from stn_export.verify import points_file
from stn_export.verify.__main__ import JOURNAL, Journal
from stn_export.verify.checks import beyond, check_artifact, worst_errors
from stn_export.verify.oracle import Reference, check_weights, folded_weights, reference_of, weights_of
from tests import made_records
from tests.captured_modules import examples_of, program_of
from tests.test_truth import Several, Warp
from tests.zoo import ZOO, enter_zoo

PT2 = next(spec for spec in RUNNERS if spec.name == "pt2-cpu")


@pytest.mark.slow
def test_a_good_run_passes(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads((run / "verify.json").read_text(encoding="utf-8"))
    assert content["passed"] is True
    checks = {(check["network"], check["artifact"], check["runner"]): check for check in content["checks"]}
    for check in checks.values():
        assert check["deterministic"]
        assert len(check["comparisons"]) >= 10
        if check["precision"] == "fp32":
            assert check["multiple"] <= 4
            assert check["agreement"] == 1.0
    matmul = checks["stn", "matmul-fp32", "onnxruntime-cpu"]
    assert set(matmul["errors"]) == {"site0/theta", "site0/grid", "site0/warped", "log_probs"}
    assert len(matmul["comparisons"]) == 21
    assert matmul["grid_pixels"]["site0"]["worst"] < 1e-4
    assert list(content["networks"]["stn"]["points"]) == list(matmul["errors"])
    history = [json.loads(line) for line in (run / "stn" / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert matmul["accuracy"] == pytest.approx(history[-1]["test_accuracy"], abs=1e-3)
    assert set(load_tensors(run / "points.pt")["networks"]) == {"stn"}


@pytest.mark.slow
def test_a_verification_goes_on_where_it_was_interrupted(run: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["--run", str(run)]
    made, left = [], 3

    def check(artifact: Artifact, path: Path, spec: RunnerSpec, reference: Reference) -> Check:
        if len(made) == left:
            raise KeyboardInterrupt
        made.append((artifact.network, artifact.name, spec.name))
        return check_artifact(artifact, path, spec, reference)

    monkeypatch.setattr(verify, "check_artifact", check)
    (run / "verify.json").unlink(missing_ok=True)
    assert cli.run(verify.main, command) == 130
    assert not (run / "verify.json").exists()
    with (run / JOURNAL).open("a", encoding="utf-8") as file:
        file.write('{"half')
    left = 1000
    assert cli.run(verify.main, command) == 0
    content = json.loads((run / "verify.json").read_text(encoding="utf-8"))
    assert len(made) == len(set(made)) == len(content["checks"])
    assert content["passed"]
    assert not (run / JOURNAL).exists()


def test_a_journal_is_of_one_network_and_machine(tmp_path: Path):
    compared = {"examples": {"x": Comparison("", 1e-7, worst=(0, 3), excess=float("inf"))}}
    check = made_records.check(artifact="folded", sha256="abc", runner="eager-cpu", comparisons=compared)
    artifact = Artifact("folded", "folded.onnx", "stn", "onnx", "abc", Contract((), ()))
    Journal(tmp_path, "key").add(check)
    assert Journal(tmp_path, "key").of(artifact, "eager-cpu") == check
    assert Journal(tmp_path, "key").of(artifact, "pt2-cpu") is None
    assert Journal(tmp_path, "other").of(artifact, "eager-cpu") is None


@pytest.mark.slow
def test_small_networks_are_checked_on_one_thread(run: Path, monkeypatch: pytest.MonkeyPatch):
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(verify, "check_artifact", lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    try:
        for small in (verify.SMALL, 0):
            monkeypatch.setattr(verify, "SMALL", small)
            next(verify.planned(run, ["stn/folded-fp32"])[0].run())
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_only_what_is_named_is_checked(run: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(run), "--only", "stn/folded-fp32", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {check["artifact"] for check in checks} == {"folded-fp32"}
    assert not (run / "verify.json").exists()
    assert cli.run(verify.main, ["--run", str(run), "--only", "nothing"]) == 2
    assert "has no artifact or runner nothing" in capsys.readouterr().err


def test_a_runner_that_raises_is_a_failure(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def crash(*_: object) -> None:
        raise RuntimeError("no kernel for AffineGrid")

    monkeypatch.setattr(OnnxRuntime, "infer_impl", crash)
    assert cli.run(verify.main, ["--run", str(run), "--only", "affinegrid-fp32", "plain-fp32", "--fail-fast"]) == 1
    out, err = capsys.readouterr()
    assert "stn/affinegrid-fp32 on onnxruntime-cpu: RuntimeError: no kernel for AffineGrid" in err
    rows = [line for line in out.splitlines() if "onnxruntime-cpu" in line]
    assert "FAILED" in rows[0]  # failures come first
    assert "cnn/plain-fp32" not in out  # it stopped before


def test_no_runner_at_all_is_a_failure(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(verify, "RUNNERS", ())
    assert cli.run(verify.main, ["--run", str(run)]) == 1
    err = capsys.readouterr().err
    assert "stn/matmul-fp32 on onnxruntime-cpu: onnxruntime-cpu could not run the file" in err
    assert "stn/program on eager-cpu: eager-cpu could not run the file" in err
    assert json.loads((run / "verify.json").read_text(encoding="utf-8"))["passed"] is False


def test_a_runner_that_is_taken_away_turns_the_result_red(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    left = tuple(spec for spec in verify.RUNNERS if spec.name != "torchscript-cpu")
    monkeypatch.setattr(verify, "RUNNERS", left)
    assert cli.run(verify.main, ["--run", str(run), "--fail-fast"]) == 1
    assert "torchscript-cpu could not run the file" in capsys.readouterr().err


def test_a_missing_artifact_is_no_shorter_table(run: Path, stn: NetworkDirectory, capsys: pytest.CaptureFixture[str]):
    (stn.path / "matmul-fp32.onnx").unlink()
    assert cli.run(verify.main, ["--run", str(run)]) == 2
    assert "missing" in capsys.readouterr().err
    assert not (run / "verify.json").exists()


def test_an_empty_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.run(verify.main, ["--run", str(tmp_path)]) == 2
    assert "holds no network" in capsys.readouterr().err


def test_a_foreign_run_leaves_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    directory = enter_zoo(tmp_path, "TwoSteps")
    for each in (directory, NetworkDirectory(tmp_path / "TwoSteps-plain")):
        each.plan(("program",), {})
    networks = verify.planned(tmp_path, [])
    for network in networks:
        network.jobs[:] = [job for job in network.jobs if not job[2].slow]
    checks = verify.verify(networks, fail_fast=False)
    content = verify.result_of(networks, checks)
    verify.write(tmp_path, networks, content)
    verify.show(content)
    out = capsys.readouterr().out
    assert out.count(" equal") == len(checks) == 6
    said = json.loads(json.dumps(content.as_dict(), allow_nan=False))["networks"]["TwoSteps"]
    assert said["points"]["site1/grid"]["site"] == "site1"
    kept = load_tensors(tmp_path / "points.pt")["networks"]
    assert set(kept) == {"TwoSteps"}
    assert kept["TwoSteps"]["program"] == directory.listed("program").sha256
    assert set(kept["TwoSteps"]["sites"]) == {"site0", "site1"}
    assert kept["TwoSteps"]["sites"]["site1"]["theta"].shape == (24, 2, 3)


def checked(tmp_path: Path, network: str, spec: RunnerSpec = PT2) -> Check:
    foreign = ZOO[network]
    program, examples = foreign.program(), foreign.examples()
    artifact = enter(NetworkDirectory(tmp_path / network), program, write_examples(tmp_path, examples), label="")
    return check_artifact(artifact, tmp_path / network / artifact.file, spec, reference_of(program, examples))


@pytest.mark.parametrize("network", ["FlowWarp", "DeformableAttention", "Glimpses", "TextRectifier", "NoSampler"])
def test_a_program_equals_itself(network: str, tmp_path: Path):
    check = checked(tmp_path, network)
    assert not check.failure
    assert 0 < check.multiple <= 1.0  # its worst may be on pictures of one grey
    assert set(check.grid_pixels) == {f"site{index}" for index in range(ZOO[network].sites)}
    content = check.as_dict()
    assert (content["accuracy"] is None) == (ZOO[network].examples().labels is None)
    json.dumps(content, allow_nan=False)


class Wrong(Runner):
    """Says nothing when it fails."""

    def load(self, path: Path) -> None:
        raise RuntimeError

    infer_impl = bind_one = read = None


def test_a_runner_that_cannot_be_opened_is_a_failed_check(tmp_path: Path):
    wrong = type("Wrong", (Wrong,), {"__abstractmethods__": frozenset()})
    assert checked(tmp_path, "NoSampler", replace(PT2, load=wrong)).failure == "RuntimeError"


OUTPUTS = ["own", "mixed", "whole batch", "best"]
Change = Callable[[dict[str, np.ndarray]], object]


def spoilt(change: Change) -> type[Captured]:
    """A runner of programs whose results are changed in place."""

    class Spoilt(Captured):
        def points(self, feeds: Arrays) -> Arrays:
            results = {name: value.copy() for name, value in super().points(feeds).items()}
            change(results)
            return results

        infer = points

    return Spoilt


@pytest.fixture(scope="module")
def reference() -> Reference:
    program = program_of(Several(), {"values": ("N", 5)}, OUTPUTS)
    return reference_of(program, examples_of(300, values=torch.linspace(0, 3, 1500).view(5, 300).T.contiguous()))


def judged(
    reference: Reference, folder: Path, change: Change, precision: str = "fp32", batch: int | None = None
) -> Check:
    path = folder / "program.pt2"
    path.write_bytes(reference.program.to_bytes({}))
    contract = reference.contract.fixed({"N": batch}) if batch else reference.contract
    artifact = Artifact("program", path.name, "several", "pt2", "0", contract, precision=precision)
    return check_artifact(artifact, path, replace(PT2, load=spoilt(change)), reference)


def nothing(results: dict[str, np.ndarray]) -> None:
    pass


def test_outputs_of_every_kind_pass(reference: Reference, tmp_path: Path):
    check = judged(reference, tmp_path, nothing)
    assert not check.failure
    assert check.errors["best"] == 0.0
    assert check.agreement is None
    assert {name for _, _, name in check.differing} <= {"own"}  # of no other output an example has its own error


def test_whole_numbers_are_exact(reference: Reference, tmp_path: Path):
    def one_more(results: dict[str, np.ndarray]) -> None:
        results["best"][-1] += 1

    assert (
        "examples ×1: first wrong at best: element (0,) is 1.00e+00 off"
        in judged(reference, tmp_path, one_more).failure
    )
    floats = judged(reference, tmp_path, lambda results: results.update(best=results["best"].astype(np.float32)))
    assert "first wrong at best: type float32 instead of int64" in floats.failure


def test_a_fixed_batch_is_filled_and_what_is_not_an_examples_own_is_left_out(reference: Reference, tmp_path: Path):
    check = judged(reference, tmp_path, nothing, batch=4)
    assert not check.failure
    assert set(check.errors) == {"own", "best"}
    assert check.notes == ("mixed: not cut into batches of 4", "whole batch: not cut into batches of 4")


def test_what_only_the_last_examples_show_is_seen(reference: Reference, tmp_path: Path):
    def lost(results: dict[str, np.ndarray]) -> None:
        if len(results["own"]) == 300:
            results["own"][299] = np.nan

    assert judged(reference, tmp_path, lost).failure == "own over the examples: 5 of 1500 elements are not finite"


def test_an_answer_to_what_is_not_finite_is_a_failure(tmp_path: Path):
    class Answering(Captured):
        def infer(self, feeds: Arrays) -> Arrays:
            return self.infer_impl(feeds)

    check = checked(tmp_path, "NoSampler", replace(PT2, load=Answering))
    assert check.failure == "images of nan are accepted instead of refused"


def test_int8_without_labels_is_judged_by_its_root_mean_square(reference: Reference, tmp_path: Path):
    def louder(by: float) -> Change:
        return lambda results: results["own"].__imul__(by)

    assert not judged(reference, tmp_path, louder(1.1), "int8").failure
    assert (
        "own is 30.00% off in root mean square, more than 20%"
        in judged(reference, tmp_path, louder(1.3), "int8").failure
    )
    assert "first wrong at own" in judged(reference, tmp_path, louder(1.1)).failure


def test_a_runner_that_is_not_repeatable_is_told(reference: Reference, tmp_path: Path):
    turn = cycle([0.0, 1e-7])
    check = judged(
        reference, tmp_path, lambda results: results["own"].__iadd__(np.float32(next(turn) * results["own"].max()))
    )
    assert not check.deterministic
    assert not check.failure


def test_what_is_not_finite_is_infinitely_wrong_whatever_the_other_challenges_say():
    broken, fine = Comparison("3 of 4 elements are not finite"), Comparison("", max_abs=1e-6)
    assert worst_errors({"a": {"y": fine, "z": fine}, "b": {"y": broken}, "c": {"y": fine}}) == {"y": np.inf, "z": 1e-6}


@pytest.mark.parametrize(
    ("wrong", "count", "too_many"), [(1, 24, False), (2, 24, True), (2, 2000, False), (3, 2000, True)]
)
def test_of_few_examples_one_may_differ(wrong: int, count: int, too_many: bool):
    assert beyond(count * (wrong / count), 1 - 0.999, count) is too_many


class Normalised(nn.Module):
    """A convolution, with a bias or without, before a batch normalisation that is not a fresh one's."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=bias), nn.BatchNorm2d(3)
        for value in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
            nn.init.uniform_(value, 0.5, 2.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_may_be_folded_but_no_others(bias: bool, tmp_path: Path):
    program, path = program_of(Normalised(bias), {"images": ("N", 1, 8, 8)}, ["maps"]), tmp_path / "folded.onnx"
    onnx.save(to_onnx(program, "plain"), path)
    shown = OnnxRuntime(path, "cpu", program.contract).weights()
    expected, folded = weights_of(program), folded_weights(program)
    assert np.abs(shown["conv.weight"] - expected["conv.weight"]).max() > 0.01  # the exporter does fold
    assert check_weights(shown, expected, folded) == check_weights(expected, expected, folded) == ""
    for name in set(shown) & set(expected):
        other = shown | {name: shown[name] + np.float32(1e-4)}
        assert check_weights(other, expected, folded).startswith(f"first wrong at weights: {name} is ")
        assert "has shape" in check_weights(shown | {name: shown[name][:1]}, expected, folded)


def test_examples_that_differ_most_are_shown_once():
    def check(precision: str, *differing: tuple[int, float, str]) -> Check:
        return made_records.check(precision=precision, differing=differing)

    checks = [check("fp32", (12, 2.0, "y"), (3, 1.0, "y")), check("fp16", (30, 1.0, "y"), (12, 5.0, "y"))]
    checks += [check("fp32", (40, 3.0, "y"))]
    assert points_file.chosen(50, checks) == [*range(10), 40, 12, 30]
    assert points_file.chosen(4, []) == [0, 1, 2, 3]


def test_pictures_become_bytes():
    assert points_file.as_bytes(torch.tensor([[[[-1.0, 0.0, 1.0]]]]), (-1.0, 1.0)).tolist() == [[[[0, 128, 255]]]]
    two = torch.tensor([10, 20], dtype=torch.uint8).view(1, 2, 1, 1)
    assert points_file.as_bytes(two, (0.0, 255.0)).tolist() == [[[[15]]]]
    assert points_file.as_bytes(torch.full((1, 1, 1, 1), 7.0), (7.0, 7.0)).tolist() == [[[[0]]]]


def test_points_of_a_site_with_aligned_corners():
    program = program_of(Warp(align_corners=True), {"images": ("N", 1, 12, 20), "theta": ("N", 2, 3)}, ["warped"])
    zoomed = torch.tensor([[1.0, 0, 0], [0, 1, 0]]) * torch.linspace(0.5, 2.0, 10).view(-1, 1, 1)
    kept = points_file.points_of(reference_of(program, examples_of(images=(1, 12, 20), theta=zoomed)), [], "digest")
    site = kept["sites"]["site0"]
    assert site["image_size"] == [12, 20]
    assert site["theta"].equal(zoomed)
    assert site["outside"][0] == 0
    assert site["outside"][3] == 0  # as large as the image: the corners' centres lie within its edges
    assert site["outside"][-1] == pytest.approx(1 - 10 * 6 / 240)  # half as many columns and rows are left
    assert kept["pictures"]["warped"]["site0"].shape == kept["pictures"]["input"].shape == (10, 1, 12, 20)
    assert kept["program"] == "digest"
