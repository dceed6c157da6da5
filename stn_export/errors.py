"""Errors that a user can mend, the commands that mend them, and the exit codes of commands."""

import difflib
import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER = 2
EXIT_BUG = 70  # a stage raised something unexpected, printed with a traceback
EXIT_INTERRUPTED = 130
EXIT_CODES = {
    EXIT_OK: "success",
    EXIT_CHECK_FAILED: "a check failed",
    EXIT_USER: "something that you must change (usage, input or environment)",
    EXIT_BUG: "a bug, with a traceback",
    EXIT_INTERRUPTED: "interrupted",
}


ROOT = Path(__file__).resolve().parents[1]  # a clone's folder, or site-packages
NAME = "stn-export"  # of the console script and of the distribution
DEFAULT_RUN = Path("artifacts", "digits")  # the run that commands take unless another is named


def is_clone() -> bool:
    """Return whether this package is imported from a clone of its repository, not from an installed wheel."""
    return (ROOT / "Makefile").is_file() and (ROOT / "pyproject.toml").is_file()


def has_make() -> bool:
    """Return whether ``make`` finds this package's targets: in the folder of a clone."""
    try:
        return is_clone() and ROOT.samefile(os.curdir)
    except OSError:  # the current directory was deleted
        return False


def typed(path: object) -> str:
    """Return a path as one types it into a shell."""
    return shlex.quote(str(path))


def command(*stages: str, run: Path | None = None) -> str:
    """Name in quotes what runs stages, one after the other: ``make`` where it can, else ``stn-export``.

    Args:
        stages: names of stages.
        run: the run directory; left out where it is the default.
    """
    place = "" if run in (None, DEFAULT_RUN) else typed(run)
    if has_make():
        return f"'make {' '.join(stages)}{f' RUN={place}' if place else ''}'"
    return ", then ".join(f"'{NAME} {stage}{f' --run {place}' if place else ''}'" for stage in stages)


def in_clone(hint: str, otherwise: str) -> str:
    """Return a hint that needs a clone's ``make`` or files where they are at hand, else the other one."""
    return hint if has_make() else otherwise


def installing(extra: str) -> str:
    """Return the ``pip`` command that installs an extra: of the clone, or of a wheel's own metadata.

    This package is on no index, so the command never names it.
    """
    if is_clone():
        return f"pip install '{'.' if has_make() else ROOT}[{extra}]'"
    try:
        return f"pip install {' '.join(map(shlex.quote, _requirements(extra)))}"
    except metadata.PackageNotFoundError:  # only copied somewhere
        return f"install this package with its extra {extra}"


def _requirements(extra: str) -> list[str]:
    """Return what an extra requires, extras inside it included."""
    requirements: list[str] = []
    for line in metadata.requires(NAME) or ():  # such as: torchvision>=0.26; extra == "train"
        requirement, _, marker = map(str.strip, line.partition(";"))
        if marker.replace("'", '"') == f'extra == "{extra}"':
            name, _, inner = requirement.rstrip("]").partition("[")
            requirements += (
                [name for one in inner.split(",") for name in _requirements(one)] if name == NAME else [requirement]
            )
    return list(dict.fromkeys(requirements))


REASON = 400  # longest reason, in characters


def one_line(error: BaseException) -> str:
    """Format an exception as one line: its type and the first line of its message, at most ``REASON`` characters.

    Where that line ends in a colon, the next one follows.
    """
    text = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        text = f"{text} {line}".strip()
        if not line.endswith(":"):
            break
    return ": ".join(filter(None, (type(error).__name__, text)))[:REASON]


class UserError(Exception):
    """An error that the user can mend: one line says what is wrong, one what to do.

    Every stage turns it into exit code 2; tracebacks are for bugs of this package only.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


@contextmanager
def others_code(message: str, hint: str) -> Iterator[None]:
    """Turn whatever third-party code raises in this block into a ``UserError``, ``sys.exit`` included.

    KeyboardInterrupt and UserError pass unchanged.

    Raises:
        UserError: ``message``, followed by the exception in one line.
    """
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{message} {one_line(error)}", hint) from error


class CheckFailedError(Exception):
    """A check ran to its end and failed (exit code 1), such as a mismatch or a diverged training.

    Args:
        lines: what failed, one line each.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def require_choice(kind: str, value: str, choices: tuple[str, ...] | list[str]) -> str:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UserError: naming the value, what kind of thing it should be and every choice.
    """
    if value not in choices:
        raise UserError(
            f"unknown {kind} {value!r}", f"{did_you_mean(value, choices)}choose one of: {', '.join(choices)}"
        )
    return value


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Return a question with the choice that is nearest to a mistyped value; empty where none is near."""
    listed = list(choices)
    begun = [choice for choice in listed if value and choice.startswith(value)]
    near = begun or difflib.get_close_matches(value, listed, 1)
    return f"did you mean {near[0]}? " if near else ""
