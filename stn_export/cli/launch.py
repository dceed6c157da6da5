"""Script that becomes another command, which is then ended with the process that started it.

``python -I -S launch.py SIGNAL PARENT GROUP COMMAND ...``; GROUP is 1 where the command leads a process group of its
own, which is ended with it. Works on Linux only: other systems send no signal at a parent's death. Imports only the
standard library, and as little of it as possible.
"""

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>; it outlives execve


def end_with_parent(number: int) -> None:
    """Have the kernel send this process signal ``number`` when the thread that started it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def end_group_with(leader: int) -> None:
    """Leave a process behind that kills the rest of this process group once its leader has ended.

    It is nobody's child, so no command waits for it, and it holds no file open, so pipes end with the leader.
    """
    if not hasattr(os, "pidfd_open"):
        return
    if between := os.fork():
        os.waitpid(between, 0)  # else it would remain a zombie of the command
        return
    if os.fork():
        os._exit(0)
    try:
        watched = os.pidfd_open(leader)
        os.dup2(watched, 0)
        os.closerange(1, 65536)
        select.select([0], [], [])
        os.killpg(leader, signal.SIGKILL)  # this process too
    finally:
        os._exit(0)


def main(arguments: list[str]) -> None:
    """Become the command, unless the parent has ended already."""
    number, parent, group, *command = arguments
    if group == "1":  # a shell's background jobs ignore SIGINT, and so would all that they start
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        end_group_with(os.getpid())
    end_with_parent(int(number))
    if os.getppid() != int(parent):
        sys.exit(int(number))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
