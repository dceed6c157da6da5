"""The library that the system's C compiler makes of a written source, for this machine or for others."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stn_export.errors import UserError, require_choice
from stn_export.native.source import FLAGS

TARGETS = {
    "native": ("-march=native",),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v4": ("-march=x86-64-v4",),
    "generic": (),
}


def compiler() -> list[str]:
    """The command that compiles C, ``$CC`` or ``cc``; empty where there is none."""
    command = shlex.split(os.environ.get("CC", "cc"))
    return command if command and shutil.which(command[0]) else []


def no_compiler() -> str:
    """Why no C can be compiled here, or an empty string."""
    return "" if compiler() else "native code needs a C compiler (cc, or $CC), and there is none here"


def build(source: Path, library: Path, target: str = "native", more: Sequence[str] = ("-shared", "-fPIC")) -> None:
    """Compile a written ``.c``.

    Args:
        source: with its header and weights beside it.
        library: what to write.
        target: one of ``TARGETS``.
        more: flags that come after the usual ones.

    Raises:
        UserError: where there is no compiler, or it fails.
    """
    require_choice("target", target, tuple(TARGETS))
    if missing := no_compiler():
        raise UserError(missing, "install gcc or clang")
    weights = f'-DWEIGHTS="{source.with_suffix(".bin").resolve()}"'
    command = [*compiler(), *FLAGS, *TARGETS[target], weights, *more, str(source), "-lm", "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[0]
        raise UserError(f"{command[0]} cannot compile {source.name} for {target}: {reason}", "choose another target")


def built(source: Path, target: str = "native") -> Path:
    """The library of a written ``.c``, compiled beside it at first use, in a temporary directory where that cannot be.

    Its name holds a digest of what it is made of and for, so that no other one is taken for it.
    """
    library = source.with_name(f"{source.stem}-{target}-{_digest(source, target)}.so")
    if library.exists():
        return library
    folder = source.parent if os.access(source.parent, os.W_OK) else Path(tempfile.mkdtemp(prefix="stn-export-"))
    made = folder / f"{library.name}.{os.getpid()}"
    build(source, made, target)
    return made.replace(folder / library.name)


def _digest(source: Path, target: str) -> str:
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().partition("\n\n")[0] if target == "native" and cpu.exists() else platform.machine()
    lines = [line for line in flags.splitlines() if line.startswith(("flags", "Features", "model name"))]
    text = "\n".join([*compiler(), *FLAGS, *TARGETS[target], *lines])
    found = hashlib.sha256(text.encode())
    for path in (source, source.with_suffix(".h"), source.with_suffix(".bin")):
        found.update(path.read_bytes() if path.exists() else b"")
    return found.hexdigest()[:12]
