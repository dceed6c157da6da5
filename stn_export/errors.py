"""What a user can get wrong, and the exit codes that say so."""

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER = 2
EXIT_BUG = 70  # of a stage: what comes with a traceback
EXIT_INTERRUPTED = 130


REASON = 400  # characters of one that are kept


def one_line(error: BaseException) -> str:
    """An exception in one line: its kind, and the first line of what it says, going on where that ends in a colon."""
    said = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        said = f"{said} {line}".strip()
        if not line.endswith(":"):
            break
    return ": ".join(filter(None, (type(error).__name__, said)))[:REASON]


class UserError(Exception):
    """Something the user must change: one line saying what is wrong, one saying what to do.

    Every stage turns it into exit code 2; a traceback is reserved for bugs of this package.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}"


@contextmanager
def others_code(message: str, hint: str) -> Iterator[None]:
    """Say what other people's code raised as an error of the user's: ``sys.exit`` too, which would end us in silence.

    An interrupt stays one, and so does an error of the user's.

    Raises:
        UserError: the message, and behind it what was raised, in one line.
    """
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{message} {one_line(error)}", hint) from error


class CheckFailedError(Exception):
    """A check that ran to its end and came out red (exit code 1): a mismatch, a diverged training.

    Args:
        lines: what was wrong, one line each.
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
        raise UserError(f"unknown {kind} {value!r}", f"choose one of: {', '.join(choices)}")
    return value
