"""Console output, error messages, exit codes, and the command ``stn-export``.

A terminal shows progress bars and boxed tables, a pipe gets plain lines. Nothing here takes long to import.
"""

import errno
import importlib
import io
import json
import math
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from stn_export.cli.children import heeding
from stn_export.cli.options import PARSERS, Parser, names, parse, path_or_none, stage
from stn_export.cli.progress_bar import Paces, Progress, duration, forecast, measured
from stn_export.cli.tables import OUTPUT, console, markdown, markdown_table, table, visible
from stn_export.errors import (
    EXIT_BUG,
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER,
    CheckFailedError,
    UserError,
    installing,
    require_choice,
)

__all__ = [
    "OUTPUT",
    "Paces",
    "console",
    "duration",
    "forecast",
    "markdown",
    "markdown_table",
    "measured",
    "names",
    "parse",
    "path_or_none",
    "stage",
    "table",
    "visible",
]

# Text is UTF-8 whatever the locale: files are opened with an encoding, and paths keep their bytes.


SCRIPT = "stn-export"  # the console script


def ensure_utf8() -> None:
    """Restart this command in Python's UTF-8 mode where the locale's encoding is ASCII; otherwise do nothing.

    Under ``LC_ALL=C PYTHONUTF8=0`` Python cannot hand a path with an é to C++ libraries, nor write it into a file.
    """
    if sys.getfilesystemencoding() != "ascii" or "utf8" in sys._xoptions or not _is_own_process():
        return
    command = [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | {"PYTHONUTF8": "1"})  # for child processes too


def _is_own_process() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m; a script has none
    return (spec.name if spec else SCRIPT if Path(sys.argv[0]).name == SCRIPT else "").startswith(
        ("stn_export", SCRIPT)
    )


COMMANDS = {
    "all": ("cli.everything", "train, export, verify, bench and report one run, and show which file to deploy"),
    "train": ("train.__main__", "train spatial transformers and plain CNNs on built-in data sets or your own pictures"),
    "gain": ("train.gain", "say what a spatial transformer gains on your own pictures, and what it costs"),
    "adopt": ("adopt.__main__", "add your own network to a run, and list its sampling sites"),
    "export": ("export.__main__", "export the networks of a run in every default format"),
    "verify": ("verify.__main__", "check every file against PyTorch in float64, or compare any two files"),
    "audit": ("audit.__main__", "show where an ONNX file runs, what it costs and what may fail"),
    "bench": ("bench.__main__", "benchmark every file on every available backend"),
    "report": ("report.__main__", "write report.html, report.md and report.json of a run"),
    "predict": ("predict.__main__", "run images through an exported file"),
    "runtimes": ("runtimes.__main__", "install other runtimes, each into an environment of its own"),
    "play": ("play.__main__", "serve a page on which a picture is turned by hand while the networks look at it"),
    "doctor": ("doctor", "show what is installed and which backends can run here"),
}
EXTRAS = {  # packages that only an extra installs
    "torchvision": "train",
    "pytest": "bench",
    "pytest_benchmark": "bench",
    "hypothesis": "search",
    "matplotlib": "all",
    "vl_convert": "report",
    "tensorboard": "tensorboard",
}
HINTS = {
    errno.ENOSPC: "make room, then run the same again",
    errno.EDQUOT: "make room, then run the same again",
    errno.EFBIG: "the limit of a file's size is too low (ulimit -f)",
    errno.EROFS: "choose a writable directory",
    errno.EACCES: "choose a directory that you may read and write",
    errno.EPERM: "choose a directory that you may read and write",
    errno.ENOENT: "it was deleted or moved meanwhile, or is named wrongly",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
NO_MEMORY = re.compile(  # messages of library loaders and PyTorch's allocators
    r"failed to map segment|can(no|')t allocate memory|not enough memory|out of memory|std::bad_alloc",
    re.IGNORECASE,
)
GPU_MEMORY = re.compile(r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDA failure 2:")
SHELLS = ("bash", "zsh", "tcsh")
NONE = "–"
TELL = "STN_EXPORT_FAILED"  # names a file that a stage writes its failures to
LABEL = 11  # characters of a card's first column


def say(message: str, style: str = "", target: Console | None = None) -> None:
    """Print one line, on standard error where tables are for a program; nothing with ``--brief``."""
    if not OUTPUT.brief:
        (target or _aside()).print(Text(visible(message), style))


def styled(text: str, style: str) -> Text:
    """Return a table cell in colour."""
    return Text(visible(text), style)


def _aside() -> Console:
    """Return the console for everything but tables: standard error unless tables are for people."""
    return console(stderr=OUTPUT.form != "table")


def card(lines: Sequence[tuple[str, str]]) -> None:
    """Print a stage's closing summary: one word and one sentence per line, wrapped in its column on a terminal."""
    target = _aside()
    for word, sentence in lines:
        text = visible(sentence)
        room = max(target.width - LABEL, LABEL)
        shown = textwrap.wrap(text, room, break_on_hyphens=False) if target.is_terminal else [text]
        for number, part in enumerate(shown):
            target.print(Text.assemble((f"{'' if number else word:<{LABEL}}", "bold"), part))


def progress(*columns: str, word: str = "", unit: str = "", still: bool = False) -> Progress:
    """Make a progress bar that shows the time left; a pipe gets a plain line every ten seconds instead.

    Args:
        columns: rich formats shown behind the bar.
        word: what a plain line begins with, by default the task's description.
        unit: what is counted.
        still: whether no thread may run beside the work, and the work's own output is being captured.
    """
    target, duplicate = _aside(), None
    if still and isinstance(target.file, io.TextIOWrapper | _Stream):  # no notebook's, whose descriptor is another's
        with suppress(OSError, ValueError):  # a stream without a file descriptor
            duplicate = os.fdopen(os.dup(target.file.fileno()), "w", encoding="utf-8", errors="backslashreplace")
            target.file = duplicate
    bar = Progress(target, columns, word, unit, still)
    bar.duplicate = duplicate
    return bar


def figure(value: float | None, form: str) -> str:
    """Format a number for a table; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else format(value, form)


def print_json(content: object) -> None:
    """Print ``content`` as JSON on standard output."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Call a stage's ``main`` and turn its exceptions into an exit code and lines on standard error."""
    if arguments is None:
        ensure_utf8()
    _ready()
    before = OUTPUT.form, OUTPUT.brief, OUTPUT.tables
    OUTPUT.tables = 0
    try:
        with heeding():
            main(arguments)
        sys.stdout.flush()  # raises here if the disk is full
    except CheckFailedError as error:
        _told("failed", *error.lines)
        if place := os.environ.get(TELL):
            Path(place).write_text("\n".join(map(visible, error.lines)), encoding="utf-8", errors="backslashreplace")
        return EXIT_CHECK_FAILED
    except KeyboardInterrupt as interrupt:
        _told("interrupted", str(interrupt) or "run the same command again", style="bold yellow")
        return EXIT_INTERRUPTED
    except Exception as error:
        if (user_error := as_user_error(error)) is None:
            raise
        _told("error", user_error.message)
        _told("hint", user_error.hint, style="dim")
        return EXIT_USER
    finally:
        OUTPUT.form, OUTPUT.brief, OUTPUT.tables = before
    return EXIT_OK


def as_user_error(error: Exception) -> UserError | None:
    """Return an exception as an error that the user can mend; None where it is a bug.

    Beside ``UserError``: a missing extra, a full disk or memory, an inaccessible file, a name that is not UTF-8.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and (package := str(error.name).partition(".")[0]) in EXTRAS:
        return UserError(f"{package} is not installed", installing(EXTRAS[package]))
    if isinstance(error, OSError) and error.errno:
        place = f"{error.filename} " if error.filename else ""
        reason = error.strerror if str(error.strerror).startswith("cannot") else f"cannot be used: {error.strerror}"
        return UserError(f"{place}{reason}", HINTS.get(error.errno, "see that it can be read and written"))
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return UserError(f"{error.object[:200]!a} is not UTF-8", "rename the file or directory that is named so")
    if isinstance(error, RuntimeError) and GPU_MEMORY.search(str(error)):
        return UserError("the GPU's memory is full", "take smaller batches, or end what else uses it (nvidia-smi)")
    if isinstance(error, MemoryError) or (
        isinstance(error, ImportError | RuntimeError) and NO_MEMORY.search(str(error))
    ):
        return UserError("there is not enough memory", "allow more (ulimit -v), or use a smaller batch size")
    return None


def _told(word: str, *lines: object, style: str = "bold red") -> None:
    shown = Text("\n").join(Text(visible(line)) for line in lines)
    console(stderr=True).print(Text(f"{word}: ", style) + shown)


class _Stream:
    """A stream that accepts any text, and that silently discards it once its reader has gone, as ``head`` does.

    The stage still runs to its end and returns its exit code.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.reconfigure(errors="backslashreplace")
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or discard where the reader has gone."""
        with self._unheard():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing where the reader has gone."""
        with self._unheard():
            self.stream.flush()

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def _ready() -> None:
    """Replace standard output and error by streams that exist and accept any text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # as long as this lives
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            setattr(sys, name, _Stream(stream))


def start(arguments: Sequence[str] | None = None) -> int:
    """Run ``stn-export STAGE ...``, which is ``python -m stn_export.STAGE ...``; only that stage is imported.

    Returns:
        The exit code.
    """
    name, *others = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def main(_: object) -> None:
        if name in ("-h", "--help"):
            listed = "\n".join(f"  {command:9}{words}" for command, (_, words) in COMMANDS.items())
            completion = f"'stn-export --completion SHELL' prints a completion for {', '.join(SHELLS)}."
            sys.stdout.write(
                f"usage: stn-export COMMAND ...\n\n{listed}\n\nRun 'stn-export COMMAND --help' for details.\n"
            )
            sys.stdout.write(completion + "\n")
        elif name == "--completion":
            sys.stdout.write(completion_for(require_choice("shell", (others or [""])[0], SHELLS)))
        else:
            require_choice("command", name, list(COMMANDS))
            if {"-h", "--help"} & set(others):  # before anything slow is imported
                PARSERS[name]().print_help()
                return
            importlib.import_module(f"stn_export.{COMMANDS[name][0]}").main(others)

    try:
        return run(main)
    except Exception:
        traceback.print_exc()
        return EXIT_BUG


def completion_for(shell: str) -> str:
    """Return a shell script that completes every command and option without starting Python."""
    import shtab

    root = Parser("stn-export", add_help=False)
    commands = root.add_subparsers()
    for name, (_, words) in COMMANDS.items():
        commands.add_parser(name, help=words, parents=[PARSERS[name]()], add_help=False)
    return shtab.complete(root, shell)
