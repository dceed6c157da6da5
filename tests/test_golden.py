"""The golden run through the card, all three reports and every chart: each cell by its row and its column.

What is expected is worked out here from the figures of ``tests.golden``, in decimals, by none of the package's code.
"""

import json
import re
import statistics
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.report import __main__ as report
from stn_export.report import page
from stn_export.results.card import by_word, card, top
from stn_export.results.contents import held
from stn_export.run.manifest import VERIFY_FILE, NetworkDirectory
from tests import golden
from tests.golden import CHECKS, CONTESTS, CURVES, GAINS, PARTS, REQUESTS, STARTS, STEPS, TRAINED, Grid, keyed

NONE = "–"
PARITY = ("artifact", "runner")
EAGER = ("program", "eager-cpu")
CONTRADICTED = {("stn", "matmul-int8", "onnxruntime-cpu", 1), ("cnn", "plain-fp32", "onnxruntime-cpu", 1)}
SINGLE = "Latency at batch 1, and start-up"
EVERY_RUNTIME = "Every float32 lowering in every runtime"


@dataclass(frozen=True)
class Shown:
    """The reports of the golden run, read back."""

    printed: str
    markdown: dict[str, Grid]
    html: golden._Html
    content: dict

    def table(self, title: str) -> Grid:
        """A table that both pages show alike; Markdown says beside a bad word what HTML shows when it is pointed at."""
        ours, theirs = self.markdown[title], self.html.tables[title]
        assert ours.columns == theirs.columns
        assert [[cell.partition(": ")[0] for cell in line] for line in ours.lines] == [
            [cell.partition(": ")[0] for cell in line] for line in theirs.lines
        ]
        return ours

    def chart(self, title: str) -> dict:
        """The description of a chart on the page."""
        return self.html.charts[title]

    def values(self, title: str) -> list[dict]:
        """What a chart draws."""
        return self.chart(title)["data"]["values"]


@pytest.fixture(scope=golden.scope)
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    run = golden.write(tmp_path_factory.mktemp("golden") / "digits")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "to_svg", lambda chart: "<svg></svg>")  # how a description is drawn others try
        patch.setattr(page, "to_png", lambda chart: b"\x89PNG")
        patch.setattr(cli, "card", lambda lines: said.extend(f"{word}: {text}" for word, text in lines))
        assert cli.run(report.main, ["--run", str(run)]) == 0
    markdown = golden.read_markdown((run / "report.md").read_text(encoding="utf-8"))
    html = golden.read_html((run / "report.html").read_text(encoding="utf-8"))
    return Shown("\n".join(said), markdown, html, json.loads((run / "report.json").read_text(encoding="utf-8")))


def three(value: object) -> str:
    """Three significant digits, never fewer than all whole ones, thousands with commas."""
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    places = max(0, 2 - number.adjusted())
    return f"{round(number, places):,}" if places else f"{number:,.0f}"


def ends(low: object, high: object) -> str:
    """An interval."""
    said = three(low), three(high)
    assert said[0] != said[1]
    return " to ".join(said)


def micro(value: float | None) -> str:
    """Microseconds in milliseconds."""
    return NONE if value is None else three(Decimal(str(value)) / 1000)


def ranged(p50: float, low: float, high: float) -> str:
    """A time in microseconds with its interval, in milliseconds."""
    return f"{micro(p50)} ({ends(Decimal(str(low)) / 1000, Decimal(str(high)) / 1000)})"


def inverse(value: float) -> Decimal:
    """Their time by ours."""
    return 1 / Decimal(str(value))


def speedup(kind: str, artifact: str, runner: str, batch: int) -> str:
    """How many times as fast a contest found a file, with marks."""
    ratio, low, high, _, disturbed, _ = CONTESTS[kind, artifact, runner, batch]
    return f"{three(inverse(ratio))} × ({ends(inverse(high), inverse(low))}){'†' * bool(disturbed)}"


def overhead(artifact: str, runner: str, batch: int, contradicted: bool = False) -> str:
    """How many times as long a contest found a file to take, with marks."""
    ratio, low, high, _, disturbed, _ = CONTESTS["overhead", artifact, runner, batch]
    return f"{three(ratio)} × ({ends(low, high)}){'†' * bool(disturbed)}{'‡' * contradicted}"


def latency(artifact: str, runner: str) -> str:
    """The time of one example: of a request where one was timed."""
    name = ("stn", artifact, runner, 1)
    p50, low, high, *_, disturbed = REQUESTS.get(name, STEPS[name])
    said = f"{micro(p50)} ms per example ({ends(Decimal(str(low)) / 1000, Decimal(str(high)) / 1000)})"
    return said + "†" * disturbed + (", host array to host array" if name in REQUESTS else ", inputs in place")


def rate(artifact: str, runner: str, batch: int) -> str:
    """Examples a second."""
    p50, low, high, *_, disturbed = STEPS["stn", artifact, runner, batch]
    per = [batch / (Decimal(str(each)) / 10**6) for each in (p50, high, low)]
    return f"{three(per[0])} examples/s ({ends(*per[1:])}){'†' * disturbed}, inputs in place"


def test_the_figures_all_differ():
    """So that one in the place of another reads differently."""
    listed = [time for said in STEPS.values() for time in said[:5] if time]
    listed += [value for said in CONTESTS.values() for value in said[:3]]
    listed += [value for times in STARTS.values() for value in times[:2]]
    listed += [value for parts in PARTS.values() for value in parts if value]
    assert len(set(listed)) == len(listed)


def test_the_card_quotes_the_fastest_device_and_the_contests_of_its_own_files(shown: Shown):
    said = dict(reversed(shown.html.terms))  # of caveats the first
    ort, gpu = ("folded-fp32", "onnxruntime-cpu"), ("folded-fp32", "onnxruntime-cuda")
    assert said == said | {
        "deploy": "stn/folded-fp32.onnx (runner onnxruntime-cuda)",
        "latency": f"{latency(*gpu)}; speed-up over eager PyTorch {speedup('eager', *gpu, 1)}",
        "throughput": f"{rate(*gpu, 64)}, at batch 64; speed-up over eager PyTorch {speedup('eager', *gpu, 64)}",
        "overhead": f"{overhead(*gpu, 1)} the latency of the plain CNN at batch 1",
        "verified": "8 of 9 checks against the float64 reference passed; largest float32 error 3.5 × that of eager "
        "PyTorch",
    }
    accuracies = [percent(CHECKS[name][3]) for name in (("stn", *gpu), ("stn", *EAGER), ("cnn", *EAGER))]
    assert said["accuracy"] == "{} % (eager PyTorch {} %, plain CNN {} %)".format(*accuracies)
    assert "Golden GPU, 1 thread, TF32 off" in said["confidence"]
    disturbed = [said for said in STEPS.values() if said[-1]] + [said for said in REQUESTS.values() if said[-1]]
    blocks = [(said[4], said[5]) for said in CONTESTS.values()]
    counts = f"{len(disturbed)} of 19 timings and {sum(b[0] for b in blocks)} of {sum(b[1] for b in blocks)} blocks"
    assert f"disturbed by other work: {counts}" in [text.partition(" (")[0] for _, text in shown.html.terms]
    lines = [tuple(line) for line in shown.content["card"]]
    assert lines == shown.html.terms == [tuple(line.split(": ", 1)) for line in shown.printed.splitlines()]
    words = shown.markdown["Spatial transformer against plain CNN: digits"]
    assert [tuple(line) for line in words.lines] == [(f"**{word}**", text) for word, text in lines]
    assert latency(*ort) not in said["latency"]


def test_the_answer_for_scripts_holds_each_device_s_own_rows(shown: Shown):
    chosen = {
        ("cuda", "latency"): ("stn", "folded-fp32", "onnxruntime-cuda", 1),
        ("cuda", "throughput"): ("stn", "folded-fp32", "onnxruntime-cuda", 64),
        ("cpu", "latency"): ("stn", "folded-fp32", "onnxruntime-cpu", 1),
        ("cpu", "throughput"): ("stn", "matmul-int8", "onnxruntime-cpu", 64),
    }
    answer = shown.content["answer"]
    assert list(answer) == ["cuda", "cpu"]  # the faster one first
    for (device, purpose), name in chosen.items():
        found = answer[device][purpose]
        assert tuple(found[key] for key in ("network", "artifact", "runner", "batch")) == name
        assert [found[key] * 1e6 for key in ("p50", "p50_low", "p50_high")] == pytest.approx(
            REQUESTS.get(name, STEPS[name])[:3]
        )


def test_what_to_deploy(shown: Shown):
    files = {
        ("GPU", "latency"): ("folded-fp32", "onnxruntime-cuda", 1),
        ("GPU", "throughput"): ("folded-fp32", "onnxruntime-cuda", 64),
        ("CPU", "latency"): ("folded-fp32", "onnxruntime-cpu", 1),
        ("CPU", "throughput"): ("matmul-int8", "onnxruntime-cpu", 64),
    }
    table = shown.table("What to deploy")
    assert [tuple(line[:2]) for line in table.lines] == list(files)
    for (device, purpose), (artifact, runner, batch) in files.items():
        mixed = ", both with inputs in place" if ("stn", artifact, runner, batch) in REQUESTS else ""
        assert table.by("on the", "for")[device, purpose] == {
            "deploy": f"{artifact} in {runner}",
            "batch": str(batch),
            "performance": latency(artifact, runner) if purpose == "latency" else rate(artifact, runner, batch),
            "speed-up over": f"eager PyTorch {speedup('eager', artifact, runner, batch)}" + mixed,
            "not measurably faster than": "nothing",
        }


def test_against_the_plain_network(shown: Shown):
    found = shown.table("The spatial transformer against the plain CNN").by("artifact", "runner")
    cpu, gpu = ("folded-fp32", "onnxruntime-cpu"), ("folded-fp32", "onnxruntime-cuda")
    assert {name: (row["batch 1"], row["batch 64"]) for name, row in found.items()} == {
        cpu: (overhead(*cpu, 1), overhead(*cpu, 64)),
        ("matmul-int8", "onnxruntime-cpu"): (overhead("matmul-int8", "onnxruntime-cpu", 1, contradicted=True), NONE),
        gpu: (overhead(*gpu, 1), NONE),
    }
    assert {row["nodes on GPU / CPU"] for row in found.values()} == {"26 / 0"}


def test_against_other_baselines(shown: Shown):
    kinds = {"eager": "eager", "default": "default export", "lowering": "exporter's lowering"}
    found = shown.table("Speed-up over the baselines").by("artifact", "runner")
    expected: dict[tuple, dict] = {}
    for (kind, artifact, runner, batch), said in CONTESTS.items():
        if kind in kinds:
            cells = expected.setdefault((f"stn/{artifact}", runner), {})
            cells[f"{kinds[kind]}, batch {batch}"] = f"{speedup(kind, artifact, runner, batch)} {said[3]}"
    assert {name: {column: cell for column, cell in row.items() if cell != NONE} for name, row in found.items()} == (
        expected
    )


def test_one_example(shown: Shown):
    table = shown.table(SINGLE)
    found = table.by("artifact", "runner")
    names = [name[:3] for name in STEPS if name[3] == 1]
    assert set(found) == {(f"{network}/{artifact}", runner) for network, artifact, runner in names}
    for network, artifact, runner in names:
        row, name = found[f"{network}/{artifact}", runner], (network, artifact, runner, 1)
        p50, low, high, p90, p99, file, _, gpu, disturbed = STEPS[name]
        marks = "†" * disturbed + "‡" * (name in CONTRADICTED)
        cold, request = golden.COLD.get(name), REQUESTS.get(name)
        start = STARTS.get(name)
        assert row == {
            "p50, ms": micro(p50) + marks,
            "95 %": ends(Decimal(str(low)) / 1000, Decimal(str(high)) / 1000),
            "p90": micro(p90),
            "p99": micro(p99),
            "cold": ranged(*cold) if cold else NONE,
            "request": ranged(*request[:3]) + "†" * request[3] if request else NONE,
            "load": three(start[0]) if start else NONE,
            "first answer": three(start[1]) if start else NONE,
            "file, KiB": f"{file}" if file >= 100 else f"{file}.0",
            "host, MiB": f"{start[2]}.0" if start else NONE,  # a fresh process's, not the row's own
            "GPU, MiB": NONE if gpu is None else f"{gpu}.0",
        }, name
    order = [(line[0].partition("/")[0], line[1].rpartition("-")[2]) for line in table.lines]
    assert list(dict.fromkeys(order)) == [("stn", "cpu"), ("cnn", "cpu"), ("stn", "cuda"), ("cnn", "cuda")]


def test_parity(shown: Shown):
    found = shown.table("Parity with PyTorch").by(*PARITY)
    for (network, artifact, runner), (errors, multiple, agreement, accuracy, pixels, failure) in CHECKS.items():
        row, int8 = found[f"{network}/{artifact}", runner], artifact.endswith("int8")
        grids = [errors[1], errors[3]]
        verdict = "FAILED" if failure else "within int8's bounds" if int8 else "equal"
        assert row == {
            "grid, px": NONE if None in grids else f"{max(grids):.1e}",
            "mean grid error, px": f"{max(mean for mean, _ in pixels):.4f}" if int8 else NONE,
            "outputs": f"{max(errors[5:]):.1e}",
            "× eager": NONE if int8 else str(round(Decimal(str(multiple)), 1)),
            "agreement": f"{Decimal(str(agreement)) * 100:.2f} %",
            "accuracy": f"{Decimal(str(accuracy)) * 100:.2f} %",
            "verdict": f"{verdict}: {failure}" if failure else verdict,
        }
    assert len(found) == len(CHECKS)


def test_errors_by_site(shown: Shown):
    found = shown.table("stn: sites, lowerings and runners").by("lowering", "runner")
    names = {"program": "pt2", "folded-fp32": "folded", "decomposed-fp32": "decomposed", "matmul-int8": "matmul int8"}
    expected = {
        (names[artifact], runner): {
            "site0, grid px": f"{errors[1]:.1e}",
            "site1, grid px": f"{errors[3]:.1e}",
            "outputs": f"{max(errors[5:]):.1e}",
        }
        for (network, artifact, runner), (errors, *_) in CHECKS.items()
        if network == "stn"
    }
    assert found == expected


def test_theta_in_pixels(shown: Shown):
    found = shown.table("spatial transformer, site0 in line 0, over 4 examples").by("theta")
    sx, tx, sy, ty = zip(*golden.THETAS, strict=True)
    values = {
        "rotation, degrees": [0.0] * 4,
        "scale x": sx,
        "scale y": sy,
        "shear": [0.0] * 4,
        "shift x, pixels": [47 * each for each in tx],  # half of 94
        "shift y, pixels": [12 * each for each in ty],  # half of 24
        "output grid outside the image, %": [100 * each for each in golden.OUTSIDE],
    }
    for name, known in values.items():
        ordered = sorted(known)
        spread = {"mean": statistics.fmean(known), "sd": statistics.stdev(known), "median": statistics.median(known)}
        spread["5 %"] = ordered[0] + 0.15 * (ordered[1] - ordered[0])  # 0.05 of three steps
        spread["95 %"] = ordered[2] + 0.85 * (ordered[3] - ordered[2])
        shown_as = {column: float(cell.replace("−", "-")) for column, cell in found[name].items()}
        assert shown_as == pytest.approx(spread, abs=0.0051), name


def percent(value: float) -> str:
    return f"{100 * Decimal(str(value)):.2f}"


def minus(text: str) -> str:
    return text.replace("-", "−")


def test_trainings(shown: Shown):
    found = shown.table("Trainings").by("trained on", "model")
    for name, (mean, deviation, low, high, seconds, parameters, work) in TRAINED.items():
        assert found["golden, quick, 2 epochs", golden.LABELS[name][0]] == {
            "parameters": f"{parameters:,}",
            "multiply-adds": f"{work:,}",
            "seeds": "3",
            "time a seed": f"{statistics.median(seconds):.0f} s, cpu",
            "test accuracy": f"{percent(mean)} %",
            "sd": percent(deviation),
            "95 % interval": f"{percent(low)} to {percent(high)} %",
        }


def test_gains(shown: Shown):
    found = shown.table("Does the transformer help?").by("trained on", "against the")
    assert found == {
        ("golden, quick, 2 epochs", golden.LABELS[name][0]): {
            "seeds": "3",
            "gain, points": minus(f"{mean:+.2f}"),
            "sd": f"{deviation:.2f}",
            "95 % interval": minus(f"{low:+.2f} to {high:+.2f}"),
            "that is": said,
        }
        for name, (mean, deviation, low, high, said) in GAINS.items()
    }


# Charts: what is drawn where, from which values.


def placed(spec: dict) -> dict[str, dict[str, object]]:
    """By kind of mark: the field, or the value, of each channel; what layers share is each layer's."""
    found = {}
    for layer in spec.get("layer", [spec]):
        mark = layer["mark"] if isinstance(layer["mark"], str) else layer["mark"]["type"]
        encoding = (spec.get("encoding", {}) | layer.get("encoding", {})) if "layer" in spec else spec["encoding"]
        shape = layer["mark"].get("shape", "") if isinstance(layer["mark"], dict) else ""
        found[f"{mark} {shape}".strip()] = {
            channel: said["field"] for channel, said in encoding.items() if isinstance(said, dict) and "field" in said
        }
    return found


def axes(spec: dict, *fields: str) -> set[tuple[str, str]]:
    """The titles and scales of the channels that show these fields."""
    return {
        (channel.get("title"), channel["scale"]["type"])
        for name in fields
        for channel in golden.channels(spec, name)
        if "scale" in channel
    }


BATCHED = {"cpu": "the CPU", "cuda": "the GPU"}
BEST = {  # by device and network: what is drawn of each runner
    "Latency": {
        ("cpu", "eager program", "spatial transformer"): ("stn", "program", "eager-cpu"),
        ("cpu", "onnxruntime folded-fp32", "spatial transformer"): ("stn", "folded-fp32", "onnxruntime-cpu"),
        ("cpu", "eager program", "plain CNN"): ("cnn", "program", "eager-cpu"),
        ("cpu", "onnxruntime plain-fp32", "plain CNN"): ("cnn", "plain-fp32", "onnxruntime-cpu"),
        ("cuda", "eager program", "spatial transformer"): ("stn", "program", "eager-cuda"),
        ("cuda", "onnxruntime folded-fp32", "spatial transformer"): ("stn", "folded-fp32", "onnxruntime-cuda"),
        ("cuda", "onnxruntime plain-fp32", "plain CNN"): ("cnn", "plain-fp32", "onnxruntime-cuda"),
    }
}
BEST["Throughput"] = {
    key: value for key, value in BEST["Latency"].items() if key[:2] != ("cpu", "onnxruntime folded-fp32")
} | {("cpu", "onnxruntime matmul-int8", "spatial transformer"): ("stn", "matmul-int8", "onnxruntime-cpu")}


@pytest.mark.parametrize(("what", "unit"), [("Latency", "ms a batch"), ("Throughput", "examples a second")])
@pytest.mark.parametrize("device", BATCHED)
def test_curves_against_batch_size(what: str, unit: str, device: str, shown: Shown):
    title = f"{what} against batch size on {BATCHED[device]}"
    spec, found = shown.chart(title), keyed(shown.values(title), "series", "network", "batch")
    assert placed(spec) == {
        "rule": {"x": "batch", "color": "series", "detail": "line", "y": "low", "y2": "high"},
        "line": {"x": "batch", "color": "series", "detail": "line", "y": "value", "strokeDash": "network"},
        "point": {"x": "batch", "color": "series", "detail": "line", "y": "value", "shape": "series"},
    }
    assert axes(spec, "value", "low") == {(unit, "log")}
    assert axes(spec, "batch") == {("batch size", "log")}
    expected = {
        (series, network, name[3]): name
        for (where, series, network), program in BEST[what].items()
        for name in STEPS
        if name[:3] == program and where == device
    }
    assert set(found) == set(expected)
    table = shown.table(f"In figures: {title}").by("runner and file", "network", "batch")
    assert set(table) == {(series, network, str(batch)) for series, network, batch in expected}
    for key, name in expected.items():
        micros = STEPS[name][:3]
        values = [each / 1e3 for each in micros]
        if what == "Throughput":
            values = [name[3] / (each * 1e-6) for each in (micros[0], micros[2], micros[1])]
        row = found[key]
        assert [row["value"], row["low"], row["high"]] == pytest.approx(values)
        assert row["low"] < row["value"] < row["high"]
        told = {"Latency": "ms", "Throughput": "examples a second"}[what]
        marks = "†" * STEPS[name][-1] + "‡" * (name in CONTRADICTED)
        assert (row["told"], row["interval"]) == (
            f"{three(Decimal(repr(row['value'])))} {told}{marks}",
            ends(Decimal(repr(row["low"])), Decimal(repr(row["high"]))),
        )
        assert table[*key[:2], str(key[2])] == {what: row["told"], "95 %": row["interval"]}


@pytest.mark.parametrize("device", BATCHED)
def test_the_chart_of_overheads(device: str, shown: Shown):
    title = f"What the spatial transformer costs on {BATCHED[device]}"
    spec, found = shown.chart(title), keyed(shown.values(title), "backend", "batch")
    inverse_of_none = "latency of the spatial transformer ÷ latency of the plain CNN (vertical line: 1, no overhead)"
    assert axes(spec, "value", "low", "high") == {(inverse_of_none, "linear")}
    drawn = placed(spec)
    assert (drawn["rule"]["x"], drawn["rule"]["x2"]) == ("low", "high")
    assert (drawn["point"]["x"], drawn["point"]["y"], drawn["point"]["shape"]) == ("value", "backend", "batch")
    assert (drawn["text"]["x"], drawn["text"]["text"]) == ("high", "told")
    runner = f"onnxruntime-{device}"
    expected = {
        ("onnxruntime folded-fp32", f"batch {batch}"): said
        for (kind, artifact, where, batch), said in CONTESTS.items()
        if (kind, artifact, where) == ("overhead", "folded-fp32", runner)
    }
    assert {
        key: (row["value"], row["low"], row["high"], row["told"], row["interval"]) for key, row in found.items()
    } == {
        key: (ratio, low, high, f"{three(ratio)} ×{'†' * bool(disturbed)}", ends(low, high))
        for key, (ratio, low, high, _, disturbed, _) in expected.items()
    }


FRONT = {  # by device: file, network and check, the fastest first; whether no other measurably beats it in both
    "cpu": [
        ("cnn onnxruntime plain-fp32", ("cnn", "plain-fp32", "onnxruntime-cpu"), True),
        ("stn onnxruntime folded-fp32", ("stn", "folded-fp32", "onnxruntime-cpu"), True),
        ("stn onnxruntime matmul-int8", ("stn", "matmul-int8", "onnxruntime-cpu"), False),
        ("cnn eager program", ("cnn", "program", "eager-cpu"), False),
        ("stn onnxruntime decomposed-fp32", ("stn", "decomposed-fp32", "onnxruntime-cpu"), False),
        ("stn eager program", ("stn", "program", "eager-cpu"), False),  # 4 more of 2,000 are noise
    ],
    "cuda": [
        ("cnn onnxruntime plain-fp32", ("cnn", "plain-fp32", "onnxruntime-cuda"), True),
        ("stn onnxruntime folded-fp32", ("stn", "folded-fp32", "onnxruntime-cuda"), True),
    ],
}


@pytest.mark.parametrize("device", BATCHED)
def test_accuracy_against_latency(device: str, shown: Shown):
    title = f"Accuracy against latency on {BATCHED[device]}"
    spec, found = shown.chart(title), keyed(shown.values(title), "name")
    assert axes(spec, "ms") == {("median latency of one example, ms (left is better)", "log")}
    assert axes(spec, "accuracy") == {("accuracy, %", "linear")}
    assert (placed(spec)["point"]["x"], placed(spec)["point"]["y"]) == ("ms", "accuracy")
    assert sorted((row["ms"], row["name"]) for row in found.values()) == [
        (pytest.approx(STEPS[*program, 1][0] / 1e3), name) for name, program, _ in FRONT[device]
    ]
    places = iter(range(9))
    for name, program, best in FRONT[device]:
        row = found[name,]
        assert row["accuracy"] == pytest.approx(100 * CHECKS[program][3])
        assert row["share"] == f"{percent(CHECKS[program][3])} %"
        assert row["front"] is best
        assert row["place"] == (next(places) if best else 0)
        low, high = (Decimal(str(each)) / 1000 for each in STEPS[*program, 1][1:3])
        assert row["interval"] == ends(low, high)
        assert row["low"] < row["accuracy"] < row["high"]
        reach = 196 * (CHECKS[program][3] * (1 - CHECKS[program][3]) / golden.EXAMPLES) ** 0.5
        assert row["high"] - row["low"] == pytest.approx(2 * reach, rel=0.01)
    table = shown.table(f"In figures: {title}").by("file")
    for (name,), row in found.items():
        assert table[name] == {
            "network": row["network"],
            "latency": row["told"],
            "95 %, ms": row["interval"],
            "accuracy": row["share"],
            "95 %, accuracy": f"{row['low']:.2f} to {row['high']:.2f} %",
            "on the front": "yes" if row["front"] else "",
        }
    front = [name for name, _, best in FRONT[device] if best]
    assert list(table)[: len(front)] == front


def test_where_the_time_goes(shown: Shown):
    title = "Time per part of the network on the CPU, in profiled calls, which are slower than others"
    spec, found = shown.chart(title), keyed(shown.values(title), "name", "part")
    drawn = placed(spec)
    assert (drawn["bar"]["x"], drawn["bar"]["color"], drawn["bar"]["order"]) == ("share", "part", "order")
    assert (drawn["text"]["x"], drawn["text"]["text"]) == ("middle", "percent")
    titles = {channel.get("title") for channel in golden.channels(spec, "share")}
    assert titles == {"share of the first network's time in that runner"}
    parts = ("localisation", "grid", "sampler", "rest")
    bars = {
        "stn onnxruntime folded-fp32": ("stn", "folded-fp32", "onnxruntime-cpu"),
        "plain CNN in onnxruntime": ("cnn", "plain-fp32", "onnxruntime-cpu"),
    }
    expected = {}
    for (name, program), batch in ((bar, batch) for bar in bars.items() for batch in (1, 64)):
        whole = sum(PARTS["stn", "folded-fp32", "onnxruntime-cpu", batch])  # of both: what the subject takes
        before = 0.0
        for order, (part, micros) in enumerate(zip(parts, PARTS[*program, batch], strict=True)):
            if micros:
                middle = (before + micros / 2) / whole
                key = f"{name}, batch {batch}", part
                expected[key] = (micros / whole, f"{micro(micros)} ms", f"{100 * micros / whole:.0f} %", order, middle)
            before += micros
    assert set(found) == set(expected)
    for key, (share, told, shares, order, middle) in expected.items():
        row = found[key]
        assert (row["told"], row["percent"], row["order"]) == (told, shares, order), key
        assert (row["share"], row["middle"]) == pytest.approx((share, middle)), key
    assert found["plain CNN in onnxruntime, batch 1", "rest"]["percent"] == "36 %"
    table = shown.table(f"In figures: {title}").by("in", "part")
    assert table == {key: {"time": row["told"], "share": row["percent"]} for key, row in found.items()}


@pytest.mark.parametrize(
    ("kind", "unit", "places"),
    [
        ("theta", "theta", (0,)),
        ("grid", "grid, pixels", (1, 3)),
        ("warped", "warped", (2, 4)),
        ("output",) * 2 + ((5, 6),),
    ],
)
def test_strips_of_errors(kind: str, unit: str, places: tuple[int, ...], shown: Shown):
    spec = shown.chart(f"Errors against float64: {unit}")
    said = f"error at {unit}; the line is float32 eager's own worst"
    assert axes(spec, "error") == {(said, "log")}
    drawn = sorted((row["artifact"], row["error"]) for row in spec["data"]["values"])
    full = [(name[1], said) for name, (said, *_) in CHECKS.items() if name[0] == "stn" and "int8" not in name[1]]
    expected = sorted((name, errors[place] / part) for name, errors in full for place in places for part in (1, 3))
    assert drawn == [(name, pytest.approx(error)) for name, error in expected]
    [own] = spec["layer"][0]["data"]["values"]
    assert own["own"] == max(golden.EAGER[place] for place in places)
    worst: dict[str, float] = {}
    for name, error in drawn:
        worst[name] = max(error, worst.get(name, 0))
    table = shown.table(f"In figures: Errors against float64: {unit}")
    assert table.lines == [[name, f"{worst[name]:.1e}"] for name in sorted(worst, key=worst.__getitem__)]


def test_curves_of_accuracy_have_bands_from_the_worst_to_the_best_seed(shown: Shown):
    title = "Test accuracy after each epoch: golden, quick, 2 epochs"
    spec, found = shown.chart(title), keyed(shown.values(title), "network", "epoch")
    drawn = placed(spec)
    assert (drawn["area"]["y"], drawn["area"]["y2"]) == ("low", "high")
    assert (drawn["line"]["x"], drawn["line"]["y"], drawn["line"]["color"]) == ("epoch", "mean", "network")
    assert axes(spec, "mean", "low") == {("test accuracy, %", "linear")}
    for name, curves in CURVES.items():
        for epoch in (1, 2):
            values = [100 * curve[epoch - 1] for curve in curves.values()]
            row = found[golden.LABELS[name][0], epoch]
            expected = statistics.fmean(values), min(values), max(values)
            assert (row["mean"], row["low"], row["high"]) == pytest.approx(expected)
            assert row["told"] == f"{expected[0]:.2f} %"
            assert row["seeds"] == f"{min(values):.2f} to {max(values):.2f} %"
    [tip] = [tip for tip in spec["encoding"]["tooltip"] if tip["field"] == "seeds"]
    assert tip["title"] == "worst to best seed"


def test_accuracies_and_gains_seed_by_seed(shown: Shown):
    title = "Test accuracy, seed by seed"
    spec, found = shown.chart(title), keyed(shown.values(title), "network", "seed")
    assert axes(spec, "mean", "accuracy", "low") == {("test accuracy, %", "linear")}
    for name, (mean, _, low, high, *_) in TRAINED.items():
        for seed, curve in CURVES[name].items():
            row = found[golden.LABELS[name][0], seed]
            drawn = row["accuracy"], row["mean"], row["low"], row["high"]
            assert drawn == pytest.approx((100 * curve[-1], 100 * mean, 100 * low, 100 * high))
            assert (row["own"], row["told"]) == (f"{percent(curve[-1])} %", f"{percent(mean)} %")
            assert row["interval"] == f"{percent(low)} to {percent(high)} %"
    assert len(found) == 9
    table = shown.table(f"In figures: {title}").by("run", "network", "seed")
    for (network, seed), row in found.items():
        assert table["golden, quick, 2 epochs", network, seed] == {"test accuracy, %": row["own"]}
    title = "Gain of the transformer, seed by seed"
    spec, found = shown.chart(title), keyed(shown.values(title), "network", "seed")
    assert axes(spec, "mean", "accuracy", "low") == {("points of test accuracy", "linear")}
    drawn = placed(spec)
    assert (drawn["point"]["x"], drawn["point diamond"]["x"]) == ("accuracy", "mean")
    assert (drawn["rule"]["x"], drawn["rule"]["x2"]) == ("low", "high")
    for name, (mean, _, low, high, _) in GAINS.items():
        for seed, curve in CURVES[name].items():
            row = found[f"over the {golden.LABELS[name][0]}", seed]
            gain = 100 * (CURVES["stn"][seed][-1] - curve[-1])
            assert (row["accuracy"], row["mean"], row["low"], row["high"]) == pytest.approx((gain, mean, low, high))
            assert row["own"] == f"{gain:+.2f} points"
    assert len(found) == 6
    table = shown.table(f"In figures: {title}").by("run", "network", "seed")
    for (network, seed), row in found.items():
        assert table["golden, quick, 2 epochs", network, seed] == {"points of test accuracy": row["own"]}


def test_histograms_of_theta(shown: Shown):
    found = shown.values("What theta is: spatial transformer, site0 in line 0")
    sx, tx, *_ = zip(*golden.THETAS, strict=True)
    for part, known in (("scale x, of the window's side", sx), ("shift x, pixels", [47 * each for each in tx])):
        bars = [row for row in found if row["part"] == part]
        inner = sorted(known)[1:-1]  # the outermost lie beyond what is shown
        assert sum(row["examples"] for row in bars) == len(inner)
        for value in inner:
            assert any(row["low"] <= value + 1e-6 and value - 1e-6 <= row["high"] for row in bars), part
    corners = keyed(shown.values("Where it looks: spatial transformer, site0 in line 0"), "of", "order")
    x, y = ((1 - sx[0] + tx[0]) * 47, (1 - golden.THETAS[0][2] + golden.THETAS[0][3]) * 12)
    assert (corners["example 0", 0]["x"], corners["example 0", 0]["y"]) == pytest.approx((x, y), rel=1e-5, abs=1e-5)


# Charts whose figures stand in a table of their section.
DRAWN_ONLY = ("What the spatial transformer costs", "Test accuracy after", "What theta is", "Where it looks")


def test_every_chart_and_table_of_the_report_is_looked_at(shown: Shown):
    assert len(shown.html.charts) == 18
    in_figures = {title for title in shown.html.charts if not title.startswith(DRAWN_ONLY)}
    assert set(shown.html.tables) == {f"In figures: {title}" for title in in_figures} | {
        *("What to deploy", "The spatial transformer against the plain CNN", SINGLE, "Parity with PyTorch"),
        *("Speed-up over the baselines", "stn: sites, lowerings and runners", EVERY_RUNTIME),
        *(
            "spatial transformer, site0 in line 0, over 4 examples",
            "Does the transformer help?",
            "Trainings",
            "Inputs and outputs",
        ),
        *("Where they sample", "Environment"),
    }


def test_what_the_networks_are(shown: Shown):
    assert shown.table("Inputs and outputs").by("network") == {
        name: {
            "what it is": golden.LABELS[name][0],
            "role": golden.LABELS[name][1],
            "parameters": f"{parameters:,}",
            "multiply-adds": f"{work:,}",
            "inputs": "images: N×3×24×94 float32",
            "outputs": "log_probs: N×10 float32; boxes: N×4 float32",
            "tried on": f"pictures of {name}",
        }
        for name, (parameters, work) in golden.NETWORKS.items()
    }
    found = shown.table("Where they sample").by("network", "site")
    kinds = "affine_grid + grid_sample", "grid_sample, own grid"
    assert found == {
        ("stn", name): {
            "where": f"line {index}",
            "kind": kinds[index],
            "from": f"source {index}",
            "mode": mode,
            "padding": padding,
            "align_corners": str(align),
            "image → grid": f"{24 + index}×{94 + index} → {16 + index}×{32 + index}",
        }
        for index, (name, (mode, padding, align)) in enumerate(golden.WHERE.items())
    }


def test_where_it_runs_and_where_it_was_measured(shown: Shown):
    runs = shown.table(EVERY_RUNTIME).by("runtime")
    assert {name: row["folded"] for name, row in runs.items()} == {
        "ONNX Runtime CPU": "runs, tested here",
        "TensorRT": "refused: STN001 at grid: <no>.",
    }
    assert runs["TensorRT"]["decomposed"] == runs["TensorRT"]["folded"]
    here = shown.table("Environment").by("what")
    assert {name: row["here"] for name, row in here.items()} == {
        "cpu": "Golden CPU",
        "gpu": "Golden GPU",
        "threads": "3",
        "instruction sets": "AVX2, FMA",
        "git commit": "0123456789abcdef",
        "torch": "9.8.7",
    }


def test_what_the_other_stages_close_with(tmp_path: Path):
    """Files, where they run, what was refused and left out: the cards of export and verify."""
    run = golden.write(tmp_path / "digits")
    stn = NetworkDirectory(run / "stn")
    for index, artifact in enumerate(stn.artifacts.values(), 1):
        stn.add(replace(artifact, details=artifact.details | {"bytes": index * 2**20}))
    content = json.loads((run / VERIFY_FILE).read_text(encoding="utf-8"))
    content |= {"unavailable": {"eager-cuda": "no GPU", "pt2-cuda": "no GPU"}, "refused": {"stn/a on b": "too old"}}
    (run / VERIFY_FILE).write_text(json.dumps(content), encoding="utf-8")
    found = held(run)
    assert by_word(card(found, "export")) == {
        "files": "4 files of 2 networks, 9.0 MiB",  # of stn the second to the fourth
        "refused": "stn/gather-fp32, cnn/gather-fp32: it samples <bicubic>",
        "runs": "folded runs, tested here: ONNX Runtime CPU; refused: TensorRT",
    }
    verified = by_word(card(found, "verify"))
    assert verified["left out"] == "eager-cuda, pt2-cuda: no GPU; 1 combinations of file and runtime unsupported"
    assert verified["verified"].startswith("8 of 9 checks")
    assert "next" not in verified
    (run / VERIFY_FILE).unlink()
    assert by_word(card(held(run), "export"))["next"] == f"stn-export verify --run {run}"
    assert [word for word, _ in card(found) if word == "next"] == []
    assert "next" not in top(held(run))


# Words of Vega-Lite 5: a description with another one is drawn without it, and nobody is told.
CHANNELS = {*("x", "y", "x2", "y2", "yOffset", "color", "fill", "shape", "detail", "text", "tooltip", "order")} | {
    *("opacity", "fillOpacity", "strokeDash", "strokeWidth")
}
OF_CHANNELS = {*("field", "type", "title", "axis", "scale", "legend", "sort", "stack", "bin", "value", "condition")}
OF_MARKS = {*("type", "align", "baseline", "dx", "dy", "limit", "fontSize", "clip", "filled", "size", "shape")} | {
    *("interpolate", "color", "stroke", "strokeDash", "strokeWidth", "opacity", "fillOpacity", "binSpacing")
}


def parts(content: object, name: str) -> list[dict]:
    """Every object that stands under a name, at any depth, outside the data."""
    if isinstance(content, list):
        return [found for item in content for found in parts(item, name)]
    if not isinstance(content, dict):
        return []
    own = [content[name]] if isinstance(content.get(name), dict) else []
    return own + [
        found for key, item in content.items() if key not in ("data", "config") for found in parts(item, name)
    ]


def test_every_word_of_a_chart_is_one_that_is_drawn(shown: Shown):
    for title, chart in shown.html.charts.items():
        encodings = parts(chart, "encoding")
        assert encodings, title
        assert set().union(*encodings) <= CHANNELS, title
        listed = [channel for each in encodings for channel in each.values() if channel is not None]
        channels = [each for channel in listed for each in (channel if isinstance(channel, list) else [channel])]
        assert set().union(*channels) <= OF_CHANNELS, title
        assert set().union(*parts(chart, "mark")) <= OF_MARKS, title
        made = re.findall(r'"as": "(\w+)"', json.dumps({key: part for key, part in chart.items() if key != "data"}))
        columns = {name for data in parts(chart, "data") for row in data["values"] for name in row}
        assert {channel["field"] for channel in channels if "field" in channel} <= columns | {*made}, title
