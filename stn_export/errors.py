"""Errors that a user can mend, and the exit codes of commands."""

from collections.abc import Iterator
from contextlib import contextmanager

EXIT_OK = 0
EXIT_CHECK_FAILED = 1
EXIT_USER = 2
EXIT_BUG = 70  # a stage raised something unexpected, printed with a traceback
EXIT_INTERRUPTED = 130


REASON = 400  # longest reason, in characters


def one_line(error: BaseException) -> str:
    """Format an exception as one line: its type and the first line of its message, at most ``REASON`` characters.

    Where that line ends in a colon, the next one follows.
    """
    said = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        said = f"{said} {line}".strip()
        if not line.endswith(":"):
            break
    return ": ".join(filter(None, (type(error).__name__, said)))[:REASON]


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
        raise UserError(f"unknown {kind} {value!r}", f"choose one of: {', '.join(choices)}")
    return value
