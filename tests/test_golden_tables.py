"""The golden figures through RESULTS.md, the history of kept results, every form of printed tables and the docs."""

import csv
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.tools import proof, results_page, training_speed
from stn_export.audit import __main__ as audit_stage
from stn_export.bench import compare
from stn_export.bench.session import Session
from stn_export.bench.startup import summary
from stn_export.cli.tables import OUTPUT
from stn_export.onnx_graph.deployment import Audit, NodePlacement
from stn_export.report.history import history
from stn_export.results.choice import time_of
from stn_export.run.manifest import Facts
from stn_export.run.schemas import Trainings
from stn_export.train import __main__ as train
from stn_export.train.outcomes import Training
from stn_export.verify import __main__ as verify
from stn_export.verify import file_comparison
from tests import golden, made_records, readme
from tests.golden import CHECKS, CONTESTS, CURVES, GAINS, PARTS, STARTS, STEPS, TRAINED, Grid
from tests.test_golden import ends, inverse, micro, minus, percent, three

NONE = "–"
KEPT_PEAK = {"flops": {"fp32": 1e12}, "bytes": 1e12, "source": "measured: golden"}
WORK = {
    network: {
        str(batch): {"flops": flops * batch, "bytes_fused": fused, "bytes_unfused": unfused, "launches": launches}
        for batch in (1, 64)
    }
    for network, flops, fused, unfused, launches in (
        ("stn", 4_123_000, 262_144, 1_310_720, 21),
        ("cnn", 2_227_000, 196_608, 917_504, 10),
    )
}


def kept(path: Path, device: str, **more: object) -> Path:
    """A kept file of the golden rows of one device, whose files the golden checks proved."""
    found = [row for row in golden.rows() if row["device"] == device]
    proved = [list(name) for name, said in CHECKS.items() if not said[-1]]
    content = golden.bench_content(found) | {"work": WORK, "peak": KEPT_PEAK, "proved": proved, "portability": {}}
    if device == "cpu":
        content["machine_info"]["stn_export"]["gpu"] = None
    path.write_text(json.dumps(content | more), encoding="utf-8")
    return path


@pytest.fixture(scope=golden.scope)
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """RESULTS.md by chapter."""
    folder = tmp_path_factory.mktemp("kept")
    for device in ("cpu", "cuda"):
        kept(folder / f"golden-{device}-2026-01-31.json", device)
    chapters = results_page.document(folder).split("\n## ")
    return {text.split("\n", 1)[0].split("-")[1]: text for text in chapters[1:]}


def unit(micros: float) -> str:
    """A time in µs or ms, three digits."""
    value = Decimal(str(micros))
    said, name = (value / 1000, "ms") if value >= 1000 else (value, "µs")
    return f"{said:.3g} {name}"


TITLES = {
    "overhead": "What sampling costs: spatial transformer against plain CNN",
    "eager": "Against eager PyTorch",
    "default": "Compared with `torch.onnx.export` and `InferenceSession` with their defaults",
    "lowering": "Compared with the exporter's own decomposition",
}
CONTRADICTED = ("overhead", "matmul-int8", "onnxruntime-cpu", 1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_contests_in_results(device: str, document: dict[str, str]):
    tables = golden.read_markdown(document[device])
    for kind, title in TITLES.items():
        expected = {}
        for name, (ratio, low, high, verdict, disturbed, blocks) in CONTESTS.items():
            if (name[0], name[2].rpartition("-")[2]) != (kind, device):
                continue
            step = STEPS["stn", *name[1:]]
            own = name[1] == "matmul-int8" and name[3] == 1  # its own time is contradicted
            expected[f"{name[2]} {name[1]}", str(name[3])] = {
                "time": unit(step[0]) + "†" * step[-1] + "‡" * own,
                "ratio": f"{three(ratio)} ({ends(low, high)}){'†' * bool(disturbed)}{'‡' * (name == CONTRADICTED)}",
                "verdict": verdict,
                "disturbed blocks": f"{disturbed} of {blocks}",
            }
        if expected:
            assert tables[title].by("ours", "batch") == expected
            times = [STEPS["stn", line[0].split()[1], line[0].split()[0], int(line[1])] for line in tables[title].lines]
            batches = [int(line[1]) for line in tables[title].lines]
            assert sorted(zip(batches, times, strict=True)) == list(zip(batches, times, strict=True))
        else:
            assert title not in tables


def test_results_name_what_to_deploy(document: dict[str, str]):
    cpu, gpu = document["cpu"], document["cuda"]
    assert (
        "- For latency: onnxruntime-cpu folded-fp32, 152 µs (146 to 164 µs) for one example, host array to host array."
        in cpu
    )
    rate = 64 / 4190e-6
    assert f"- For throughput: onnxruntime-cpu matmul-int8, {rate:,.0f} examples/s at batch 64, inputs in place." in cpu
    assert (
        "- For latency: onnxruntime-cuda folded-fp32, 61.7 µs (58.1 to 69.4 µs)† for one example, inputs in place."
        in gpu
    )
    rate = 64 / 97.1e-6
    assert (
        f"- For throughput: onnxruntime-cuda folded-fp32, {rate:,.0f} examples/s at batch 64, inputs in place." in gpu
    )
    assert "Golden CPU (AVX2, FMA), 3 thread(s), 2026-01-31, commit 0123456789abcdef. torch 9.8.7." in cpu
    assert "Golden GPU, 3 thread(s), 2026-01-31" in gpu


def test_work_beside_the_fastest_time(document: dict[str, str]):
    """Read by its columns; which of them there are is not this test's affair."""
    tables = golden.read_markdown(document["cpu"]).values()
    [found] = [table.by("network", "batch") for table in tables if {"launches", "by"} <= set(table.columns)]
    fastest = {
        ("stn", 1): ("folded-fp32", "onnxruntime-cpu", ""),
        ("stn", 64): ("matmul-int8", "onnxruntime-cpu", ""),
        ("cnn", 1): ("plain-fp32", "onnxruntime-cpu", "‡"),
        ("cnn", 64): ("plain-fp32", "onnxruntime-cpu", ""),
    }
    assert len(found) == len(fastest)
    for (network, batch), (artifact, runner, marks) in fastest.items():
        work = WORK[network][str(batch)]
        row = found[golden.LABELS[network][0], str(batch)]
        assert row["by"] == f"{runner} {artifact}"
        assert row["fastest"] == unit(STEPS[network, artifact, runner, batch][0]) + marks
        assert row["launches"] == str(work["launches"])
        assert row["FLOPs"] == f"{work['flops'] / 1e6:,.1f} M"
        assert row["bytes"] == f"{work['bytes_fused'] / 2**20:.2f} / {work['bytes_unfused'] / 2**20:.2f} MiB"


def test_the_history_of_a_file(tmp_path: Path):
    for day, factor, commit in (("2026-02-02", 1.0, "second"), ("2026-01-01", 1.25, "first")):
        found = [dict(row) for row in golden.rows() if row["device"] == "cpu"]
        for row in found:
            if row.get("contest") == "eager":
                row |= {name: factor * row[name] for name in ("ratio", "ratio_low", "ratio_high")}
        content = golden.bench_content(found, git_commit=f"{commit}0123456789abcdef") | {"datetime": f"{day}T10:00:00"}
        (tmp_path / f"{commit}.json").write_text(json.dumps(content), encoding="utf-8")
    page = history(tmp_path)
    runs, section = page.sections
    assert section.title == "Golden CPU, 3 threads"
    picture, pair, table = section.blocks
    grid = Grid(list(table.columns), [[cell.text for cell in line] for line in table.rows])
    expected = {}
    for commit, factor in (("2026-01-01 first0123456", 1.25), ("2026-02-02 second012345", 1.0)):
        for (kind, artifact, runner, batch), (ratio, low, high, *_) in CONTESTS.items():
            if (kind, runner, batch) == ("eager", "onnxruntime-cpu", 1):
                ratios = [inverse(value) / Decimal(str(factor)) for value in (ratio, high, low)]
                expected[f"stn onnxruntime {artifact}", commit] = ratios
    commits = list(dict.fromkeys(commit for _, commit in expected))
    shown = grid.by("file", "commit")
    changes = {key: cells.pop("change") for key, cells in shown.items()}
    assert shown == {
        key: {"× eager PyTorch": f"{three(middle)} ×", "95 %": ends(low, high)}
        for key, (middle, low, high) in expected.items()
    }
    assert changes == {key: "–" if key[1] == commits[0] else "1.25 × the commit before" for key in expected}
    both = Grid(list(pair.columns), [[cell.text for cell in line] for line in pair.rows]).by("file")
    assert both == {
        file: {commit: f"{three(expected[file, commit][0])} ×" for commit in commits}
        for file in {key[0] for key in expected}
    }
    best = max(expected, key=lambda key: expected[key][0])
    [newest, oldest] = [[cell.text for cell in line] for line in runs.blocks[0].rows]
    assert (newest[0], newest[4], newest[5].partition(" ×")[0]) == (commits[1], best[0], three(expected[best][0]))
    assert (oldest[0], oldest[1]) == (commits[0], "first.json")
    assert [line[1] for line in grid.lines] == [commit for _, commit in expected]
    spec = picture.drawn.spec
    drawn = golden.keyed(spec["data"]["values"], "series", "commit")
    assert {key: (row["value"], row["low"], row["high"]) for key, row in drawn.items()} == {
        key: pytest.approx([float(each) for each in ratios]) for key, ratios in expected.items()
    }
    titles = {channel["title"] for name in ("value", "low") for channel in golden.channels(spec, name)}
    assert titles == {"times as fast as eager PyTorch"}
    assert [(layer["encoding"]["y"]["field"], layer["encoding"].get("y2")) for layer in spec["layer"]] == [
        ("low", {"field": "high"}),
        ("value", None),
        ("value", None),
        ("value", None),
    ]
    assert spec["encoding"]["x"]["field"] == "commit"


# Printed tables, in every form.


def from_json(text: str) -> dict[str, Grid]:
    tables = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {
        table["title"]: Grid(list(table["rows"][0]), [list(row.values()) for row in table["rows"]]) for table in tables
    }


def from_csv(text: str) -> dict[str, Grid]:
    """One table, which has no title."""
    heading, *lines = csv.reader(io.StringIO(text))
    return {"": Grid(heading, [[cell.removeprefix("'") for cell in line] for line in lines])}


READERS: dict[str, Callable[[str], dict[str, Grid]]] = {
    "json": from_json,
    "markdown": golden.read_markdown,
    "csv": from_csv,
}


@pytest.fixture(params=["json", "markdown", "csv"])
def printed(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Callable[[], object]], list[Grid]]:
    """What something prints in one of the forms, table by table."""
    monkeypatch.setattr(OUTPUT, "form", request.param)
    monkeypatch.setattr(OUTPUT, "tables", 0)

    def tables(call: Callable[[], object]) -> list[Grid]:
        capsys.readouterr()
        call()
        text = capsys.readouterr().out
        if request.param == "csv":  # tables follow on each other, an empty line between them
            return [grid for block in text.strip("\n").split("\n\n") for grid in from_csv(block).values()]
        return list(READERS[request.param](text).values())

    return tables


def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """One that timed the golden rows."""
    monkeypatch.setattr("stn_export.bench.session.left_out", lambda run, device: {})
    made = Session(Path("run"), "cpu", None, [])
    made.rows = [row for row in made_records.timings(golden.rows()) if row.device == "cpu"]
    return made


def test_what_bench_closes_with(printed: Callable, monkeypatch: pytest.MonkeyPatch):
    *contests, starts, profiled = printed(session(monkeypatch).close)
    assert len(contests) == len(TITLES)
    for kind, grid in zip(TITLES, contests, strict=True):
        expected = {
            (f"stn {runner} {artifact}", str(batch)): {
                "ms": micro(STEPS["stn", artifact, runner, batch][0]),
                "ratio": three(ratio),
                "95 % interval": ends(low, high),
                "verdict": verdict,
            }
            for (contest, artifact, runner, batch), (ratio, low, high, verdict, *_) in CONTESTS.items()
            if contest == kind and runner.endswith("cpu")
        }
        assert grid.by("backend", "batch") == expected
    assert starts.by("backend") == {
        f"{network} {runner} {artifact}": {
            "imports s": "1.234",
            "load s": f"{load / 1e3:.3f}",
            "first answer s": f"{first / 1e3:.3f}",
        }
        for (network, artifact, runner, _), (load, first, _) in STARTS.items()
    }
    names = ("localisation µs", "grid µs", "sampler µs", "rest µs")
    assert profiled.by("backend", "batch") == {
        (f"{network} {runner} {artifact}", str(batch)): {
            name: f"{micros:.0f}" for name, micros in zip(names, parts, strict=True)
        }
        for (network, artifact, runner, batch), parts in PARTS.items()
    }


def test_what_verify_shows(printed: Callable):
    content = golden.verify_content({name[:2]: " ".join(name[:2]) for name in CHECKS})
    [grid] = printed(lambda: verify.show(content))
    found = grid.by("artifact", "runner")
    for (network, artifact, runner), (errors, multiple, agreement, accuracy, _, failure) in CHECKS.items():
        int8, grids = artifact.endswith("int8"), [errors[1], errors[3]]
        assert found[f"{network}/{artifact}", runner] == {
            "grid px": NONE if None in grids else f"{max(grids):.1e}",
            "output": f"{max(errors[5:]):.1e}",
            "× eager": NONE if int8 else str(round(Decimal(str(multiple)), 1)),
            "agreement": f"{percent(agreement)}%",
            "accuracy": f"{percent(accuracy)}%",
            "repeats": "no" if artifact.startswith("decomposed") else "yes",
            "verdict": "FAILED" if failure else "within int8's bounds" if int8 else "equal",
        }
    assert len(found) == len(CHECKS)
    assert grid.lines[0][:2] == ["stn/decomposed-fp32", "openvino-cpu"]  # what failed comes first


def test_what_comparing_two_runs_shows(printed: Callable):
    found = [
        compare.Change("a row", "seconds", 1.234, 1.171, 1.321, "slower"),
        compare.Change("another", "contest: eager", 0.765, 0.712, 0.843, "faster"),
        compare.Change("a third", "ratio to eager", 1.012, 0.931, 1.094, "cannot tell"),
    ]
    [grid] = printed(lambda: compare.show(found, [], everything=True))
    assert grid.by("row") == {
        "a row": {"by": "seconds", "new/base": "1.234", "interval": "1.171 to 1.321", "verdict": "slower"},
        "another": {"by": "contest: eager", "new/base": "0.765", "interval": "0.712 to 0.843", "verdict": "faster"},
        "a third": {
            "by": "ratio to eager",
            "new/base": "1.012",
            "interval": "0.931 to 1.094",
            "verdict": "cannot tell",
        },
    }


def test_what_the_speed_of_training_shows(printed: Callable):
    rows = [
        {"what": "ours", "seconds": [3.21, 3.43, 3.11]},
        {
            "what": "the tutorial's",
            "seconds": [4.11, 4.35, 4.97],
            "baseline_seconds": [2.13, 2.29, 2.87],
            "ratio": 1.913,
            "ratio_low": 1.721,
            "ratio_high": 2.236,
        },
    ]
    [grid] = printed(lambda: training_speed.print_rows(rows))
    assert grid.by("what") == {
        "ours": {"seconds": "3.21", "against": NONE, "ratio (interval)": NONE},
        "the tutorial's": {"seconds": "4.35", "against": "2.29", "ratio (interval)": "1.91 (1.72 to 2.24)"},
    }


def test_what_two_files_show(printed: Callable):
    """Of two runs the worst output of each artifact, what differs before what does not."""
    rows = [
        file_comparison.Row("scores", "examples", 1.1e-5, 2.3e-5, 0.9987, "", "fp32: close", "stn/a", bound=3.1e-5),
        file_comparison.Row("boxes", "noise", 4.1e-5, 5.3e-5, 0.9971, "", "fp32: close", "stn/a", bound=6.1e-5),
        file_comparison.Row(
            "scores", "examples", 7.1e-2, 8.3e-2, 0.8123, "too far", "int8: wide", "stn/b", bound=9.1e-3
        ),
        file_comparison.Row("boxes", "noise", 9.7e-2, 8.9e-2, None, "", "int8: wide", "stn/b", bound=9.2e-1),
    ]
    [grid] = printed(lambda: file_comparison.show(("a.onnx", "b.onnx"), rows))
    names = ("inputs", "output", "max abs", "allowed", "max rel", "agreement", "verdict")
    assert grid.by("artifact") == {
        "stn/a": dict(zip(names, ("noise", "boxes", "4.1e-05", "6.1e-05", "5.3e-05", "99.71%", "equal"), strict=True)),
        "stn/b": dict(
            zip(names, ("examples", "scores", "7.1e-02", "9.1e-03", "8.3e-02", "81.23%", "DIFFERENT"), strict=True)
        ),
    }


def test_what_an_audit_shows(printed: Callable, capsys: pytest.CaptureFixture[str]):
    nodes = (
        NodePlacement("conv", "Conv", "", 18, "CUDAExecutionProvider", "it has a kernel", 1_234_567),
        NodePlacement("grid", "AffineGrid", "", 20, "CPUExecutionProvider", "it has none", None),
    )
    sums = {"initialiser_bytes": 345_678, "activation_bytes": 87_654, "macs": 1_234_567}
    found = Audit("cuda", True, nodes, (), capturable=False, capture_reason="a node on the CPU", **sums)
    [grid] = printed(lambda: audit_stage._show(found))
    names = ("nodes", "runs on", "multiply-adds", "why", "first node")
    assert grid.by("operator") == {
        "Conv": dict(zip(names, ("1", "CUDA", "1,234,567", "it has a kernel", "conv"), strict=True)),
        "AffineGrid": dict(zip(names, ("1", "CPU", "unknown", "it has none", "grid"), strict=True)),
    }
    audit_stage._show(found)
    said = capsys.readouterr().err.splitlines()
    assert "costs        at least 1,234,567 multiply-adds, 87,654 bytes of activations" in said
    assert "weights      345,678 bytes" in said


def test_what_training_closes_with(printed: Callable, monkeypatch: pytest.MonkeyPatch):
    """Two networks of three seeds each, one of one seed; the intervals are Student's."""
    names = dict(zip(TRAINED, readme.MODELS, strict=True))
    listed = [
        Training(
            names[name], int(seed), {"recipe": {"name": "quick"}}, history, "cpu", {}, Facts(name, multiply_adds=work)
        )
        for name, (*_, work) in TRAINED.items()
        for seed, curve in CURVES[name].items()
        for history in [tuple({"test_accuracy": each, "seconds": 1.0} for each in curve)]
        if name != "wide" or seed == "1"
    ]
    monkeypatch.setattr(train, "read_training", lambda directory: directory)
    cells = [SimpleNamespace(run=Path("golden"), directory=each) for each in listed]
    [grid] = printed(lambda: train.print_summary(cells))
    expected = {}
    for name, (*_, work) in TRAINED.items():
        values = [curve[-1] for seed, curve in CURVES[name].items() if name != "wide" or seed == "1"]
        row = {"multiply-adds": f"{work:,}", "seeds": f"{len(values)}", "sd, points": NONE}
        row |= {"test accuracy": f"{100 * statistics.fmean(values):.2f}%", "95 % interval of the mean": NONE}
        if len(values) > 1:
            reach = 4.302653 * statistics.stdev(values) / 3**0.5  # Student's t of two degrees of freedom
            low, high = statistics.fmean(values) - reach, min(statistics.fmean(values) + reach, 1.0)
            row |= {"sd, points": f"{100 * statistics.stdev(values):.2f}"}
            row |= {"95 % interval of the mean": f"{100 * low:.2f}% to {100 * high:.2f}%"}
        expected[names[name]] = row
    assert grid.by("model") == expected


TRIALS = [
    {
        "target": "stn-native",
        "trial": "A/A",
        "batch": 1,
        "found": 2,
        "passed": True,
        "rows": [
            {
                "ratio": 1.003,
                "ratio_low": 0.98,
                "ratio_high": 1.03,
                "verdict": "same",
                "blocks": 25,
                "disturbed_blocks": 3,
            },
            {"ratio": 0.987, "ratio_low": 0.93, "ratio_high": 1.09, "verdict": "cannot tell", "blocks": 26}
            | {"disturbed_blocks": 4},
            {"ratio": 1.021, "ratio_low": 1.01, "ratio_high": 1.05, "verdict": "slower", "blocks": 27}
            | {"disturbed_blocks": 1},
        ],
    }
]


def test_a_trial_of_the_benchmarks():
    row = dict(zip(proof.COLUMNS, proof.table_row(TRIALS[0]), strict=True))
    reach = sorted((each["ratio_high"] / each["ratio_low"]) ** 0.5 - 1 for each in TRIALS[0]["rows"])[1]
    expected = {
        "target": "stn-native",
        "trial": "A/A",
        "batch": "1",
        "planted": "1",
        "held": "2 of 3",
        "found": "–",
        "ratios": "0.987 to 1.021",
        "interval": f"±{100 * reach:.1f}%",
        "disturbed blocks": "8 of 78",
        "verdicts": "1 cannot tell, 1 same, 1 slower",
        "": "passed",
    }
    assert row | expected == row


# The docs' tables, from golden files.


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Kept files of the golden run in the place of those that are kept."""
    content = json.loads(kept(tmp_path / "golden.json", "cpu").read_text(encoding="utf-8"))
    run = json.loads(golden_trainings())["runs"][0]
    files = {"proof-*.json": {"trials": TRIALS}, "training-gain-cpu.json": {"runs": [run]}}
    files |= {name: {"runs": [run]} for name in ("training-tuned-cpu.json", "training-reference-cpu.json")}
    parity = [check.as_dict() for check in golden.checks({name[:2]: "" for name in CHECKS})]
    files["cifar10-reference-cpu.json"] = {"parity": parity}
    monkeypatch.setattr(readme, "bench", lambda: content)
    monkeypatch.setattr(readme, "kept", files.__getitem__)
    monkeypatch.setattr(readme, "LOWERINGS", ("folded-fp32", "decomposed-fp32"))
    monkeypatch.setattr(readme, "REDUCED", {"matmul-int8": "onnxruntime-cpu"})
    return content


def golden_trainings() -> str:
    """The golden trainings as a file, the third network under the name that the docs know."""
    run = golden.comparison()
    names = {"stn": readme.SUBJECT, "cnn": readme.PLAIN, "wide": readme.MATCHED}
    models = {names[name]: found for name, found in run.models.items()}
    differences = {names[name]: found for name, found in run.differences.items()}
    return Trainings([replace(run, models=models, differences=differences)], []).to_bytes().decode()


def cells(lines: list[str]) -> Grid:
    """A table of a page."""
    [grid] = golden.read_markdown("\n".join(["# a", *lines])).values()
    return grid


def test_contests_in_the_docs(docs: dict):
    found = readme.contests("overhead", ("STN", "CNN", "STN/CNN"))[1:-1]
    lines = [[cell for cell in line.split("  ") if cell.strip()] for line in found]
    heading, *rest = [[cell.strip() for cell in line] for line in lines]
    expected = {}
    for (kind, artifact, runner, batch), (ratio, low, high, *_) in CONTESTS.items():
        if kind == "overhead" and runner.endswith("cpu"):
            ours = 1.03 * STEPS["stn", artifact, runner, batch][0] / 1e3
            expected[f"stn {runner} {artifact}", str(batch)] = {
                "STN ms": f"{ours:#.3g}",
                "CNN ms": f"{ours / ratio:#.3g}",
                "STN/CNN": f"{ratio:.2f}",
                "95 % interval": f"{low:.2f} to {high:.2f}",
            }
    assert Grid(heading, rest).by("backend", "batch") == expected
    ratio, low, high, *_ = CONTESTS["eager", "matmul-int8", "onnxruntime-cpu", 64]
    said = f"{1 / ratio:.2f} × ({1 / high:.2f} to {1 / low:.2f})"
    assert readme.speedup("eager", "onnxruntime-cpu", "matmul-int8", 64) == said
    assert readme.speedup("eager", "native-cpu", "native-fp32", 1) == "not timed"


def test_errors_in_the_docs(docs: dict):
    found = cells(readme.errors()).by("artifact")
    for name in ("folded-fp32", "decomposed-fp32"):
        errors, multiple, *_ = CHECKS["stn", name, "onnxruntime-cpu"]
        assert found[name] == {
            "grid, px": f"{max(errors[1], errors[3]):.1e}",
            "log-probability": f"{max(errors[5:]):.1e}",
            "relative to eager PyTorch's error": f"{multiple:.1f}",
        }
    _, _, agreement, accuracy, pixels, _ = CHECKS["stn", "matmul-int8", "onnxruntime-cpu"]
    mean, worst = pixels[0]
    assert cells(readme.reduced()).by("artifact") == {
        "matmul-int8 (onnxruntime-cpu)": {
            "mean grid error, px": f"{mean:.4f}",
            "worst, px": f"{worst:.3f}",
            "agreement with float32": f"{percent(agreement)}%",
            "accuracy": f"{percent(accuracy)}%",
        }
    }


def test_trainings_in_the_docs(docs: dict):
    [row] = cells(readme.gain()).by("data set").values()
    labels = {name: readme.MODELS[model].label for name, model in zip(TRAINED, readme.MODELS, strict=True)}
    expected = {"seeds": "3"}
    for name, (mean, _, low, high, *_) in TRAINED.items():
        expected[labels[name]] = f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    for name, (mean, _, low, high, _) in GAINS.items():
        expected[f"gain over the {labels[name]}, points"] = minus(f"{mean:+.1f} ({low:.1f} to {high:.1f})")
    assert row == expected
    said = " ".join(readme.tuned())
    seeds = ", ".join(percent(curve[-1]) for curve in CURVES["stn"].values())
    mean, _, low, high, *_ = TRAINED["stn"]
    assert f"{percent(mean)} % on CIFAR-10" in said
    assert f"(seeds 0, 1, 2: {seeds}; 95 % interval of the mean {percent(low)} to {percent(high)})" in said
    work = {name: said[6] for name, said in TRAINED.items()}
    assert f"({work['wide']:,} against {work['stn']:,})" in " ".join(readme.costs())


def test_trainings_of_the_reference_in_the_docs(docs: dict):
    found = {line[0]: line[1:] for line in cells(readme.reference()).lines}
    for name, (mean, _, low, high, *_) in TRAINED.items():
        seeds = ", ".join(percent(curve[-1]) for curve in CURVES[name].values())
        assert found[golden.LABELS[name][0]] == [
            f"{seeds} %",
            f"{percent(mean)} %",
            f"{percent(low)} to {percent(high)}",
        ]
    gains = [
        100 * (ours[-1] - theirs[-1])
        for ours, theirs in zip(*(CURVES[n].values() for n in ("stn", "cnn")), strict=True)
    ]
    mean, _, low, high, _ = GAINS["cnn"]
    assert found["the transformer's gain, points"] == [
        ", ".join(f"{gain:.1f}" for gain in gains),
        f"{mean:.1f}",
        f"{low:.1f} to {high:.1f}",
    ]


def test_the_proof_in_the_docs(docs: dict):
    assert cells(readme.proof()).lines == [["stn-native", "A/A", "1", "1", "2 of 3", "–"]]


def test_one_file_has_one_time():
    """Its separate timing, wherever a contest timed it too."""
    rows = made_records.timings(golden.rows())
    for row in rows:
        if row.contest:
            name = row.network, row.artifact, row.runner, row.batch
            assert time_of(row, rows) * 1e6 == pytest.approx(STEPS[name][0])


def test_medians_and_not_means_of_several_starts():
    starts = [
        {"import_seconds": imports, "load_seconds": load, "first_seconds": first, "host_bytes": host, "threads": 2}
        for imports, load, first, host in ((1.1, 0.21, 0.031, 7), (1.3, 0.25, 0.034, 8), (1.9, 0.97, 0.088, 9))
    ]
    found = summary(starts)
    for name in ("import_seconds", "load_seconds", "first_seconds"):
        assert found[name] == statistics.median(each[name] for each in starts)
    assert (found["n"], found["host_bytes"]) == (3, 9)
