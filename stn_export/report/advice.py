"""The benchmarks in words: which artifact to ship, what the network costs there, and how sure that is."""

import math
from collections.abc import Mapping

from stn_export.artifacts.manifest import PLAIN, PROGRAM, SUBJECT
from stn_export.comparison.fastest import Choice, Portability, Proved, Rows, choices, program

NAMED = 3  # ties that are named
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


def advise(rows: Rows, timed: Rows, proved: Proved, portability: Portability, environment: Mapping) -> list[str]:
    """What to ship for latency, what for throughput, and what this holds for; one device's, a text each.

    Args:
        rows: all of the device's rows.
        timed: one of them for each program and batch, of the bound step.
        proved: the accuracy of what verification found equal.
        portability: verdicts by lowering and runtime.
        environment: the machine's, as the results carry it.

    Returns:
        nothing where no artifact of the subject that is proved equal was timed for one example.
    """
    ours = [row for row in timed if row["role"] == SUBJECT and program(row) in proved]
    chosen = choices(ours, portability)
    if chosen is None:
        return []
    quick, most = chosen
    opening = f"On the {DEVICES[quick.row['device']]}, for latency ship {_named(quick.row)}: {_latency(quick.row)}."
    second = f"For throughput ship {_named(most.row)} at batch {most.row['batch']:,}: {_rate(most.row)}."
    last = [*_unproved(timed, proved, quick.fastest), _holds_for(quick.row, environment), *_disturbed(rows)]
    return [
        " ".join([opening, *_ties(quick), *_costs(rows, quick.row, proved)]),
        " ".join([second, *_ties(most), *_costs(rows, most.row, proved)]),
        " ".join(last),
    ]


def _named(row: dict) -> str:
    return f"{row['artifact']} in {row['runner']}"


def _latency(row: dict) -> str:
    median, low, high = (f"{1e3 * row[name]:.3g}" for name in ("p50", "p50_low", "p50_high"))
    return f"{median} ms for one example (95 % interval {low} to {high})"


def _rate(row: dict) -> str:
    median, low, high = (f"{row['batch'] / row[name]:,.0f}" for name in ("p50", "p50_high", "p50_low"))
    return f"{median} examples a second (95 % interval {low} to {high})"


def _ties(choice: Choice) -> list[str]:
    """That the fastest cannot be told from others, and what decided."""
    if not choice.tied:
        return []
    others = [row for row in (choice.fastest, *choice.tied) if row is not choice.row]
    names = ", ".join(map(_named, others[:NAMED])) + (f" and {len(others) - NAMED} more" if others[NAMED:] else "")
    return [f"We cannot tell whether it is faster or slower than {names}; of these it is the most portable file."]


def _costs(rows: Rows, row: dict, proved: Proved) -> list[str]:
    """The subject against the plain network, and the artifact against eager, each with its interval; accuracy."""
    sentences = []
    if contest := _contest(rows, "overhead", row):
        where = "There" if contest["batch"] == row["batch"] else f"At batch {contest['batch']:,}"
        sentences.append(f"{where} the {row['label']} {_cost(contest)}.")
    elif plain := next((each["label"] for each in rows if each["role"] == PLAIN), None):
        sentences.append(f"Not measured there: what it costs against the {plain}.")
    if contest := _contest(rows, "eager", row):
        where = "there" if contest["batch"] == row["batch"] else f"at batch {contest['batch']:,}"
        sentences.append(f"This artifact is {_speed(contest, where)}.")
    return sentences + _accuracy(row, proved)


def _contest(rows: Rows, name: str, row: dict) -> dict | None:
    """The program's contest at the batch nearest to the row's, by factor; at the larger of two that are as near."""
    found = [each for each in rows if each.get("contest") == name and program(each) == program(row)]
    return min(found, key=lambda each: (abs(math.log(each["batch"] / row["batch"])), -each["batch"]), default=None)


def _cost(contest: dict) -> str:
    interval = f"95 % interval {contest['ratio_low']:.2f} to {contest['ratio_high']:.2f}"
    times = f"{contest['ratio']:.2f} times the {contest['baseline_label']}"
    if contest["verdict"] == "cannot tell":
        return f"may cost something or nothing, we cannot tell ({times}, {interval})"
    return f"costs {times} ({interval})"


def _speed(contest: dict, where: str) -> str:
    ratio, low, high = (1 / contest[name] for name in ("ratio", "ratio_high", "ratio_low"))
    doubt = ": we cannot tell them apart" if contest["verdict"] == "cannot tell" else ""
    return f"{ratio:.2f} times as fast as eager PyTorch {where} (95 % interval {low:.2f} to {high:.2f}){doubt}"


def _accuracy(row: dict, proved: Proved) -> list[str]:
    """The artifact's accuracy, where there are labels, beside the network's own in PyTorch."""
    accuracy = proved[program(row)]
    own = (row["network"], PROGRAM)
    eager = next((value for (*name, _), value in proved.items() if tuple(name) == own), None)
    if accuracy is None:
        return []
    if eager is None:
        return [f"Its accuracy is {accuracy:.2%}."]
    change = f"{100 * (accuracy - eager):+.2f}"
    told = "as in eager PyTorch" if float(change) == 0 else f"{change} points against eager PyTorch"
    return [f"Its accuracy is {accuracy:.2%}, {told}."]


def _unproved(timed: Rows, proved: Proved, fastest: dict) -> list[str]:
    """What was faster for one example and stays out because nothing proves it equal."""
    known = [
        row
        for row in timed
        if row["role"] == SUBJECT and row["batch"] == 1 and program(row) not in proved and row["p50"] < fastest["p50"]
    ]
    if not known:
        return []
    return [f"Faster, but left out because no check of today proves it equal: {', '.join(map(_named, known[:NAMED]))}."]


def _holds_for(row: dict, environment: Mapping) -> str:
    """The machine, threads and arithmetic that the figures are of."""
    machine = environment["gpu"] if row["device"] == "cuda" else environment["cpu"]
    threads = f"{row['threads']} thread{'s' * (row['threads'] != 1)}"
    tf32 = f", TF32 {'on' if row['tf32'] else 'off'}" if row["device"] == "cuda" else ""
    return f"All this holds for {machine}, {threads}{tf32}; another machine may order them otherwise."


def _disturbed(rows: Rows) -> list[str]:
    """A warning where the machine was busy with something else, or throttled."""
    timings = [row["disturbed"] for row in rows if "disturbed" in row]
    blocks = sum(row.get("blocks", 0) for row in rows)
    disturbed = sum(row.get("disturbed_blocks", 0) for row in rows)
    if not any(timings) and not disturbed:
        return []
    return [
        f"Warning: {sum(timings)} of {len(timings)} timings and {disturbed:,} of {blocks:,} blocks were disturbed by "
        "something else on the machine; they are flagged, not deleted, and a quiet machine would say it more surely."
    ]
