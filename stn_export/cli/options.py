"""Command-line parsers, one function per stage; quick to import, so that ``--help`` is quick."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stn_export.cli.tables import FORMS, OUTPUT
from stn_export.config import ARTIFACTS, DEFAULT_RUN, FOLDER
from stn_export.errors import EXIT_CODES, UserError, did_you_mean
from stn_export.limits import require

SHAPE = "sizes of an input that the file leaves open; others are searched"
BUDGET = "time such as 90s, 3m or 1h after which no other row is timed; what answers most comes first"
UNITS = {"s": 1, "m": 60, "h": 3600}  # in seconds


def path(text: str) -> Path:
    """Convert an argument to a path, which may not contain a NUL."""
    if "\0" in text:
        raise argparse.ArgumentTypeError("a path cannot hold a NUL")
    return Path(text)


def path_or_none(text: str) -> Path | None:
    """Convert an argument to a path; None for the empty string that Make passes for an unset variable."""
    return path(text) if text else None


def int_or_none(text: str) -> int | None:
    """Convert an argument to an integer; None for the empty string."""
    try:
        return int(text) if text else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no whole number") from None


def number(limit: str, least: int = 0) -> Callable[[str], int]:
    """Make an argument type: a whole number from ``least`` to the limit ``limit`` in ``LIMITS``."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid: {text[:80]!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return require(limit, value, "it")

    return whole


def names(text: str) -> tuple[str, ...]:
    """Split an argument at its commas into names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Convert ``NAME=1,16000`` to a name and sizes; ``NAME=`` is a scalar."""
    name, _, sizes = text.rpartition("=")
    parts = [size.strip() for size in sizes.replace("x", ",").split(",") if size.strip()]
    if not name or not all(size.isdecimal() for size in parts):
        raise argparse.ArgumentTypeError(f"invalid: write {text[:80]!r} as NAME=1,16000")
    return name, tuple(map(int, parts))


def tolerance(text: str) -> float:
    """Convert an argument to a tolerance: finite and not negative."""
    return seconds(text)


def seconds(text: str) -> float:
    """Convert an argument to seconds: finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"invalid: {text[:80]!r} is no number from 0")
    return value


def time(text: str) -> float | None:
    """Convert a time such as 90s, 3m or 1h to seconds, above zero; None for the empty string."""
    if not text:
        return None
    try:
        value = float(text.removesuffix(text[-1]) if text[-1] in UNITS else text) * UNITS.get(text[-1], 1)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"invalid time value {text[:80]!r}: write 90s, 3m or 1h")
    return value


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """A help formatter that shows only defaults that are strings, numbers or paths."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = isinstance(action.default, str | int | float | Path) and not isinstance(action.default, bool)
        return super()._get_help_string(action) if shown else action.help


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors as ``UserError``, and applies ``--format`` and ``--brief`` to this process."""

    def error(self, message: str) -> NoReturn:
        """Raise a parsing error as a ``UserError``."""
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        near = [did_you_mean(option, self._option_string_actions) for option in unknown]
        raise UserError(message, f"{''.join(near[:1])}see {self.prog} --help")

    def parse_known_args(  # type: ignore[override]  # typeshed has an overload for every kind of namespace
        self, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the known options, and set how this process prints."""
        options, others = super().parse_known_args(args, namespace)
        OUTPUT.form, OUTPUT.brief = options.format, options.brief
        return options, others


def stage(module: str, description: str) -> Parser:
    """Make the parser of a stage, or of a module such as ``package.tool``, with the options that all share."""
    command = f"python -m {module}" if "." in module else f"stn-export {module}"
    codes = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    parser = Parser(command, description=description, epilog=f"exit codes: {codes}", formatter_class=_Help)
    parser.add_argument("--format", choices=FORMS, default=FORMS[0], help="output format")
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="print JSON, as --format json does"
    )
    parser.add_argument("--brief", action="store_true", help="print the closing card only")
    return parser


def with_lock(parser: Parser) -> Parser:
    """Add ``--no-wait``, for stages that change a run."""
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="exit instead of waiting for a stage that locked the run"
    )
    return parser


def with_runtimes(parser: Parser) -> Parser:
    """Add ``--runtimes``, for stages that can run files in external runtimes."""
    parser.add_argument(
        "--runtimes", type=path_or_none, metavar="DIR", help="folder of other runtimes; files run in these too"
    )
    return parser


def with_again(parser: Parser, kept: str) -> Parser:
    """Add ``--again``, for stages that resume from stored results; ``kept`` completes the help text."""
    parser.add_argument("--again", action="store_true", help=f"start anew; without it {kept} again")
    return parser


def with_trust(parser: Parser) -> Parser:
    """Add ``--trust``, for stages that load files which can run code."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load files that run code although none of your commands wrote them here; of a run this is remembered",
    )
    return parser


def with_run(parser: Parser) -> Parser:
    """Add ``--run``, which nearly every stage accepts."""
    parser.add_argument("--run", type=path_or_none, help=f"run directory; by default {DEFAULT_RUN}")
    return parser


def train() -> Parser:
    """Make the parser of ``train``."""
    parser = _training(with_lock(stage("train", "Train a grid of models and seeds.")))
    parser.add_argument("--models", type=names, default=("stn", "cnn"), help="comma-separated: stn, cnn, cnn-matched")
    parser.add_argument("--validation", type=number("images"), default=0, help="training images to hold out")
    parser.add_argument(
        "--keep", default="last", help="checkpoint to keep: last, or best (highest accuracy on the held-out images)"
    )
    parser.add_argument(
        "--tensorboard", type=path_or_none, metavar="DIR", help="write losses, accuracies and warped images as logs"
    )
    return parser


def gain() -> Parser:
    """Make the parser of ``gain``."""
    words = "Train with and without a spatial transformer, and say what it gains on your data and what it costs."
    parser = _training(stage("gain", words))
    parser.set_defaults(dataset=FOLDER, seeds=5)  # over three, hardly any interval excludes zero
    return parser


def _training(parser: Parser) -> Parser:
    """Add the options of every command that trains."""
    parser.add_argument("--dataset", default="digits", help="one of: digits, cifar10, cifar10-affine, folder")
    parser.add_argument(
        "--data",
        type=path_or_none,
        metavar="DIR",
        help="directory of pictures: DIR/{train,test}/<class>/* or DIR/<class>/*; for cifar10, of CIFAR-10",
    )
    parser.add_argument(
        "--size",
        type=number("side", 1),
        metavar="PIXELS",
        help="side that the pictures of a folder are resized to; by default 32",
    )
    parser.add_argument(
        "--recipe", help="one of: reference, quick, short, affine, tuned; by default the data set's own"
    )
    parser.add_argument("--epochs", type=int_or_none, help="number of epochs; by default the recipe's own")
    parser.add_argument("--seed", type=number("seed"), default=0, help="first seed of weights, order and dropout")
    parser.add_argument("--seeds", type=number("seeds", 1), default=1, help="number of seeds")
    parser.add_argument("--precision", default="fp32", help="one of: fp32, tf32, bf16")
    parser.add_argument("--device", default="auto", help="one of: auto, cpu, cuda")
    parser.add_argument("--run", type=path_or_none, help=f"run directory; by default {ARTIFACTS}/<dataset>")
    return parser


def adopt() -> Parser:
    """Make the parser of ``adopt``."""
    parser = with_lock(stage("adopt", "Add your own network to a run, and list its sampling sites."))
    parser.add_argument("what", help="file.py:callable, package.module:callable, or a .pt2 file")
    parser.add_argument("--weights", type=path_or_none, help="file of its weights: .pt, .pth or .safetensors")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=N,3,24,94",
        help="input by its name in forward, and its shape: N is the batch, other names are sizes that may vary; "
        "8,3,24,94 takes batches of 8 only",
    )
    parser.add_argument(
        "--output", action="append", default=[], metavar="NAME", help="name of an output, in their order"
    )
    parser.add_argument(
        "--examples",
        type=path_or_none,
        help="examples it is tried on: .npz, .pt or a folder of pictures; by default random numbers",
    )
    parser.add_argument(
        "--labels", type=path_or_none, help="CSV file with one line per example: file name or index, class number"
    )
    parser.add_argument(
        "--mean", type=float, nargs="+", metavar="X", help="mean of pictures in [0, 1], one number or one a channel"
    )
    parser.add_argument("--std", type=float, nargs="+", metavar="X", help="standard deviation, given like the mean")
    parser.add_argument(
        "--plain", help="callable that returns a baseline, instead of the network with its samplers bypassed"
    )
    parser.add_argument("--name", help="network name; by default the name of the run")
    parser.add_argument("--run", type=path_or_none, help=f"run directory; by default {ARTIFACTS}/<name>")
    parser.add_argument("--eval", action="store_true", help="put the module into evaluation mode")
    parser.add_argument("--data-seed", type=number("seed"), default=0, help="seed of the random example inputs")
    parser.add_argument("--inspect", action="store_true", help="show what would be added, and write nothing")
    return parser


def export() -> Parser:
    """Make the parser of ``export``."""
    parser = with_run(
        stage("export", "Export a run's networks: ONNX, TorchScript, AOTInductor, C, ExecuTorch, LiteRT.")
    )
    parser = with_trust(with_runtimes(with_lock(parser)))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows to write, also those that are not default")
    parser.add_argument(
        "--batch", type=number("batch", 1), metavar="N", help="write the chosen ONNX rows with a static batch of N too"
    )
    parser.add_argument(
        "--optimise", action="store_true", help="write the chosen ONNX rows optimised ahead of time too"
    )
    parser.add_argument(
        "--for",
        dest="destinations",
        nargs="+",
        metavar="DESTINATION",
        default=[],
        help="write the file that was equal there, by the kept table of runtimes, and say why; or everything",
    )
    parser.add_argument(
        "--triton", type=path_or_none, metavar="DIR", help="write a Triton Inference Server model repository into DIR"
    )
    parser.add_argument("--list", action="store_true", help="print every row of the matrix and its state, then exit")
    return parser


def verify() -> Parser:
    """Make the parser of ``verify``."""
    parser = with_run(
        stage("verify", "Check every file of a run against PyTorch in float64, or compare two files of any origin.")
    )
    parser = with_runtimes(with_lock(parser))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="artifacts or runners to check; verify.json is not written",
    )
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first failure")
    with_again(parser, "checks of the same files on this machine are not made")
    parser.add_argument(
        "--search",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="search for inputs with larger errors, SECONDS per artifact and runner",
    )
    parser.add_argument(
        "files", nargs="*", type=path, metavar="FILE", help="two files of any origin to compare with each other"
    )
    parser.add_argument(
        "--inputs", type=path_or_none, metavar="FILE.npz", help="arrays by input to compare two files on"
    )
    parser = with_trust(parser)
    parser.add_argument(
        "--precision",
        metavar="P",
        help="precision whose bounds two files must keep: fp32, fp16, bf16 or int8; by default that of their manifest",
    )
    parser.add_argument(
        "--atol",
        type=tolerance,
        metavar="X",
        help="absolute tolerance of two files, instead: |a - b| <= atol + rtol |b|",
    )
    parser.add_argument("--rtol", type=tolerance, metavar="X", help="relative tolerance of two files, likewise")
    parser.add_argument(
        "--against", type=path_or_none, metavar="RUN", help="run to compare --run with, instead of checking it"
    )
    return parser


def audit() -> Parser:
    """Make the parser of ``audit``."""
    parser = stage("audit", "Show where the nodes of an ONNX file run, what they cost and what may fail.")
    parser.add_argument("model", type=path_or_none, nargs="?", help="ONNX file")
    parser.add_argument(
        "--provider",
        nargs="+",
        choices=["cpu", "cuda", "webgpu"],
        default=["cpu", "cuda"],
        help="execution providers of ONNX Runtime to place its nodes on",
    )
    parser.add_argument("--require", choices=["cuda", "webgpu"], help="fail where a compute node falls back to the CPU")
    parser.add_argument("--strict", action="store_true", help="fail on any finding")
    parser.add_argument(
        "--snippet", choices=["python", "c++", "rust", "js"], help="print lines of that language that run it, and stop"
    )
    parser.add_argument(
        "--shape", type=shape, nargs="+", action="extend", default=[], metavar="NAME=1,16000", help=SHAPE
    )
    parser.add_argument("--inputs", type=path, metavar="FILE.npz", help="arrays by name to try it on")
    parser.add_argument(
        "--runtimes", type=path_or_none, metavar="DIR", help="folder of other runtimes, whose WebGPU is asked"
    )
    parser.add_argument(
        "--kernels", type=path, metavar="FILE", help="write the table of CUDA kernels to this file, and stop"
    )
    return parser


def bench() -> Parser:
    """Make the parser of ``bench``."""
    parser = stage(
        "bench",
        "Time every artifact of a run on every backend, or an ONNX file of any origin, or two in turns. Of a run, "
        "other options go to pytest.",
    )
    parser.usage = "%(prog)s [FILE.onnx [OTHER.onnx]] [options]"
    parser = with_trust(with_runtimes(with_lock(parser)))
    parser.add_argument("--run", type=path, default=DEFAULT_RUN, help="run directory")
    parser.add_argument("--grid", default="quick", help="amount of timing, one of: quick, full, gpu")
    parser.add_argument("--device", default="auto", help="device to time on: cpu, cuda, or auto for both")
    parser.add_argument(
        "--suites", type=names, help="comma-separated list of suites, such as latency,overhead; by default all"
    )
    parser.add_argument("--benchmark-json", type=path_or_none, help="file to write; by default RUN/bench.json")
    parser.add_argument("--budget", type=time, metavar="TIME", help=BUDGET)
    with_again(parser, "rows of the same files, settings and machine are not timed")
    parser.add_argument(
        "--shape", type=shape, nargs="+", action="extend", default=[], metavar="NAME=1,16000", help=SHAPE
    )
    parser.add_argument("--inputs", type=path_or_none, metavar="FILE.npz", help="arrays by name to call a FILE with")
    parser.add_argument(
        "--threads",
        type=number("threads", 1),
        metavar="N",
        help="threads that a FILE is timed on; by default the grid's, 1",
    )
    parser.add_argument("--verbose", action="store_true", help="print pytest's output too")
    return parser


def report() -> Parser:
    """Make the parser of ``report``."""
    parser = with_lock(with_run(stage("report", "Write a run's report.")))
    parser.add_argument(
        "--beside", type=path, nargs="+", default=(), metavar="RUN", help="runs to show side by side with it"
    )
    parser.add_argument("--history", type=path_or_none, metavar="DIR", help="show the stored results in DIR instead")
    return parser


def predict() -> Parser:
    """Make the parser of ``predict``."""
    parser = with_trust(stage("predict", "Run pictures through an artifact of a run."))
    parser.add_argument("pictures", nargs="+", type=path, metavar="IMAGE", help="picture file of any size and mode")
    parser.add_argument(
        "--artifact",
        type=path_or_none,
        help=f"file in a network's directory; by default the program.pt2 of {DEFAULT_RUN}'s subject",
    )
    parser.add_argument(
        "--show", type=path_or_none, metavar="PNG", help="draw each image beside the warped image of every site"
    )
    parser.add_argument("--output", type=path_or_none, metavar="NPZ", help="save the raw outputs, one row per image")
    return parser


def runtimes() -> Parser:
    """Make the parser of ``runtimes``."""
    parser = stage("runtimes", "Install other runtimes, each into an environment of its own, for verify and bench.")
    parser.add_argument(
        "--into", type=path_or_none, metavar="DIR", help="folder to install them into; by default .runtimes"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="runtimes to install; by default all")
    return parser


def play() -> Parser:
    """Make the parser of ``play``."""
    parser = with_run(stage("play", "Serve a page to transform an image on while the exported files classify it."))
    parser.add_argument(
        "--output", type=path_or_none, metavar="DIR", help="folder to write the page into; by default RUN/play"
    )
    parser.add_argument("--port", type=number("port"), default=0, help="port on localhost; 0 picks a free port")
    parser.add_argument("--build-only", action="store_true", help="write the files and start no server")
    parser.add_argument(
        "--runtime",
        type=path_or_none,
        metavar="DIR",
        help="local copy of onnxruntime-web's dist directory, instead of downloading it with npm",
    )
    return parser


def doctor() -> Parser:
    """Make the parser of ``doctor``."""
    return stage("doctor", "Show what is installed, which backends can run here and how to get the others.")


def everything() -> Parser:
    """Make the parser of ``all``."""
    parser = with_run(
        stage("all", "Run all stages; an adopted network is not trained. Takes the options of train too.")
    )
    parser.add_argument("--device", default="auto", help="device, one of: auto, cpu, cuda")
    parser.add_argument("--grid", default="quick", help="amount of timing, one of: quick, full, gpu")
    parser.add_argument("--budget", type=time, metavar="TIME", help=f"{BUDGET}; 90s for the quick grid")
    parser.add_argument("--verbose", action="store_true", help="print every stage's tables too")
    return showing(with_trust(parser), "options of train, which are handed on to it", train())


def showing(parser: Parser, title: str, other: Parser) -> Parser:
    """List in a parser's help the options of another command that it hands on; it parses none of them itself."""
    own = {option for action in parser._actions for option in action.option_strings}
    handed_on = [action for action in other._actions if own.isdisjoint(action.option_strings)]
    parser.add_argument_group(title)._group_actions.extend(handed_on)
    return parser


PARSERS: dict[str, Callable[[], Parser]] = {
    "all": everything,
    "train": train,
    "gain": gain,
    "adopt": adopt,
    "export": export,
    "verify": verify,
    "audit": audit,
    "bench": bench,
    "report": report,
    "predict": predict,
    "runtimes": runtimes,
    "play": play,
    "doctor": doctor,
}


def parse(name: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a stage's command line.

    Raises:
        UserError: where it is invalid.
    """
    return PARSERS[name]().parse_args(arguments)
