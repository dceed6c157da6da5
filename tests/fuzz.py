"""Damaged files of every kind, read as the stages read them: ``make fuzz``.

Half of them have bytes changed anywhere; of the others the content is changed and packed again, so that no checksum
gives them away; manifests whose files and formats disagree and programs that name others' code are among them. They are
read in children of this process with bounded memory and time. An answer and a ``UserError`` are both right; anything
else that is raised, a crash, a hang and code that a file names and that runs are findings. ``docs/survival.md`` keeps
the table.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from stn_export import cli
from stn_export.audit import __main__ as audit_stage
from stn_export.errors import CheckFailedError, UserError
from stn_export.program.program import CONTRACT_FILE
from stn_export.report import __main__ as report_stage
from stn_export.results.contents import held
from stn_export.run.examples import load_examples, read_picture
from stn_export.run.manifest import network_directories
from stn_export.run.schemas import read_points_file, read_verified
from stn_export.run.store import load_arrays, sha256_of
from stn_export.train.handover import load_checkpoint, save_checkpoint
from stn_export.verify.file_comparison import compare_files
from tests.faults import STAGES, changes_of
from tests.runs import enter_networks, lively

SECONDS, BYTES = 60, 12 * 2**30  # of one file, and of a child beyond what it has
MARK = Path(tempfile.gettempdir()) / f"stn-fuzz-ran-{os.getpid()}"
CHUNK = 50  # files a child
INTERESTING = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    0.5,
    float("nan"),
    "",
    "\x1b[2J",
    "../x",
    [],
    {},
    [[]],
    {"a": 1},
)


def flipped(content: bytes, random: random.Random) -> bytes:
    """With some bytes changed, cut out, doubled, or the end missing."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        if not data:
            return bytes(data)
        at = random.randrange(len(data))
        match random.randrange(5):
            case 0 | 1:
                data[at] = random.randrange(256)
            case 2:
                del data[at : at + random.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + random.randrange(1, 64)]
            case _:
                data = data[:at] if random.random() < 0.2 else data
    return bytes(data)


def changed_json(content: bytes, random: random.Random) -> bytes:
    """With values of other types, missing keys, and the like."""
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        place = value
        while isinstance(place, dict | list) and place:
            key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if random.random() < 0.35 or not isinstance(place[key], dict | list) or not place[key]:
                if random.random() < 0.3:
                    del place[key]
                else:
                    place[key] = random.choice(INTERESTING)
                break
            place = place[key]
    return json.dumps(value).encode()


def changed_zip(content: bytes, random: random.Random) -> bytes:
    """With a changed member, packed again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    small = sorted(members, key=lambda name: len(members[name]))
    name = random.choice(small)
    change = changed_json if name.endswith(".json") and random.random() < 0.7 else flipped
    with contextlib.suppress(ValueError):
        members[name] = change(members[name], random)
    if random.random() < 0.1:
        del members[random.choice(list(members))]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def changed_onnx(content: bytes, random: random.Random) -> bytes:
    """With another operator, shape, name or attribute somewhere."""
    model = onnx.load_model_from_string(content)
    node = random.choice(model.graph.node)
    match random.randrange(7):
        case 0:
            node.op_type = random.choice(("Relu", "If", "Loop", "Nonsense", "", "Concat", "GridSample", "Reshape"))
        case 1:
            dims = [dim for each in model.graph.input for dim in each.type.tensor_type.shape.dim]
            random.choice(dims).dim_value = random.choice((-5, 0, 7, 2**20, 2**40, 2**62))
        case 2 if node.input:
            node.input[random.randrange(len(node.input))] = random.choice(("", "nowhere", node.output[0]))
        case 3 if node.attribute:
            attribute = random.choice(node.attribute)
            attribute.i, attribute.f = random.choice((-1, 2**62)), float("nan")
            attribute.type = random.randrange(1, 15)
        case 4:
            tensor = random.choice(model.graph.initializer)
            tensor.dims[:] = [random.choice((-1, 0, 3, 2**33)) for _ in range(random.randrange(4))]
        case 5:
            model.opset_import[0].version = random.choice((-1, 0, 1, 7, 99, 2**62))
        case _:
            del model.graph.node[random.randrange(len(model.graph.node))]
    return model.SerializeToString()


def disagreeing(content: bytes, random: random.Random) -> bytes:
    """A manifest that says of one artifact what holds for another: its file, format, digest, contract or parent."""
    value = json.loads(content)
    one, other = random.sample(list(value["artifacts"].values()), 2)
    told = ("file", "format", "sha256", "contract", "parent_sha256", "lowering", "precision", "name", "beside")
    for name in random.sample(told, random.choice((1, 2, 3))):
        one[name] = other[name]
    if random.random() < 0.5:  # the bytes that are there, under the name and the format of others
        one |= {name: other[name] for name in ("file", "sha256", "beside")}
    return json.dumps(value).encode()


def named_code(content: bytes, random: random.Random) -> bytes:
    """A program that names a callable of others as its own code, and leaves a mark where that is called."""
    calls = (
        {"callable": "os:system", "arguments": {"command": f"touch {MARK}"}},
        {"callable": "os:mkdir", "arguments": {"path": str(MARK)}},
        {"callable": "pathlib:Path.touch", "arguments": {"self": str(MARK)}},
        {"callable": "subprocess:check_output", "arguments": {"args": ["touch", str(MARK)]}},
        {"callable": "builtins:exec", "arguments": {"source": f"open({str(MARK)!r}, 'w')"}},
    )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {each.filename: archive.read(each) for each in archive.infolist()}
    name = next(name for name in members if name.endswith(CONTRACT_FILE))
    members[name] = json.dumps(json.loads(members[name]) | {"origin": random.choice(calls)}).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


@dataclass(frozen=True)
class Target:
    """A kind of file: a good one, how else its content can be changed, and what reads it."""

    name: str
    good: Path
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]
    share: int = 1  # of all files


def targets(folder: Path) -> list[Target]:
    """Every kind, made in ``folder``."""
    run = folder / "exported" / "run"
    enter_networks(run)
    for stage in STAGES[:1] + STAGES[2:4]:
        changes_of(stage, run)
    save_checkpoint(folder / "checkpoint.pt", lively("cnn"), {"model": "cnn", "classes": ["a"]})
    np.savez(folder / "arrays.npz", x=np.zeros((3, 4), np.float32))
    Image.effect_noise((40, 30), 50).convert("RGB").save(folder / "a.png")
    Image.effect_noise((40, 30), 50).save(folder / "a.jpg")
    Image.effect_noise((40, 30), 50).save(folder / "a.tif")
    onnx_file, script = (run / "stn" / name for name in ("folded-fp32.onnx", "torchscript-fp32.ts"))

    def of_run(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
        def reading(path: Path) -> object:
            shutil.copy(path, working(run) / name)
            return read(working(run))

        return reading

    def pair(path: Path) -> object:
        return compare_files(onnx_file, path, None, True)

    return [
        Target("manifest", run / "stn" / "manifest.json", changed_json, of_run("stn/manifest.json", listing), 3),
        Target(
            "manifest, disagreeing", run / "stn" / "manifest.json", disagreeing, of_run("stn/manifest.json", opening), 2
        ),
        Target("program, own code named", run / "stn" / "program.pt2", named_code, of_run("stn/program.pt2", foreign)),
        Target("verify.json", run / "verify.json", changed_json, of_run("verify.json", reporting), 2),
        Target("bench.json", run / "bench.json", changed_json, of_run("bench.json", reporting), 2),
        Target("points.pt", run / "points.pt", changed_zip, of_run("points.pt", read_points_file)),
        Target("examples.pt", run / "examples.pt", changed_zip, load_examples),
        Target("checkpoint", folder / "checkpoint.pt", changed_zip, load_checkpoint),
        Target("arrays", folder / "arrays.npz", changed_zip, load_arrays),
        Target("ONNX, audited", onnx_file, changed_onnx, lambda path: auditing(path), 3),
        Target("ONNX, compared", onnx_file, changed_onnx, pair, 3),
        Target("TorchScript, compared", script, changed_zip, pair),
        Target(".pt2, compared", run / "stn" / "program.pt2", changed_zip, pair),
        *(Target(f"picture, {kind}", folder / f"a.{kind}", flipped, picture) for kind in ("png", "jpg", "tif")),
    ]


def working(run: Path) -> Path:
    """This child's copy of the run, made at its first file."""
    copy = run.parent.parent / f"child-{os.getpid()}"
    if not copy.exists():
        shutil.copytree(run, copy)
    return copy


def listing(run: Path) -> None:
    """What nearly every stage begins with."""
    for directory in network_directories(run):
        directory.expected()
        directory.examples()
    held(run)


def opening(run: Path) -> None:
    """Every artifact that is listed, as verify and predict open it."""
    for directory in network_directories(run):
        for artifact in directory.artifacts.values():
            with contextlib.suppress(UserError):
                path = directory.open(artifact)
                if artifact.format == "onnx" and path.suffix == ".onnx":
                    onnx.load(path)
        directory.program()


def foreign(run: Path) -> None:
    """A program of somebody else: refused, or run as the graph it is where it is trusted, never by what it names."""
    path = run / "stn" / "program.pt2"
    manifest = run / "stn" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["artifacts"]["program"]["sha256"] = sha256_of(path)
    manifest.write_text(json.dumps(content), encoding="utf-8")
    [directory] = [each for each in network_directories(run) if each.name == "stn"]
    for trust in (False, True):
        with contextlib.suppress(UserError):
            if trust:
                directory.trust()
            directory.program().own_module()


def reporting(run: Path) -> None:
    """The content of a report."""
    read_verified(run)
    report_stage.collect(run)


def auditing(path: Path) -> None:
    """What ``audit`` prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        audit_stage.main([str(path), "--json"])


def picture(path: Path) -> None:
    """As ``predict`` and ``adopt`` read it."""
    read_picture(path, 3, 32, 32)


def tried(target: Target, seeds: range, folder: Path) -> tuple[Counter, list[str]]:
    """Read damaged files in a child; what came of each, and the findings."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            silence()
            in_child(target, seeds, folder, pipe)
        os._exit(0)
    os.close(writing)
    outcomes, findings, last = Counter(), [], seeds.start - 1
    with os.fdopen(reading, "rb") as pipe:
        while True:
            try:
                last, outcome = pickle.load(pipe)
            except EOFError:
                break
            kind, _, said = outcome.partition(": ")
            outcomes[kind] += 1
            findings += [f"{target.name}, seed {last}: {said}"] if kind == "raised" else []
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if last + 1 < seeds.stop:
        kind = "hung" if status == -signal.SIGALRM else "crashed"
        outcomes[kind] += 1
        findings.append(f"{target.name}, seed {last + 1}: {kind} ({status})")
        more, others = tried(target, range(last + 2, seeds.stop), folder) if last + 2 < seeds.stop else (Counter(), [])
        outcomes, findings = outcomes + more, findings + others
    return outcomes, findings


def silence() -> None:
    """What is printed is nobody's, also where C++ does it or Python dies."""
    faulthandler.disable()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def in_child(target: Target, seeds: range, folder: Path, pipe: io.BufferedWriter) -> None:
    """Read a file for every seed and say what came of it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    content = target.good.read_bytes()
    path = folder / f"damaged-{os.getpid()}{target.good.suffix}"
    for seed in seeds:
        chance = random.Random(seed)
        path.write_bytes((target.change if seed % 2 else flipped)(content, chance))
        signal.alarm(SECONDS)
        pickle.dump((seed, outcome_of(target.read, path)), pipe)
        pipe.flush()
    path.unlink()
    shutil.rmtree(folder / f"child-{os.getpid()}", ignore_errors=True)


def outcome_of(read: Callable[[Path], object], path: Path) -> str:
    """``answered``, ``refused``, or ``raised`` and what."""
    try:
        read(path)
        if MARK.exists():
            raise AssertionError("what a file names has run")
    except CheckFailedError:
        return "answered"
    except Exception as error:
        if cli.as_user_error(error):
            return "refused"
        last = error.__traceback__
        while last.tb_next:
            last = last.tb_next
        place = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
        return f"raised: {type(error).__name__} at {place}: {str(error)[:150]}"
    return "answered"


def main() -> None:
    """Try so many files of every kind, print the table and the findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", help="kinds of files")
    parser.add_argument("--first", type=int, default=0, help="seed")
    parser.add_argument("--keep", type=Path, help="write the table there as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, findings = [], []
    with tempfile.TemporaryDirectory() as name:
        kinds = targets(Path(name))
        kinds = [each for each in kinds if not options.only or each.name in options.only]
        shares = sum(each.share for each in kinds)
        for target in kinds:
            count, outcomes = -(-options.files * target.share // shares), Counter()
            for start in range(options.first, options.first + count, CHUNK):
                seeds = range(start, min(start + CHUNK, options.first + count))
                more, found = tried(target, seeds, Path(name))
                outcomes += more
                findings += found
                print(*found, sep="\n", end="\n" * bool(found), flush=True)
            said = {kind: outcomes[kind] for kind in ("answered", "refused", "raised", "crashed", "hung")}
            rows.append({"file": target.name, "tried": count} | said)
            print(rows[-1], flush=True)
    print(f"tried {sum(row['tried'] for row in rows)}, findings {len(findings)}")
    if options.keep:
        options.keep.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
