"""Try every network through ``export_onnx``, ``check`` and ``adopt``: ``python -m tests.network_table``.

Each file is judged by a float64 run of a fresh module at another batch, written here and not in the package. Writes
artifacts/networks.json as it goes; a network that is there for the same commit, with ``--resume`` for any, is not tried
again. Where all were tried and none is at fault, the table is kept in benchmarks/results/networks.json, from which
``make readme`` writes that of docs/networks.md. The exit code is 1 where a file called equal is wrong, one is lost, or
a right one fails.
"""

import argparse
import copy
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import stn_export
from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.program.specs import Given
from stn_export.run.environment import cpu_name, git_commit, instruction_sets, versions
from stn_export.verify import __main__ as verify
from tests.exportable import EXPORTABLE
from tests.packaged import PACKAGED
from tests.public import PUBLIC, built
from tests.stateful import KEEPS
from tests.zoo import ZOO

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "artifacts" / "networks.json"
RESULTS = ROOT / "benchmarks" / "results" / "networks.json"
BATCHES = (2, 3)  # the example's, and another
ALLOWED = 2e-3  # of the largest value: coordinates rounded in float32 move samples of unsmooth inputs
RIGHT, REFUSED, UNTRIED = "right", "refused", "not tried"
TOLD = "told"  # the file is wrong, and the check that looked at it says so
UNCOMPARED = (
    "not comparable"  # PyTorch itself gives no finite number, and the check says that there was nothing to compare
)
WRONG, LOST, FAILED, BUG = "WRONG", "LOST", "FAILED", "TRACEBACK"  # each is a fault of this package
FINE = (RIGHT, REFUSED, UNTRIED, TOLD, UNCOMPARED)
WAYS = ("export_onnx", "check", "adopt")
RUNNERS = ("eager-cpu", "onnxruntime-cpu")  # a compiler takes minutes a network, and is no exporter
ROWS = ("matmul-fp32", "gather-fp32", "plain-fp32")
Example = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """One network: where it is from, how it is made anew, and its arguments and keywords for a batch."""

    name: str
    source: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Example]
    options: dict[str, Any] = field(default_factory=dict)
    package: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a network in one way: a verdict, and the sentence or the worst error behind it."""

    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Line:
    """A network's outcomes."""

    name: str
    source: str
    export_onnx: Outcome
    check: Outcome
    adopt: Outcome


def fresh(kind: Callable[[], nn.Module]) -> nn.Module:
    """Make a module with the same weights every time, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind().eval()


def random_of(shape: Sequence[int]) -> Callable[[int], Example]:
    """Make the example of a network that takes one tensor of this shape, the batch first."""
    return lambda n: ((torch.rand(n, *shape[1:], generator=torch.Generator().manual_seed(n)),), {})


def networks() -> Iterator[Network]:
    """Yield every network."""
    for name, foreign in ZOO.items():
        yield Network(name, "zoo", foreign.build, lambda n, foreign=foreign: (tuple(foreign.values(n)), {}))
    for name, kind in PUBLIC.items():
        yield Network(name, "public", lambda name=name: built(name), kind.example)
    for name, row in EXPORTABLE.items():
        yield Network(name, "kinds", row.module, lambda n, row=row: (row.example(n), {}), row.options, row.package)
    for kind, shape, _ in KEEPS:
        yield Network(kind.__name__, "state", lambda kind=kind: fresh(kind), random_of(shape))
    for name, each in PACKAGED.items():
        yield Network(name, each.package, each.build, each.example, package=each.package)


def double(value: Any) -> Any:
    """A tensor of floats in float64, its own memory."""
    copied = value.clone() if isinstance(value, Tensor) else value
    return copied.double() if isinstance(copied, Tensor) and copied.is_floating_point() else copied


def reference(network: Network, n: int) -> list[np.ndarray]:
    """What a module made anew gives in float64; in its own precision where it does not run in that."""
    arguments, keywords = network.example(n)
    module = copy.deepcopy(network.build())
    with torch.no_grad():
        try:
            wide, default = module.double(), torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                given = wide(*_pytree.tree_map(double, arguments), **_pytree.tree_map(double, keywords))
            finally:
                torch.set_default_dtype(default)
        except Exception:  # a type that the module names itself
            given = network.build()(*arguments, **keywords)
    return [np.asarray(each) for each in _pytree.tree_leaves(given) if each is not None]


def judged(network: Network, model: onnx.ModelProto) -> Outcome:
    """Run a file at the example's batch, and where it takes another at that one, against the reference."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batched = any(isinstance(size, str) for each in session.get_inputs() for size in each.shape[:1])
    differences = []
    fitting = [n for n in (*BATCHES, 1) if fits(session, leaves_of(network, n))]
    for n in fitting[:2] if batched else fitting[:1]:
        leaves = leaves_of(network, n)
        by_position = zip(session.get_inputs(), leaves, strict=True)
        given = session.run(None, {each.name: leaf.numpy() for each, leaf in by_position})
        for actual, wanted in zip(given, reference(network, n), strict=True):
            differences.append(difference(actual, wanted))
    worst = max(differences)  # of none: nothing was judged
    return Outcome(RIGHT if worst <= ALLOWED else WRONG, f"{worst:.0e}{'' if batched else ', fixed batch'}")


def leaves_of(network: Network, n: int) -> list[Tensor]:
    """The tensors of a call with this batch."""
    return [leaf for leaf in _pytree.tree_leaves(network.example(n)) if isinstance(leaf, Tensor)]


def fits(session: onnxruntime.InferenceSession, leaves: Sequence[Tensor]) -> bool:
    """Whether a file of fixed sizes takes these: ``adopt`` fixes a batch at 1, ``export_onnx`` at the example's."""
    pairs = (
        (size, n)
        for each, leaf in zip(session.get_inputs(), leaves, strict=True)
        for size, n in zip(each.shape, leaf.shape, strict=True)
    )
    return all(size == n for size, n in pairs if isinstance(size, int))


def difference(actual: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the largest value; infinite for other shapes or other places that are not finite."""
    if actual.shape != wanted.shape:
        return np.inf
    finite = np.isfinite(wanted)
    if not np.array_equal(actual[~finite], wanted[~finite].astype(actual.dtype), equal_nan=True):
        return np.inf
    values = wanted[finite].astype(np.float64)
    off = np.abs(actual[finite].astype(np.float64) - values).max(initial=0)
    return float(off / max(1.0, np.abs(values).max(initial=0)))


def exported(network: Network) -> Outcome:
    """``export_onnx``; where it refuses, whether PyTorch's own exporter gives a right file."""
    arguments, keywords = network.example(BATCHES[0])
    try:
        return judged(network, stn_export.export_onnx(network.build(), arguments, keywords, **network.options))
    except UserError as error:
        lost = plainly(network)
        return Outcome(LOST if lost.verdict == RIGHT else REFUSED, error.message)


def plainly(network: Network) -> Outcome:
    """PyTorch's own exporter, told nothing but the names that were asked for."""
    arguments, keywords = network.example(BATCHES[0])
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plain.onnx"
            program = torch.onnx.export(network.build(), arguments, kwargs=keywords, dynamo=True, verbose=False)
            program.save(path)
            model = onnx.load(path)
        other = judged_twice(network, model)
        return Outcome(RIGHT if other <= ALLOWED else WRONG, f"{other:.0e}")
    except Exception as error:  # whatever it raises
        return Outcome(REFUSED, type(error).__name__)


def judged_twice(network: Network, model: onnx.ModelProto) -> float:
    """The worst difference of two calls in a row from one module called as often: what keeps a state differs."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    module, worst = network.build(), 0.0
    for turn in range(2):
        arguments, keywords = _pytree.tree_map(
            lambda leaf, turn=turn: (
                leaf * (1 + turn) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            ),
            network.example(BATCHES[0]),
        )
        leaves = [leaf for leaf in _pytree.tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
        feeds = {each.name: leaf.numpy() for each, leaf in zip(session.get_inputs(), leaves, strict=True)}
        given = session.run(None, feeds)
        with torch.no_grad():
            wanted = _pytree.tree_leaves(module(*_pytree.tree_map(double_kept, arguments), **keywords))
        pairs = zip(given, (np.asarray(each) for each in wanted if each is not None), strict=True)
        worst = max([worst, *(difference(actual, expected) for actual, expected in pairs)])
    return worst


def double_kept(value: Any) -> Any:
    """A tensor's own memory, in its own type."""
    return value.clone() if isinstance(value, Tensor) else value


def checked(network: Network) -> Outcome:
    """``check`` without its timings: the verdict on its file is held against ours."""
    arguments, keywords = network.example(BATCHES[0])
    try:
        with mock.patch("stn_export.api._timed", return_value={}):
            result = stn_export.check(network.build(), arguments, keywords)
    except UserError as error:
        return Outcome(REFUSED, error.message)
    ours = judged(network, result.model)
    if result:
        return ours
    return Outcome(failed(ours.verdict == RIGHT, result.failures), "; ".join(result.failures))


def failed(right: bool, said: Sequence[str]) -> str:
    """The verdict on a check that failed, by whether the file is right."""
    if said and all("there was nothing to compare" in failure for failure in said):
        return UNCOMPARED
    return FAILED if right else TOLD


def adopted(network: Network) -> Outcome:
    """``adopt``, export and verify of the ONNX lowerings that it can have, in ONNX Runtime and PyTorch."""
    arguments, keywords = network.example(BATCHES[0])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            stn_export.adopt(network.build(), Given.of(arguments, keywords), run=run, name="net")
        except UserError as error:
            return Outcome(REFUSED, error.message)
        said = StringIO()
        with redirect_stderr(said):
            code = cli.run(export.main, ["--run", str(run), "--only", *ROWS])
            files = sorted(run.glob("net/*.onnx"))
            code = cli.run(verify.main, ["--run", str(run), "--only", *RUNNERS]) if files else code
        outcomes = {path.stem: judged(network, onnx.load(path)) for path in files}
    wrong = [f"{name} {each.why}" for name, each in outcomes.items() if each.verdict == WRONG]
    lines = [line for line in said.getvalue().splitlines() if not line.startswith("hint")]
    told = " ".join(lines)[:300]
    if code:
        failures = [line for line in lines if " on " in line]
        return Outcome(failed(not wrong, failures) if files else REFUSED, told)
    return Outcome(WRONG, "; ".join(wrong)) if wrong else Outcome(RIGHT, f"{len(files)} files")


def attempt(way: Callable[[Network], Outcome], network: Network) -> Outcome:
    """One way; whatever is no sentence for a user is a bug of this package."""
    try:
        return way(network)
    except Exception as error:
        return Outcome(BUG, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def line_of(network: Network) -> Line:
    """Try one network every way, printing nothing of the stages."""
    if network.package and importlib.util.find_spec(network.package) is None:
        untried = Outcome(UNTRIED, f"{network.package} is not installed")
        return Line(network.name, network.source, untried, untried, untried)
    with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
        outcomes = [attempt(way, network) for way in (exported, checked, adopted)]
    return Line(network.name, network.source, *outcomes)


def kept(commit: str | None) -> list[dict]:
    """The lines that were made before, with this commit or, without one, with any; what was at fault is left out."""
    content = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"networks": []}
    return [line for line in content["networks"] if commit in (None, line["commit"]) and not at_fault(line)]


def at_fault(line: dict) -> bool:
    """Whether any way lost a network, or gave or took something wrong."""
    return not {line[way]["verdict"] for way in WAYS} <= set(FINE)


def main() -> int:
    """Try the networks that are not kept, write file and page, and say what is wrong."""
    parser = argparse.ArgumentParser(description="Try every network every way.")
    parser.add_argument("names", nargs="*", help="only these; writes nothing")
    parser.add_argument("--resume", action="store_true", help="also from other commits, which each line names")
    options = parser.parse_args()
    commit = git_commit()
    environment = {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "versions": versions()}
    lines = [] if options.names else kept(None if options.resume else commit)
    done = {line["name"] for line in lines}
    for network in networks():
        if network.name not in options.names if options.names else network.name in done:
            continue
        line = asdict(line_of(network)) | {"commit": commit}
        lines.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
        if not options.names:
            write(KEPT, environment, lines)
    bad = [line["name"] for line in lines if at_fault(line)]
    untried = [line for line in lines if UNTRIED in {line[way]["verdict"] for way in WAYS}]
    if not (options.names or bad or untried):
        write(RESULTS, environment, lines)
    print(f"{len(lines)} networks, {len(bad)} at fault: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


def write(path: Path, environment: dict[str, object], lines: Sequence[dict]) -> None:
    """Write what was found, a line a network."""
    text = ",\n".join(json.dumps(line) for line in lines)
    head = json.dumps({"schema": "stn_export/networks/1", "environment": environment}, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "networks": [\n{text}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
