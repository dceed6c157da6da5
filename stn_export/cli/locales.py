"""Text is UTF-8 whatever the locale says: files name their encoding, and paths are read as their bytes say."""

import os
import sys
from pathlib import Path

SCRIPT = "stn-export"  # the console script


def ensure_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode where the locale is ASCII; elsewhere do nothing.

    Under ``LC_ALL=C PYTHONUTF8=0`` Python cannot hand a path with an é to C++ libraries, nor write it into a file.
    """
    if sys.getfilesystemencoding() != "ascii" or "utf8" in sys._xoptions or not _is_own_process():
        return
    command = [sys.executable, "-X", "utf8=1", *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | {"PYTHONUTF8": "1"})  # children are told as well


def _is_own_process() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m; a script has none
    return (spec.name if spec else SCRIPT if Path(sys.argv[0]).name == SCRIPT else "").startswith(
        ("stn_export", SCRIPT)
    )
