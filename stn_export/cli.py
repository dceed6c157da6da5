"""What every command line shares: the console, error lines and exit codes; and ``stn-export``, which starts stages.

On a terminal there are progress bars and boxed tables; into a pipe go plain lines.
"""

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stn_export.errors import (
    EXIT_CHECK_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER,
    CheckFailedError,
    UserError,
    require_choice,
)

PIPE_WIDTH = 200
STAGES = {
    "train": "train spatial transformers and plain CNNs on the built-in data sets",
    "adopt": "bring anyone's network into a run, and say where it samples",
    "export": "write a run's networks in every format",
    "verify": "prove every file equal to PyTorch, or compare two files of anyone's",
    "audit": "say what runtimes make of an ONNX file",
    "bench": "time every file on every backend",
    "report": "write report.html and report.md of a run",
    "predict": "classify pictures, or see what a network gives for them",
}


def console(stderr: bool = False) -> Console:
    """A console on standard output, or on standard error; wide and plain where it is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else PIPE_WIDTH,
        highlight=False,
        soft_wrap=not stream.isatty(),
    )


def say(message: str) -> None:
    """Print one line, rich markup allowed."""
    console().print(message)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its first column left-aligned and the others right-aligned."""
    target = console()
    result = Table(title=title, title_justify="left", box=Table().box if target.is_terminal else None, pad_edge=False)
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    target.print(result)


def progress(*columns: str) -> Progress:
    """A progress bar with an ETA; ``columns`` are rich formats shown behind it. Silent into a pipe."""
    target = console()
    layout = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, columns)]
    return Progress(*layout, TimeRemainingColumn(), console=target, disable=not target.is_terminal, transient=True)


def figure(value: float | None, form: str) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else format(value, form)


def print_json(content: object) -> None:
    """Print ``content`` for a script to read."""
    sys.stdout.write(json.dumps(content, indent=1) + "\n")


def path_or_none(text: str) -> Path | None:
    """An argument type: a path, or None for the empty string that Make passes for an unset variable."""
    return Path(text) if text else None


def int_or_none(text: str) -> int | None:
    """An argument type: an integer, or None for the empty string."""
    return int(text) if text else None


def names(text: str) -> tuple[str, ...]:
    """An argument type: names with commas between them."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors look like every other error of ours."""

    def error(self, message: str) -> None:
        raise UserError(message, f"see {self.prog} --help")


def stage(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of ``python -m stn_export.<module>``."""
    return _Parser(
        f"python -m stn_export.{module}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def run(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Call a stage's ``main`` and turn what it raises into an exit code and lines on standard error."""
    try:
        main(arguments)
    except UserError as error:
        console(stderr=True).print(f"[bold red]error:[/] {escape(error)}\n[dim]hint:[/]  {escape(error.hint)}")
        return EXIT_USER
    except CheckFailedError as error:
        console(stderr=True).print(f"[bold red]failed:[/] {escape(error)}")
        return EXIT_CHECK_FAILED
    except KeyboardInterrupt as interrupt:
        console(stderr=True).print(f"[bold yellow]interrupted[/] {escape(interrupt)}".rstrip())
        return EXIT_INTERRUPTED
    return EXIT_OK


def escape(text: object) -> str:
    """Text that rich shows as it stands, brackets and all."""
    return str(text).replace("[", r"\[")


def start(arguments: Sequence[str] | None = None) -> int:
    """``stn-export STAGE ...`` is ``python -m stn_export.STAGE ...``; only that stage is imported.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        listed = "\n".join(f"  {stage:9}{words}" for stage, words in STAGES.items())
        sys.stdout.write(f"usage: stn-export STAGE ...\n\n{listed}\n\n'stn-export STAGE --help' says more.\n")
        return EXIT_OK

    def main(_: object) -> None:
        require_choice("stage", name, list(STAGES))
        importlib.import_module(f"stn_export.{name}.__main__").main(given[1:])

    return run(main)
