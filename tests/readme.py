"""The figures of README and docs, each from a kept file: ``make readme`` writes every block between its marks anew.

It refuses files whose derived figures are not those of the raw values beside them; see ``recomputed``.
"""

import json
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from stn_export import cli
from stn_export.artifacts.files import filled, write_if_changed
from stn_export.bench.kept import KEPT, PROOF_PREFIX
from stn_export.cli import LABEL, markdown_table
from stn_export.errors import CheckFailedError
from stn_export.train.gain import SETTLED
from stn_export.train.recipes import MODELS
from stn_export.train.results import read_reference
from tests import survival
from tests.recomputed import kept_files, stale

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", REPOSITORY / "SECURITY.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SUBJECT, PLAIN, MATCHED = MODELS
POINTS = ("theta", "grid", "warped")  # all else that is compared is an output
CARD_WORDS = {"ship": "deploy", "cost": "overhead", "equal": "verified", "sure": "confidence", "mind": "caveat"}
LOWERINGS = ("matmul-fp32", "folded-fp32", "affinegrid-fp32")
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


def prose(text: str) -> list[str]:
    """Lines of the page's width."""
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def contests(name: str, columns: tuple[str, str, str]) -> list[str]:
    """A block of text: every contest of that name, the columns as wide as they must be."""
    rows = [row["extra_info"] for row in bench()["benchmarks"] if row["extra_info"].get("contest") == name]
    heading = ("backend", "batch", f"{columns[0]} ms", f"{columns[1]} ms", columns[2], "95 % interval")
    lines = [heading]
    for row in rows:
        times = (f"{1e3 * row[key]:.3f}" for key in ("seconds", "baseline_seconds"))
        label = f"{row.get('network') or row['model']} {row['runner']} {row['artifact']}"
        interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        lines.append((label, str(row["batch"]), *times, f"{row['ratio']:.2f}", interval))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return ["```", *text, "```"]


def ratio(name: str, runner: str, artifact: str, batch: int) -> str:
    """A contest's ratio and interval."""
    where = (name, runner, artifact, batch)
    keys = ("contest", "runner", "artifact", "batch")
    rows = [row["extra_info"] for row in bench()["benchmarks"]]
    [row] = [row for row in rows if tuple(row.get(key) for key in keys) == where]
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"


def fastest() -> list[str]:
    """What the best files take of eager's time and of the default export's."""
    ort, openvino = "onnxruntime-cpu", "openvino-cpu"
    return prose(
        f"On that machine, one image: the C function takes {ratio('eager', 'native-cpu', 'native-fp32', 1)} of eager "
        f"PyTorch's time, `folded` in ONNX Runtime {ratio('eager', ort, 'folded-fp32', 1)}, and "
        f"{ratio('default', ort, 'folded-fp32', 1)} of what `torch.onnx.export` and "
        "`InferenceSession` give with their defaults, which use both cores. At batch 256 `matmul-int8` in OpenVINO "
        f"takes {ratio('eager', openvino, 'matmul-int8', 256)} of eager's, in float32 `folded` "
        f"{ratio('eager', openvino, 'folded-fp32', 256)}."
    )


def proof() -> list[str]:
    """What the newest proof of a CPU found."""
    content = kept(f"{PROOF_PREFIX}*.json")
    trials = content["trials"]
    rows = [
        (
            trial.get("target", content.get("target")),
            trial["trial"],
            str(trial["batch"]),
            f"{trial['found']} of {len(trial['rows'])}",
        )
        for trial in trials
    ]
    columns = ("on this machine", "trial", "batch", "held 1, or found slower")
    return markdown_table(columns, rows)[:-1]


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
    return markdown_table(("artifact", "grid, px", "log-probability", "in units of float32 eager's own"), rows)[:-1]


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
    return prose(
        f"`tuned` gives the very same network {100 * ours['mean']:.2f} % on CIFAR-10 instead of 57 % (seeds "
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
    columns = ("", f"seeds {', '.join(gain['seeds'])}", "mean", "95 % interval")
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


def costs() -> list[str]:
    """Multiply-adds of the two that are set against each other at equal cost."""
    counts = {name: each["multiply_adds"] for name, each in kept("training-gain-cpu.json")["runs"][0]["models"].items()}
    return prose(
        "`DATASET=cifar10-affine` turns, scales and shifts every image; `cnn-matched` is the plain CNN widened to the "
        f"transformer's multiply-adds ({counts[MATCHED]:,} against {counts[SUBJECT]:,})."
    )


def speed() -> list[str]:
    """An epoch of training against the tutorial's loop."""
    rows = {row["what"].split(", ")[-1]: row for row in kept("training-speed-cpu.json")["rows"] if "ratio" in row}
    said = {name: f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f})" for name, row in rows.items()}
    return prose(
        "An epoch takes the tutorial's loop (PIL transforms, DataLoader with 4 workers, `.item()` every step) "
        f"{rows[SUBJECT]['ratio']:.2f} times as long as ours for the transformer {said[SUBJECT]} and "
        f"{rows[PLAIN]['ratio']:.2f} times for the plain CNN {said[PLAIN]}, on the {rows[PLAIN]['dataset']} with "
        f"{rows[PLAIN]['threads']} threads (`make bench-train`, "
        "`benchmarks/results/training-speed-cpu.json`)."
    )


def card() -> list[str]:
    """Show the card of the stored demo run; a report of schema 2 used other words for the same lines."""
    content = kept("digits-cpu.json")
    words = CARD_WORDS if content["schema"] == "stn_export/report/2" else {}
    lines = [f"{words.get(word, word):<{LABEL}}{sentence}" for word, sentence in content["card"]]
    return ["```", *lines, "```"]


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "card": card,
    "transformer against CNN": lambda: contests("overhead", ("STN", "CNN", "STN/CNN")),
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
    **survival.BLOCKS,
}


def page(text: str) -> str:
    """A page with all its figures made anew."""
    for name, block in BLOCKS.items():
        if f"<!-- {name} -->" in text:
            text = filled(text, name, block())
    return text


def main() -> None:
    """Write all pages anew, from files whose derived figures are those of their raw values.

    Raises:
        CheckFailedError: naming the figures that are not.
    """
    if lines := stale(kept_files()):
        raise CheckFailedError("kept figures are stale; 'python -m tests.recomputed' makes them anew", *lines)
    changed = [path.name for path in PAGES if write_if_changed(path, page(path.read_text(encoding="utf-8")).encode())]
    sys.stdout.write(f"wrote {', '.join(changed)}\n" if changed else "all pages are up to date\n")


if __name__ == "__main__":
    sys.exit(cli.run(lambda _=None: main()))
