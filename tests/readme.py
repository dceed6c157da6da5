"""The figures of README and docs, each from a kept file: ``make readme`` writes every block between its marks anew.

It refuses files whose derived figures are not those of the raw values beside them; see ``recomputed``.
"""

import json
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from benchmarks.tools.kept import KEPT, PROOF_PREFIX
from benchmarks.tools.proof import COLUMNS, TRIALS, covered, table_row
from benchmarks.tools.training_speed import pairs_ratio
from stn_export import cli
from stn_export.cli import LABEL, markdown_table
from stn_export.cli.tables import Markdown
from stn_export.errors import CheckFailedError
from stn_export.export.lowerings import LOWERINGS as LOWERINGS_OF
from stn_export.results.card import Answer
from stn_export.results.choice import is_baseline, over_moments, program
from stn_export.results.statistics import METHOD
from stn_export.results.text import significant, span, speed_ratio
from stn_export.run import records
from stn_export.run.records import Timing, known
from stn_export.run.store import filled, write_if_changed
from stn_export.train.outcomes import SETTLED, read_reference
from stn_export.train.recipes import MODELS
from tests import larger_results, survival
from tests.recomputed import kept_files, stale
from tests.reference import BLOCKS as REFERENCE_BLOCKS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "SECURITY.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SUBJECT, PLAIN, MATCHED = MODELS
METHOD_OF_MEANS = "intervals are Student's over seeds, of gains over the differences seed by seed ([how](method.md))."
POINTS = ("theta", "grid", "warped")  # all else that is compared is an output
CARD_WORDS = {"ship": "deploy", "cost": "overhead", "equal": "verified", "sure": "confidence", "mind": "caveat"}
OF_LOWERINGS = {
    "matmul": ("one MatMul with a constant base grid", "deployment"),
    "folded": ("one Gemm, folded with the regressor's last layer", "deployment"),
    "affinegrid": (
        "the `AffineGrid` operator",
        "reading the graph; ONNX Runtime has it on the CPU only, TensorRT not at all",
    ),
    "gather": ("`matmul`, with the sampler built from Gather, Mul and Add", "runtimes without GridSample"),
    "decomposed": ("the exporter's own decomposition", "comparing: it is the baseline"),
}
LOWERINGS = ("matmul-fp32", "folded-fp32", "affinegrid-fp32")
WAYS = {"export_onnx": "`export_onnx`", "check": "`check`", "adopt": "`adopt`, `export`, `verify`"}
SOURCES = {  # of the networks that were tried; all others are packages
    "zoo": "written as people write them",
    "public": "rebuilt from public repositories and issues",
    "kinds": "what exporters stumble over",
    "state": "networks that keep something between calls",
}
REDUCED = {"torchscript-bf16": "torchscript-cpu"} | dict.fromkeys(
    ("folded-fp32", "folded-fp16", "matmul-int8"), "onnxruntime-cpu"
)


@cache
def kept(name: str) -> dict:
    """The newest kept file of that pattern."""
    return json.loads(max((REPOSITORY / KEPT).glob(name), key=lambda path: path.stem[-10:]).read_text(encoding="utf-8"))


def bench() -> dict:
    """The newest timings of a CPU."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in (REPOSITORY / KEPT).glob("*.json")]
    timed = [file for file in files if "benchmarks" in file and file["machine_info"]["stn_export"]["gpu"] is None]
    return max(timed, key=lambda file: file["datetime"])


def prose(text: str, indent: str = "") -> list[str]:
    """Lines of the page's width, all but the first indented."""
    return textwrap.wrap(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def contests(name: str, columns: tuple[str, str, str]) -> list[str]:
    """A block of text: every contest of that name, the columns as wide as they must be."""
    rows = [row for row in timings() if row.contest == name]
    heading = ("backend", "batch", f"{columns[0]} ms", f"{columns[1]} ms", columns[2], "95 % interval")
    lines = [heading]
    for row in rows:
        times = (significant(1e3 * known(seconds)) for seconds in (row.seconds, row.baseline_seconds))
        label, ratio = f"{row.network} {row.runner} {row.artifact}", row.paired
        lines.append((label, str(row.batch), *times, significant(ratio.middle), span(ratio.low, ratio.high)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return ["```", *text, "```"]


def speedup(name: str, runner: str, artifact: str, batch: int) -> str:
    """The speed-up that a paired comparison found, over all that the run showed of its two files, if it was timed."""
    where, rows = (name, runner, artifact, batch), [row for row in timings() if row.ratio is not None]
    found = [row for row in rows if (row.contest, row.runner, row.artifact, row.batch) == where]
    return speed_ratio(over_moments(found[0], timings()).inverse) if found else "not timed"


def fastest() -> list[str]:
    """Speed-ups of the best files over eager PyTorch and over the default export, and which is the fastest of many."""
    native, folded = ("native-cpu", "native-fp32"), ("onnxruntime-cpu", "folded-fp32")
    many = [row for row in timings() if (row.contest, row.batch) == ("eager", 256)]
    best = {kind: min(rows, key=lambda row: row.paired.middle) for kind, rows in by_kind(many).items()}
    said = ", ".join(
        f"{kind} `{row.artifact}` in {row.runner}, {speedup('eager', row.runner, row.artifact, 256)}"
        for kind, row in best.items()
    )
    return prose(
        "On that machine, one image, inputs in place, one thread: the speed-up over eager PyTorch is "
        f"{speedup('eager', *native, 1)} for the C function and {speedup('eager', *folded, 1)} for `folded` in ONNX "
        f"Runtime; the latter's over what `torch.onnx.export` and `InferenceSession` give with their defaults, which "
        f"use both cores, {speedup('default', *folded, 1)}. At batch 256 the fastest files are {said or 'not timed'}."
    )


def by_kind(rows: Iterable[Timing]) -> dict[str, list[Timing]]:
    """Rows by their precision in words."""
    found: dict[str, list[Timing]] = {}
    for row in rows:
        found.setdefault("in int8" if row.precision == "int8" else "in float32", []).append(row)
    return dict(sorted(found.items()))


def timings() -> list[Timing]:
    """The rows of the newest timings of a CPU."""
    return records.timings(bench())


def answer() -> Answer:
    """The card's sentences on times, made anew from the newest timings of a CPU."""
    content, rows = bench(), timings()
    proved = dict.fromkeys(map(tuple, content["proved"]))
    facts = {row.network: SimpleNamespace(role=row.role, label=row.label) for row in rows}
    held = SimpleNamespace(
        rows=rows,
        proved=proved,
        verified_rows=[row for row in rows if program(row) in proved or is_baseline(row)],
        portability=content["portability"],
        static_batch=None,
        environment=content["machine_info"]["stn_export"],
        directories=[SimpleNamespace(name=name, facts=each) for name, each in facts.items()],
    )
    return Answer(held)


def proof() -> list[str]:
    """What the newest proof of a CPU found: how often intervals hold what was planted, how often that was seen."""
    content = kept(f"{PROOF_PREFIX}*.json")
    rows = []
    for trial in content["trials"]:
        target = trial.get("target", content.get("target"))
        said = dict(zip(COLUMNS, table_row(trial | {"target": target}), strict=True))
        rows.append((target, trial["trial"], said["planted"], str(trial["batch"]), said["held"], said["found"]))
    columns = ("on this machine", "trial", "planted", "batch", "interval holds it", "found slower")
    return [*markdown_table(columns, rows)[:-1], "", *prose(coverage(content["trials"]))]


def coverage(trials: Iterable[dict]) -> str:
    """How many intervals hold the true ratio, all trials of a kind together."""
    found: dict[str, list[tuple[int, int]]] = {}
    for trial in trials:
        found.setdefault(trial["trial"], []).append(
            (covered(trial["rows"], TRIALS[trial["trial"]]), len(trial["rows"]))
        )
    shares = ", ".join(
        f"{sum(a for a, _ in each)} of {sum(b for _, b in each)} ({kind})" for kind, each in found.items()
    )
    measured = any("planted" in row for trial in trials for row in trial["rows"])
    note = (
        ""
        if measured
        else (
            " These were waits behind each call, as long as a share of calls before; a wait slows down the next call "
            "too, so that more was planted than is named. `make bench-proof` now adds the share to the time that each "
            "call is measured to take."
        )
    )
    return f"Intervals that hold the named ratio: {shares}.{note}"


def checks(*artifacts: str) -> list[tuple[dict, str]]:
    """The transformer's checks of the CIFAR-10 run, and the runner."""
    rows = kept("cifar10-reference-cpu.json")["parity"]
    found = {(row["artifact"], row["runner"]): row for row in rows if SUBJECT in (row.get("network"), row.get("model"))}
    return [(found[name, REDUCED.get(name, "onnxruntime-cpu")], name) for name in artifacts]


def worst(check: dict, kind: str) -> float:
    """The largest error of a kind of point."""
    errors = ((point.split("/")[-1], error) for point, error in check["errors"].items())
    return max(error for point, error in errors if (point if point in POINTS else "output") == kind)


def errors() -> list[str]:
    """How far the float32 lowerings lie from float64."""
    rows = [
        (name, f"{worst(check, 'grid'):.1e}", f"{worst(check, 'output'):.1e}", f"{check['multiple']:.1f}")
        for check, name in checks(*LOWERINGS)
    ]
    return markdown_table(("artifact", "grid, px", "log-probability", "relative to eager PyTorch's error"), rows)[:-1]


def reduced() -> list[str]:
    """What reduced precision does to grids and predictions."""
    rows = []
    for check, name in checks(*REDUCED):
        pixels = check["grid_pixels"] or {}
        pixels = pixels if "mean" in pixels or not pixels else next(iter(pixels.values()))
        grid = (f"{pixels['mean']:.4f}", f"{pixels['worst']:.3f}") if pixels else ("–", "–")
        shares = (f"{check['agreement']:.2%}", f"{check['accuracy']:.2%}")
        rows.append((f"{name} ({check['runner']})", *grid, *shares))
    columns = ("artifact", "mean grid error, px", "worst, px", "agreement with float32", "accuracy")
    return markdown_table(columns, rows)[:-1]


def percents(values: Iterable[float], scale: float = 100, form: str = ".2f") -> str:
    """Numbers with commas between them."""
    return ", ".join(format(scale * value, form) for value in values)


def interval(found: dict, scale: float = 100, form: str = ".2f") -> str:
    """Its two ends."""
    return f"{scale * found['low']:{form}} to {scale * found['high']:{form}}"


def tuned() -> list[str]:
    """The recipe ``tuned`` on CIFAR-10."""
    [run] = kept("training-tuned-cpu.json")["runs"]
    ours = run["models"][SUBJECT]
    plain = f"{100 * kept('training-reference-cpu.json')['runs'][0]['models'][SUBJECT]['mean']:.0f}"
    return prose(
        f"`tuned` gives the very same network {100 * ours['mean']:.2f} % on CIFAR-10 instead of {plain} % (seeds "
        f"{', '.join(ours['seeds'])}: {percents(ours['seeds'].values())}; 95 % interval of the mean {interval(ours)}), "
        "with `PRECISION=bf16` on a CPU (`benchmarks/results/training-tuned-cpu.json`)."
    )


def reference() -> list[str]:
    """The recipe ``reference`` on CIFAR-10."""
    [run] = kept("training-reference-cpu.json")["runs"]
    rows = [
        (each["label"], f"{percents(each['seeds'].values())} %", f"{100 * each['mean']:.2f} %", interval(each))
        for each in run["models"].values()
    ]
    gain = run["differences"][PLAIN]
    last = (percents(gain["seeds"].values(), 1, ".1f"), f"{gain['mean']:.1f}", interval(gain, 1, ".1f"))
    settled = statistics.fmean(read_reference()[SETTLED])
    published = ("the published run (a spatial transformer)", f"{100 * settled:.2f} %", "", "")
    columns = ("network", f"seeds {', '.join(gain['seeds'])}", "mean", "95 % interval")
    return markdown_table(columns, [*rows, published, ("the transformer's gain, points", *last)])[:-1]


def gain() -> list[str]:
    """Does the transformer help?"""
    others = (PLAIN, MATCHED)
    labels = {name: spec.label for name, spec in MODELS.items()}
    columns = ["data set", "seeds", *labels.values(), *(f"gain over the {labels[name]}, points" for name in others)]
    rows = []
    for run in kept("training-gain-cpu.json")["runs"]:
        means = [f"{100 * each['mean']:.1f} % ({interval(each, form='.1f')})" for each in run["models"].values()]
        differences = [run["differences"][name] for name in others]
        gains = [f"{each['mean']:+.1f} ({interval(each, 1, '.1f')})".replace("-", "−") for each in differences]
        title = ", ".join((run["dataset"], run["recipe"], f"{run['epochs']} epochs", run["precision"]))
        rows.append((title, str(len(run["models"][SUBJECT]["seeds"])), *means, *gains))
    return markdown_table(columns, rows)[:-1]


def against(found: dict) -> str:
    """What the interval of a paired gain allows to say, with the gain in points."""
    mean, low, high = (f"{abs(found[name]):.1f}" for name in ("mean", "low", "high"))
    if found["low"] > 0:
        return f"gains {mean} points ({low} to {high}) over the {found['label']}"
    if found["high"] < 0:
        return f"is {mean} points ({high} to {low}) behind the {found['label']}"
    signed = f"{found['mean']:+.1f} points, {interval(found, 1, '.1f')}".replace("-", "−")
    return f"has no measurable gain over the {found['label']} ({signed})"


def verdict() -> list[str]:
    """Does it help: a sentence each data set and recipe, from the means and intervals above and below."""
    runs = [*kept("training-gain-cpu.json")["runs"], *kept("training-reference-cpu.json")["runs"]]
    lines = []
    for run in runs:
        said = ", and ".join(f"it {against(found)}" for found in run["differences"].values())
        lines += prose(f"- {run['dataset']}, recipe `{run['recipe']}`, {run['epochs']} epochs: {said}.", "  ")
    machines = {each["cpu"] for run in runs for each in run["environments"]}
    return [*lines, "", *prose(f"Trained on {', '.join(sorted(machines))}; {METHOD_OF_MEANS}")]


def worth() -> list[str]:
    """What README says of the gain, beside a card of one seed."""
    own = demo()
    gains = {run["dataset"]: run for run in kept("training-gain-cpu.json")["runs"]}
    [reference] = kept("training-reference-cpu.json")["runs"]
    digits, plain = gains["digits"], gains["cifar10"]
    over, equal = (digits["differences"][name] for name in (PLAIN, MATCHED))
    count = {1: "one seed"}.get(own["count"], f"{own['count']} seeds")
    return prose(
        f"Is it worth that? The card's accuracies are of {count} after {own['epochs']} epochs: one seed says little "
        f"of the gain. Over {over['count']} seeds of {digits['epochs']} epochs, on digits that are turned, scaled, "
        f"shifted and cluttered, it {against(over)}, and {against(equal)}. On plain CIFAR-10 it "
        f"{against(reference['differences'][PLAIN])} with recipe `{reference['recipe']}`; with `{plain['recipe']}` it "
        f"{against(plain['differences'][PLAIN])}, and {against(plain['differences'][MATCHED])} "
        "([figures](docs/training.md))."
    )


def demo() -> dict:
    """The spatial transformer's training in the stored demo run."""
    [own] = [row for row in kept("digits-cpu.json")["training"] if row["network"] == SUBJECT]
    return own


def costs() -> list[str]:
    """Multiply-adds of the two that are set against each other at equal cost."""
    counts = {name: each["multiply_adds"] for name, each in kept("training-gain-cpu.json")["runs"][0]["models"].items()}
    return prose(
        "`DATASET=cifar10-affine` turns, scales and shifts every image; `cnn-matched` is the plain CNN widened to the "
        f"transformer's multiply-adds ({counts[MATCHED]:,} against {counts[SUBJECT]:,})."
    )


def speed() -> list[str]:
    """An epoch of training against the tutorial's loop, its interval by today's method from the kept seconds."""
    content = kept("training-speed-cpu.json")
    rows = {row["what"].split(", ")[-1]: row for row in content["rows"] if "baseline_seconds" in row}
    found = {name: pairs_ratio(row["seconds"], row["baseline_seconds"]) for name, row in rows.items()}
    said = {name: speed_ratio((each["ratio"], each["ratio_low"], each["ratio_high"])) for name, each in found.items()}
    row = rows[SUBJECT]
    return prose(
        "An epoch of ours takes less time than one of the tutorial's loop (PIL transforms, DataLoader with 4 workers, "
        f"`.item()` every step): the speed-up is {said[SUBJECT]} for the transformer and {said[PLAIN]} for the plain "
        f"CNN, on the {row['dataset']} with {row['threads']} threads of {content['environment']['cpu']}. Intervals are "
        f"Student's over {len(row['seconds'])} epochs of either in turn, {METHOD.load_spread:.1%} wider on either side "
        "because each loop was loaded once (`make bench-train`, `benchmarks/results/training-speed-cpu.json`)."
    )


def card() -> list[str]:
    """Show the card of the stored demo run, its sentences on times made anew from the run's timings.

    Raises:
        ValueError: where the stored card is of other timings.
    """
    content, made = kept("digits-cpu.json"), answer()
    deployed = made.deployed.quick.row.sha256 if made.deployed else ""
    if content["answer"]["cpu"]["latency"]["sha256"] != deployed:
        raise ValueError("digits-cpu.json and the newest timings are of two runs: keep both with 'make figures'")
    anew = {name: getattr(made, name)() for name in ("latency", "throughput", "overhead", "confidence")}
    words = CARD_WORDS if content["schema"] == "stn_export/report/2" else {}
    lines = ((words.get(word, word), sentence) for word, sentence in content["card"])
    return ["```", *(f"{word:<{LABEL}}{anew.get(word) or sentence}" for word, sentence in lines), "```"]


def headline_machine() -> list[str]:
    """What the card's times are of, and which ways to run it in PyTorch were not timed beside it."""
    content = bench()
    environment = content["machine_info"]["stn_export"]
    missing = not any(row.contest == "pytorch" for row in timings())
    [sizes] = next(known(row.sizes) for row in timings() if row.network == SUBJECT and row.batch == 1).values()
    note = (
        " The speed-ups are over eager PyTorch on one thread, with inputs in place on either side; channels_last, "
        "`torch.compile` and more threads were not timed beside it then, and `make figures` now times them."
        if missing
        else ""
    )
    return prose(
        f"Measured on {environment['cpu']} with {environment['cores']} cores, {content['datetime'][:10]}, of a network "
        f"of {demo()['parameters']:,} parameters on images of {'×'.join(map(str, sizes[1:]))}.{note} An interval "
        "covers every time that the run's paired comparisons showed of either file."
    )


def opsets() -> list[str]:
    """The lowerings of the affine grid: the opset by default and the range of opsets, what each is and is for."""
    listed = [(name, spec) for name, spec in LOWERINGS_OF.items() if name in OF_LOWERINGS]
    cells = [
        (f"`{name}`", f"{spec.default_opset} ({spec.opsets[0]} to {spec.opsets[-1]})", *OF_LOWERINGS[name])
        for name, spec in listed
    ]
    columns = ("lowering", "opset (range)", "the affine grid is", "take it for")
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *cells)]


def planted() -> list[str]:
    """How many defects the tests plant into good artifacts."""
    from tests.test_sabotage import DEFECTS, LOWERINGS, SEEDS  # what tests are made of takes long to import

    networks = 2 * SEEDS * len(LOWERINGS)  # the built-in one and foreign ones
    return prose(
        f"`make test-all` plants {len(DEFECTS)} defects into good artifacts, each where a network has what it is "
        f"about, and demands that each is caught and named; {networks} random networks through {len(LOWERINGS)} "
        "lowerings, half of them such that magnify roundings, give no false alarm."
    )


def networks() -> list[str]:
    """What became of every network that was tried: verdicts by source, then those that are not right in every way."""
    content = kept("networks.json")
    lines, versions = content["networks"], content["environment"]["versions"]
    sources = dict.fromkeys(line["source"] for line in lines)
    verdicts, names = [], []
    for source in sources:
        own = [line for line in lines if line["source"] == source]
        tallies = (Counter(line[way]["verdict"] for line in own) for way in WAYS)
        cells = (", ".join(f"{count} {verdict}" for verdict, count in tally.most_common()) for tally in tallies)
        verdicts.append([SOURCES.get(source, source), len(own), *cells])
        names += [*prose(f"{SOURCES.get(source, source)}: {', '.join(line['name'] for line in own)}."), ""]
    alike: dict[tuple[str, str, str], list[str]] = {}  # ways of one network that ended in the same sentence
    for line in lines:
        for way, words in WAYS.items():
            if line[way]["verdict"] != "right":
                alike.setdefault((line["name"], line[way]["verdict"], line[way]["why"]), []).append(words)
    others = [[name, Markdown("; ".join(ways)), verdict, why] for (name, verdict, why), ways in alike.items()]
    return [
        "",
        *markdown_table(["from", "networks", *map(Markdown, WAYS.values())], verdicts),
        *markdown_table(["network", "way", "verdict", "the sentence"], others),
        *names,
        *prose(
            f"PyTorch {versions['torch']}, ONNX Runtime {versions['onnxruntime-gpu']}, "
            f"{content['environment']['cpu']}; commits {', '.join(dict.fromkeys(line['commit'] for line in lines))}."
        ),
        "",
    ]


def webgpu() -> list[str]:
    """Where the nodes of each file run with WebGPU, and how its outputs compare with the reference."""
    content = kept("webgpu.json")
    rows, version = content["rows"], content["versions"]["onnxruntime-webgpu"]
    cells = [
        [
            row["network"],
            row["file"],
            row["gpu"] if row["gpu"] else "–",
            ", ".join(row["cpu"]) or "–",
            f"{row['multiple']:,.1f}" if row["verdict"] not in ("refused", "within bounds") else "–",
            row["verdict"],
        ]
        for row in rows
    ]
    placed = sum(row["gpu"] + len(row["left"]) for row in rows)
    differ = sum(len(row["differ"]) for row in rows)
    refused = dict.fromkeys(row["why"].rpartition(" : ")[2].rstrip(".") for row in rows if row["verdict"] == "refused")
    heading = ["network", "file", "nodes on the GPU", "on the CPU", "error ÷ eager's", "verdict"]
    return [
        "",
        *markdown_table(heading, cells),
        *prose(
            f"onnxruntime-webgpu {version} on {content['adapter']}, {content['environment']['cpu']}, "
            f"{content['examples'] or 'all'} examples and the test inputs made to be hard. Of {placed} nodes that "
            f"compute, {differ} run elsewhere than `audit --provider webgpu` predicts. "
            f"Refused: {'; '.join(refused) or 'none'}."
        ),
        "",
    ]


def larger() -> list[str]:
    """Larger networks in C beside other runtimes, and the share of the peak that their large layers reach."""
    content = kept("larger-cpu.json")
    contests = [larger_results.Contest(**made) for made in content["contests"]]
    shares = [share for made in content["layers"] if (share := larger_results.Layer(**made).share) is not None]
    reached = sum(share >= 0.6 for share in shares)
    environment = content["environment"]
    return [
        "",
        *markdown_table(larger_results.COLUMNS, [made.cells() for made in contests]),
        *prose(
            f"On {environment['cpu']} ({', '.join(environment['instruction_sets'])}), by `make bench-larger`. Of "
            f"{len(shares)} layers of {larger_results.LARGE // 10**6} million multiply-adds or more, on one thread, "
            f"{reached} reach 60 % of the measured peak of fused multiply-adds; the least reaches "
            f"{min(shares):.0%}, the median {statistics.median(shares):.0%} (layers whose algorithm saves "
            "multiplications may exceed 100 %)."
        ),
        "",
    ]


def larger_int8() -> list[str]:
    """Larger networks in C that computes in int8."""
    content = kept("larger-int8-cpu.json")
    contests = [larger_results.Contest(**made) for made in content["contests"]]
    environment = content["environment"]
    return [
        "",
        *markdown_table(larger_results.COLUMNS_INT8, [made.cells() for made in contests]),
        *prose(
            f"On {environment['cpu']} ({', '.join(environment['instruction_sets'])}), compiled for "
            f"`{content['target']}`, by `python -m tests.larger_int8`, while "
            f"{environment['busy']:g} programs wanted its {environment['processors']} processors: "
            "times are long, and ratios are those of neighbouring turns."
        ),
        "",
    ]


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "card": card,
    "measured": headline_machine,
    "worth": worth,
    "verdict": verdict,
    "transformer against CNN": lambda: contests("overhead", ("STN", "CNN", "STN/CNN")),
    "opsets": opsets,
    "planted": planted,
    "lowerings": lambda: contests("lowering", ("lowering", "decomposed", "lowering/decomposed")),
    "errors": errors,
    "fastest": fastest,
    "proof": proof,
    "costs": costs,
    "tuned": tuned,
    "gain": gain,
    "speed": speed,
    "reference": reference,
    "reduced precision": reduced,
    "networks": networks,
    "webgpu": webgpu,
    "larger": larger,
    "larger int8": larger_int8,
    **survival.BLOCKS,
    **REFERENCE_BLOCKS,
}


def page(text: str) -> str:
    """A page with all its figures made anew."""
    for name, block in BLOCKS.items():
        if f"<!-- {name} -->" in text:
            text = filled(text, name, block())
    return text


def write(repository: Path) -> list[str]:
    """Write the figures of README and docs of a checkout from its kept files; the names of the pages that changed."""
    global REPOSITORY
    before, REPOSITORY = REPOSITORY, repository
    kept.cache_clear()
    try:
        paths = [repository / path.relative_to(before) for path in PAGES]
        return [path.name for path in paths if write_if_changed(path, page(path.read_text(encoding="utf-8")).encode())]
    finally:
        REPOSITORY = before
        kept.cache_clear()


def main() -> None:
    """Write all pages anew, from files whose derived figures are those of their raw values.

    Raises:
        CheckFailedError: naming the figures that are not.
    """
    if lines := stale(kept_files()):
        raise CheckFailedError("kept figures are stale; 'python -m tests.recomputed' makes them anew", *lines)
    changed = write(REPOSITORY)
    sys.stdout.write(f"wrote {', '.join(changed)}\n" if changed else "all pages are up to date\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda _=None: main()))
