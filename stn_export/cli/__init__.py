"""What every command line shares: the console, error lines and exit codes, and the command ``stn-export``.

On a terminal there are progress bars and boxed tables; into a pipe go plain lines. Nothing here takes long to import.
"""

import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape as _escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stn_export.cli.options import PARSERS, Parser, names, parse, path_or_none, stage
from stn_export.cli.tables import OUTPUT, console, table
from stn_export.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER,
    CheckFailedError,
    UserError,
    require_choice,
)

__all__ = ["OUTPUT", "console", "names", "parse", "path_or_none", "stage", "table"]

COMMANDS = {
    "all": ("cli.everything", "train, export, verify, bench and report a run, and say what to ship"),
    "train": ("train.__main__", "train spatial transformers and plain CNNs on the built-in data sets"),
    "adopt": ("adopt.__main__", "bring anyone's network into a run, and say where it samples"),
    "export": ("export.__main__", "write a run's networks in every format"),
    "verify": ("verify.__main__", "prove every file equal to PyTorch, or compare two files of anyone's"),
    "audit": ("audit.__main__", "say what runtimes make of an ONNX file"),
    "bench": ("bench.__main__", "time every file on every backend"),
    "report": ("report.__main__", "write report.html and report.md of a run"),
    "predict": ("predict.__main__", "classify pictures, or see what a network gives for them"),
    "play": ("play.__main__", "turn a picture by hand, and see what the networks make of it, in a browser"),
    "doctor": ("doctor", "say what is installed and which runners are at hand"),
}
EXTRAS = {  # packages that come with an extra only
    "torchvision": "train",
    "pytest": "bench",
    "pytest_benchmark": "bench",
    "hypothesis": "search",
    "matplotlib": "all",
    "vl_convert": "report",
    "tensorboard": "tensorboard",
}
SHELLS = ("bash", "zsh", "tcsh")
NONE = "–"
LABEL = 11  # characters of a card's first column


def say(message: str, target: Console | None = None) -> None:
    """Print a line, rich markup allowed; to standard error where what is printed is for a program."""
    if not OUTPUT.brief:
        (target or _aside()).print(message)


def _aside() -> Console:
    """Where everything goes that is no table."""
    return console(stderr=OUTPUT.form != "table")


def card(lines: Sequence[tuple[str, str]]) -> None:
    """Close a stage with what it came to: a word and a sentence a line."""
    target = _aside()
    for word, sentence in lines:
        target.print(f"[bold]{word:<{LABEL}}[/]{escape(sentence)}", highlight=False)


def progress(*columns: str) -> Progress:
    """A progress bar with an ETA; ``columns`` are rich formats shown behind it. Silent into a pipe."""
    target = _aside()
    layout = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns)]
    return Progress(*layout, TimeRemainingColumn(), console=target, disable=not target.is_terminal, transient=True)


def figure(value: float | None, form: str) -> str:
    """A number for a table; a dash where there is none."""
    return NONE if value is None or math.isnan(value) else format(value, form)


def print_json(content: object) -> None:
    """Print ``content`` for a script to read."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def escape(text: object) -> str:
    """Text that rich shows as it stands, brackets and all."""
    return _escape(str(text))


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Call a stage's ``main`` and turn what it raises into an exit code and lines on standard error."""
    told, before = console(stderr=True), (OUTPUT.form, OUTPUT.brief)
    try:
        main(arguments)
    except UserError as error:
        told.print(f"[bold red]error:[/] {escape(error.message)}\n[dim]hint:[/]  {escape(error.hint)}")
        return EXIT_USER
    except ModuleNotFoundError as error:
        if (package := str(error.name).partition(".")[0]) not in EXTRAS:
            raise
        hint = escape(f"pip install 'stn-export[{EXTRAS[package]}]'")
        told.print(f"[bold red]error:[/] {package} is not installed\n[dim]hint:[/]  {hint}")
        return EXIT_USER
    except CheckFailedError as error:
        told.print(f"[bold red]failed:[/] {escape(error)}")
        return EXIT_CHECK_FAILED
    except BrokenPipeError:  # whoever read it has read enough, as head has
        told.on_broken_pipe()
    except KeyboardInterrupt as interrupt:
        told.print(f"[bold yellow]interrupted[/] {escape(interrupt)}".rstrip())
        return EXIT_INTERRUPTED
    finally:
        OUTPUT.form, OUTPUT.brief = before
    return EXIT_OK


def start(arguments: Sequence[str] | None = None) -> int:
    """``stn-export STAGE ...`` is ``python -m stn_export.STAGE ...``; only that stage is imported.

    Returns:
        The exit code.
    """
    name, *others = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def main(_: object) -> None:
        if name in ("-h", "--help"):
            listed = "\n".join(f"  {command:9}{words}" for command, (_, words) in COMMANDS.items())
            completion = f"'stn-export --completion SHELL' prints a completion for {', '.join(SHELLS)}."
            sys.stdout.write(f"usage: stn-export COMMAND ...\n\n{listed}\n\n'stn-export COMMAND --help' says more.\n")
            sys.stdout.write(completion + "\n")
        elif name == "--completion":
            sys.stdout.write(completion_for(require_choice("shell", (others or [""])[0], SHELLS)))
        else:
            require_choice("command", name, list(COMMANDS))
            if {"-h", "--help"} & set(others):  # before anything slow is imported
                PARSERS[name]().print_help()
                return
            importlib.import_module(f"stn_export.{COMMANDS[name][0]}").main(others)

    return run(main)


def completion_for(shell: str) -> str:
    """A script that completes every command and option without starting Python."""
    import shtab

    root = Parser("stn-export", add_help=False)
    commands = root.add_subparsers()
    for name, (_, words) in COMMANDS.items():
        commands.add_parser(name, help=words, parents=[PARSERS[name]()], add_help=False)
    return shtab.complete(root, shell)
