"""What faults do to a run: ``make faults`` kills every stage at every change that it makes to the disk.

It also lets each of these fail as on a full disk, ends the stages by SIGTERM, SIGINT and SIGHUP there, deletes the run
beneath them, starts every pair of them at once, kills the C compiler and ends ``runtimes`` while pip works;
``docs/survival.md`` keeps the table. A change is what Python's audit hooks report: a file opened to be written, renamed
or removed, a directory made. After each fault the run must hold nothing that its manifests do not stand for, no file
may be half an old and half a new one, and the same stage must then come to its usual end and leave no temporary file.
"""

import argparse
import contextlib
import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

from stn_export import cli
from stn_export.cli import children
from stn_export.play import __main__ as play
from stn_export.run.manifest import MANIFEST, network_directories
from stn_export.run.store import PARTIAL, sha256_of
from stn_export.runners.external.environments import in_folder, runtimes_here
from tests.runs import enter_networks

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ALONE = ("adopt", "train", "play", "compile")  # not started in pairs: other states, or as one that is
FEW = 6  # places of a stage that a signal is sent at
LATE = 240  # seconds, after which a stage hangs
VARYING = (
    ".checks.jsonl",
    ".rows.jsonl",
    ".lock",
    ".holder",
    "bench.json",
    "report.html",
    "report.md",
    "report.json",
    "verify.json",
    MANIFEST,
)
VARYING += ("history.jsonl", "training.json", "training.pt")
VARYING += ("MODEL_CARD.md", "points.pt", ".ts")  # which hold times, what follows from them, or a count of classes


def net() -> torch.nn.Module:
    """What is adopted."""
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 2, 3).eval()


@dataclass(frozen=True)
class Stage:
    """A stage of ``stn-export``, what it is called with, and what it needs of those before."""

    name: str
    command: str
    arguments: tuple[str, ...]
    ready: str = "exported"  # the state of the run that it starts from


EXPORTED = ("folded-fp32", "plain-fp32", "torchscript-fp32", "native-fp32")
STAGES = (
    Stage("export", "export", ("--run", "{run}", "--only", *EXPORTED), "entered"),
    Stage(
        "triton",
        "export",
        ("--run", "{run}", "--only", *EXPORTED, "--triton", "{run}/triton"),
    ),
    Stage("verify", "verify", ("--run", "{run}")),
    Stage("bench", "bench", ("--run", "{run}", "--suites", "startup", "-k", "stn-onnxruntime-cpu")),
    Stage("report", "report", ("--run", "{run}")),
    Stage("predict", "predict", ("{run}/../a.png", "--artifact", "{run}/stn/program.pt2", "--output", "{run}/out.npz")),
    Stage(
        "train",
        "train",
        ("--run", "{run}", "--dataset", "digits", "--models", "cnn", "--epochs", "1", "--device", "cpu"),
        "empty",
    ),
    Stage("play", "play", ("--run", "{run}", "--runtime", "{run}/../web", "--build-only")),
    Stage("compile", "verify", ("--run", "{run}", "--only", "native-cpu")),
    Stage(
        "adopt", "adopt", ("tests.faults:net", "--input", "input=N,1,8,8", "--run", "{run}", "--name", "net"), "empty"
    ),
)

STAGE = {stage.name: stage for stage in STAGES}
PARTS = ("changes", "pairs", "programs")  # faults at each change, two stages at once, the compiler and pip


def call(stage: Stage, run: Path, on_change: Callable[[str], None] | None = None, started: float = 0.0) -> int:
    """Run a stage in a fork of this process.

    Args:
        stage: which.
        run: the run directory.
        on_change: called before each change of the disk beneath the run's parent.
        started: when to begin.

    Returns:
        Its exit code, 128 and the signal's number where one ended it, 99 after a traceback.
    """
    child = os.fork()
    if not child:
        code = 99
        try:
            signal.alarm(LATE)
            os.environ["XDG_CACHE_HOME"] = str(run.parent / "cache")
            with (
                contextlib.redirect_stdout(io.StringIO()),
                (run.parent / "said.txt").open("a", encoding="utf-8") as said,
            ):
                time.sleep(max(0.0, started - time.time()))
                with contextlib.redirect_stderr(said):
                    watch(run.parent.resolve(), on_change)
                    arguments = [each.replace("{run}", str(run)) for each in stage.arguments]
                    code = exit_code(import_module(f"stn_export.{cli.COMMANDS[stage.command][0]}").main, arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def exit_code(main: Callable, arguments: list[str]) -> int:
    """What the process would end with."""
    try:
        return cli.run(main, arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def watch(folder: Path, on_change: Callable[[str], None] | None) -> None:
    """From now on tell ``on_change`` of every change beneath a folder."""
    own, inside = os.getpid(), str(folder)

    def hook(event: str, arguments: tuple) -> None:
        if on_change is None or os.getpid() != own or not (event == "open" or event in CHANGES):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        if isinstance(arguments[0], str | bytes | os.PathLike):
            path = str(Path(os.fsdecode(arguments[0])).absolute())
            if path.startswith(inside) and not path.endswith("said.txt"):
                on_change(event)

    sys.addaudithook(hook)


class Counted:
    """Does something at the n-th change, or only counts."""

    def __init__(self, at: int = 0, act: Callable[[], None] | None = None) -> None:
        self.count, self.at, self.act = 0, at, act

    def __call__(self, event: str) -> None:
        self.count += 1
        if self.act and self.count == self.at:
            self.act()


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def ended_by(number: signal.Signals) -> Callable[[], None]:
    """Send this process a signal that asks it to end."""
    return lambda: os.kill(os.getpid(), number)


def fill() -> None:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


def changes_of(stage: Stage, run: Path) -> int:
    """How many changes a stage makes; it must succeed."""
    reading, writing = os.pipe()

    class Telling(Counted):
        def __call__(self, event: str) -> None:
            os.write(writing, b"x")

    code = call(stage, run, Telling())
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        count = len(pipe.read())
    if code:
        raise RuntimeError(
            f"{stage.name} gives {code} undisturbed: {(run.parent / 'said.txt').read_text(encoding='utf-8')}"
        )
    return count


def whole(run: Path, before: dict[str, str], after: dict[str, str]) -> str:
    """What is wrong with a run after a fault; nothing where each file is as it was or as it is to be."""
    if not any(run.glob(f"*/{MANIFEST}")):
        return "the networks are gone" if before else ""
    try:
        for directory in network_directories(run):
            for artifact in directory.artifacts.values():
                directory.intact(artifact)
    except Exception as error:
        if not before and "holds no network" in str(error):
            return ""  # a manifest of files, but none of a network: as empty as it was
        return f"{type(error).__name__}: {error}".splitlines()[0]
    now = contents(run)
    for name, digest in now.items():
        if not name.endswith(VARYING) and digest not in (before.get(name), after.get(name)):
            return f"{name} is neither the old nor the new one"
    for path in run.rglob("*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path.name} is half a file"
    return next((f"{name} is lost" for name in before if name not in now and name in after), "")


def contents(run: Path) -> dict[str, str]:
    """The digest of every file by its name; temporary ones do not count."""
    files = [
        path for path in run.rglob("*") if path.is_file() and not path.name.endswith((PARTIAL, ".lock", ".holder"))
    ]
    return {path.relative_to(run).as_posix(): sha256_of(path) for path in files}


def repeated(stage: Stage, run: Path, after: dict[str, str]) -> str:
    """What is wrong once the stage has run again; nothing where it comes to its usual end."""
    if code := call(stage, run):
        return f"run again it gives {code}"
    if left := [path.name for path in run.rglob(f"*{PARTIAL}")]:
        return f"{left[0]} is left over"
    now = contents(run)
    if missing := sorted(after.keys() - now.keys()):
        return f"{missing[0]} is missing"
    differing = [name for name in after if not name.endswith(VARYING) and now[name] != after[name]]
    return f"{differing[0]} differs" if differing else ""


def states(folder: Path) -> dict[str, Path]:
    """Run directories that stages start from, by state."""
    made = {name: folder / name / "run" for name in ("empty", "entered", "exported")}
    made["empty"].mkdir(parents=True)
    enter_networks(made["entered"])
    shutil.copytree(made["entered"].parent, made["exported"].parent)
    changes_of(STAGES[0], made["exported"])
    for run in made.values():
        Image.new("RGB", (32, 32)).save(run.parent / "a.png")
        (run.parent / "web").mkdir()
        for name in play.FILES:
            (run.parent / "web" / name).write_text("what a browser would load", encoding="utf-8")
        (run.parent / "said.txt").unlink(missing_ok=True)
    return made


@contextlib.contextmanager
def copied(run: Path) -> Iterator[Path]:
    """A copy of a run and what lies beside it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(run.parent, Path(folder) / "copy")) / "run"


Outcome = tuple[str, str, int, list[str]]  # stage, kind, how many were tried, what was lost


def disturbed(stage: Stage, run: Path, most: int | None = None) -> Iterator[Outcome]:
    """Kill the stage at every change, and let every change fail."""
    before = contents(run)
    with copied(run) as undisturbed:
        count = changes_of(stage, undisturbed)
        after = contents(undisturbed)
    places = range(1, count + 1)
    places = sorted(random.Random(0).sample(places, most)) if most and most < count else places
    few = places[:: max(1, len(places) // FEW)]  # of what ends in the same way wherever it comes
    full = (2, 0, 1) if stage.name == "bench" else (2, 0)  # 1: a row that could not be timed
    kinds = [("killed", kill, (137, 0), places), ("disk full", fill, full, places)]
    kinds += [(number.name, ended_by(number), (130, 0), few) for number in ENDING]
    for kind, act, codes, chosen in kinds:
        lost = []
        for place in chosen:
            with copied(run) as copy:
                code = call(stage, copy, Counted(place, act))
                said = (copy.parent / "said.txt").read_text(encoding="utf-8")
                wrong = "" if code in codes else f"exit code {code}: {said[-300:]}"
                wrong = wrong or whole(copy, before, after) or repeated(stage, copy, after)
            lost += [f"{stage.name}, {kind} at change {place} of {count}: {wrong}"] if wrong else []
        yield stage.name, kind, len(chosen), lost
    lost = [line for place in few if (line := deleted(stage, run, place))]
    yield stage.name, "beside rm -rf", len(few), lost


def deleted(stage: Stage, run: Path, place: int) -> str:
    """What is wrong where the run is deleted beneath a stage: it says so, and writes nothing elsewhere."""
    with copied(run) as copy:
        before = {path.name for path in copy.parent.iterdir()} | {"said.txt", "out.npz", "cache"}
        code = call(stage, copy, Counted(place, partial(shutil.rmtree, copy, ignore_errors=True)))
        said = (copy.parent / "said.txt").read_text(encoding="utf-8")
        others = {path.name for path in copy.parent.iterdir()} - before
    where = f"{stage.name}, the run deleted at change {place}"
    if others:
        return f"{where}: {sorted(others)[0]} was written beside it"
    return "" if code in (0, 1, 2) else f"{where}: exit code {code}: {said[-300:]}"


def compiler_killed(run: Path) -> list[Outcome]:
    """Let the C compiler be killed by every signal while ``verify`` builds the C function."""
    lost = []
    for number in (signal.SIGKILL, *ENDING):
        with copied(run) as copy:
            compiler = copy.parent / "cc"
            compiler.write_text(f"#!/bin/sh\nkill -{int(number)} $$\n", encoding="utf-8")
            compiler.chmod(0o755)
            before, here = contents(copy), os.environ.get("CC")
            os.environ["CC"] = str(compiler)
            try:
                code = call(STAGE["compile"], copy)
            finally:
                os.environ.pop("CC")
                os.environ |= {"CC": here} if here else {}
            said = (copy.parent / "said.txt").read_text(encoding="utf-8")
            wrong = "" if code in (1, 2) else f"exit code {code}: {said[-300:]}"
            wrong = (
                wrong
                or whole(copy, before, before)
                or (f"then {code}" if (code := call(STAGE["compile"], copy)) else "")
            )
        lost += [f"C compiler, {number.name}: {wrong}"] if wrong else []
    return [("C compiler", "killed", 1 + len(ENDING), lost)]


def pip_ended() -> list[Outcome]:
    """End ``runtimes`` by every signal while pip waits for an index that never answers."""
    lost = []
    for number in (signal.SIGKILL, *ENDING):
        with socket.create_server(("127.0.0.1", 0)) as silent, tempfile.TemporaryDirectory() as folder:
            index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
            environment = children.environment({"PIP_INDEX_URL": index, "PIP_CONFIG_FILE": os.devnull})
            command = children.module("stn_export", "runtimes", "--into", folder)
            with subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as process:
                silent.settimeout(LATE)
                connection, _ = silent.accept()  # pip asks
                process.send_signal(number)
                _, said = process.communicate(timeout=LATE)
                connection.close()
            left = started_in(folder)
            wrong = f"{left} is left running" if left else ""
            if process.returncode not in (130, -signal.SIGKILL) or b"Traceback" in said:
                wrong = wrong or f"exit code {process.returncode}: {said[-300:]!r}"
            with in_folder(Path(folder)):
                wrong = wrong or (f"counts as installed: {there}" if (there := runtimes_here()) else "")
        lost += [f"runtimes, {number.name}: {wrong}"] if wrong else []
    return [("runtimes", "ended", 1 + len(ENDING), lost)]


def started_in(folder: str, seconds: float = 10) -> str:
    """The command of a process that still runs a program of this folder after some seconds; empty without one."""
    end = time.monotonic() + seconds
    while True:
        running = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
        left = next((line for line in running if folder.encode() in line.split(b"\0")[0]), b"")
        if not left or time.monotonic() > end:
            return left.replace(b"\0", b" ").decode(errors="replace").strip()
        time.sleep(0.1)


def together(one: Stage, other: Stage, runs: dict[str, Path], rounds: int) -> list[Outcome]:
    """Start two stages on one run at once, several times."""
    lost = []
    for number in range(rounds):
        with copied(runs["exported"]) as run:
            begin = time.time() + 0.1
            children = []
            for stage in (one, other):
                child = os.fork()
                if not child:
                    os._exit(call(stage, run, started=begin + 0.05 * number * (stage is other)) % 256)
                children.append(child)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            said = (run.parent / "said.txt").read_text(encoding="utf-8") if (run.parent / "said.txt").exists() else ""
            wrong = "" if codes == [0, 0] else f"exit codes {codes}: {said[-300:]}"
            wrong = wrong or whole(run, {}, contents(run))
        lost += [f"{one.name} and {other.name}, round {number}: {wrong}"] if wrong else []
    return [(f"{one.name} and {other.name}", "at once", rounds, lost)]


Trial = partial[Iterable[Outcome]]


def tried(trial: Trial) -> list[Outcome]:
    """The outcomes of one trial, which a process of the pool runs; one that cannot be made costs no other."""
    try:
        return list(trial())
    except Exception as error:
        names = [each.name for each in trial.args if isinstance(each, Stage)]
        return [(" and ".join(names) or trial.func.__name__, "not tried", 0, [str(error)])]


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """The kept rows with these instead of their own, new ones last."""
    known = {(row["stage"], row["fault"]): row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    return list((known | {(row["stage"], row["fault"]): row for row in rows}).values())


def main() -> None:
    """Try everything, print the table, and say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", nargs="*", default=[stage.name for stage in STAGES])
    parser.add_argument("--most", type=int, help="changes of each stage; by default all")
    parser.add_argument("--rounds", type=int, default=20, help="of each pair of stages")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at once")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what is tried; by default all")
    parser.add_argument("--keep", type=Path, help="write the table there as JSON")
    parser.add_argument("--merge", action="store_true", help="keep the rows there of what is not tried now")
    options = parser.parse_args()
    for number in ENDING:  # nohup has some ignored, and what is started inherits that
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    torch.set_num_threads(1)
    for command in {stage.command for stage in STAGES}:
        import_module(f"stn_export.{cli.COMMANDS[command][0]}")  # once, not in every fork
    chosen = [stage for stage in STAGES if stage.name in options.stages]
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        runs = states(Path(folder))
        pairs = itertools.combinations_with_replacement([stage for stage in chosen if stage.name not in ALONE], 2)
        by_part: dict[str, list[Trial]] = {
            "changes": [partial(disturbed, stage, runs[stage.ready], options.most) for stage in chosen],
            "pairs": [partial(together, *pair, runs, options.rounds) for pair in pairs],
            "programs": [partial(compiler_killed, runs["exported"]), partial(pip_ended)],
        }
        trials = [trial for part in options.parts for trial in by_part[part]]
        for outcome in itertools.chain.from_iterable(pool.imap(tried, trials)):
            outcomes.append(outcome)
            print(
                f"{outcome[0]:20} {outcome[1]:10} {outcome[2]:4} tried, {len(outcome[3])} lost",
                *outcome[3],
                sep="\n  ",
                flush=True,
            )
    lost = [line for outcome in outcomes for line in outcome[3]]
    print(f"tried {sum(outcome[2] for outcome in outcomes)}, lost {len(lost)}")
    if options.keep:
        rows = [
            {"stage": name, "fault": kind, "tried": tried, "lost": len(lines)} for name, kind, tried, lines in outcomes
        ]
        rows = merged(options.keep, rows) if options.merge else rows
        options.keep.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
