"""A script that becomes another command, which then ends with the process that started it.

``python -I -S launch.py SIGNAL PARENT INTERRUPTS COMMAND ...``. On Linux only: other systems know no signal at a
parent's death. Nothing but the standard library is imported, and as little of it as will do.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>; it outlives execve


def end_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def main(arguments: list[str]) -> None:
    """Become the command, unless the parent is gone already."""
    number, parent, interrupts, *command = arguments
    if interrupts == "1":  # a shell's background jobs ignore SIGINT, and so would all that they start
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent(int(number))
    if os.getppid() != int(parent):
        sys.exit(int(number))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
