"""Compile generated C with the system's compiler, for this machine or for another target."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stn_export.cli import children
from stn_export.errors import UserError, command
from stn_export.limits import LIMITS
from stn_export.run.environment import cpu_facts
from stn_export.run.store import private_folder

ERROR = re.compile(r"\berror\b|undefined reference")  # matches a compiler's first error, behind its warnings
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast")
HERE = "native"  # the target that is this machine
TARGETS = {  # compiler flags, and the CPU flags that the processor must have
    HERE: ("-march=native", ()),
    "x86-64-v3": ("-march=x86-64-v3", ("avx2", "fma", "bmi2")),
    "x86-64-v4": ("-march=x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    "generic": ("", ()),
}


def compiler() -> list[str]:
    """Return the command of the C compiler, ``$CC`` or ``cc``; empty where there is none."""
    try:
        command = shlex.split(os.environ.get("CC", "cc"))
    except ValueError:  # an unclosed quote
        return []
    return command if command and shutil.which(command[0]) else []


def no_compiler() -> str:
    """Return why no C can be compiled here; empty where it can."""
    if compiler():
        return ""
    if named := os.environ.get("CC"):
        return f"native code needs a C compiler, and $CC, which is {named!r}, names none that is here"
    return "native code needs a C compiler (cc, or $CC), and there is none here"


def flags_of(target: str) -> list[str]:
    """Return the compiler flags of a target."""
    return [flag for flag in (*FLAGS, TARGETS[target][0]) if flag]


def build(source: Path, library: Path, flags: Sequence[str] = ("-shared", "-fPIC")) -> None:
    """Compile a generated ``.c``, its header and weights beside it, for the target that it names.

    Raises:
        UserError: where there is no compiler, or it fails.
    """
    if missing := no_compiler():
        raise UserError(missing, "install gcc or clang, or set $CC to one")
    weights = f'-DWEIGHTS="{source.with_suffix(".bin").resolve()}"'
    command = [*compiler(), *flags_of(target_of(source)), weights, *flags, str(source), "-lm", "-o", str(library)]
    if reason := _why_it_fails(command):
        raise UserError(f"{_named(command[0])} cannot compile {source.name}: {reason}", "choose another target or $CC")


def _named(command: str) -> str:
    return f"$CC, {command}," if os.environ.get("CC") else command


def _why_it_fails(command: Sequence[str]) -> str:
    """Run a compiler within the time limit; return its first error, or an empty string where it succeeds."""
    seconds, untranslated = LIMITS["compiling"].value, os.environ | {"LC_ALL": "C"}
    try:
        done = children.run(command, env=untranslated, group=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"it does not start: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"it was not over after {seconds} seconds"
    lines = done.stderr.strip().splitlines() or ["it gave no reason"]
    return next((line for line in lines if ERROR.search(line)), lines[0]).strip() if done.returncode else ""


def target_of(source: Path) -> str:
    """Read the target that a source names in its first lines.

    Raises:
        UserError: where it names none.
    """
    with source.open(encoding="utf-8") as file:
        named = re.search(r"Target: ([\w-]+)", file.read(1000))
    if named is None:
        raise UserError(f"{source.name} does not say what it is to be compiled for", f"run {command('export')} again")
    return named[1]


def built(source: Path) -> Path:
    """Return the shared library of a generated ``.c``, compiled beside it at first use.

    Where that folder cannot be written, it is compiled in a temporary one. Its name holds a digest of source, compiler,
    flags and processor, so that no other library is taken for it.

    Raises:
        UserError: where this processor cannot run it, or as ``build`` does.
    """
    target = target_of(source)
    if lacking := [flag for flag in TARGETS[target][1] if flag not in _processor().split()]:
        raise UserError(f"{source.name} is for {target}: this processor has no {lacking[0]}", "choose another target")
    library = source.with_name(f"{source.stem}-{_digest(source, target)}.so")
    if library.exists():
        return library
    folder = source.parent if os.access(source.parent, os.W_OK) else private_folder()
    made = folder / f"{library.name}.{os.getpid()}"
    build(source, made)
    return made.replace(folder / library.name)


def _processor() -> str:
    """Return the processor's architecture, model and instruction sets as the system states them."""
    facts = cpu_facts()
    return "\n".join([platform.machine(), *(facts.get(name, "") for name in ("model name", "flags", "Features"))])


def _digest(source: Path, target: str) -> str:
    digest = hashlib.sha256("\n".join([*compiler(), *flags_of(target)]).encode())
    digest.update((_processor() if target == HERE else platform.machine()).encode())
    for path in (source, source.with_suffix(".h"), source.with_suffix(".bin")):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]
