"""Decide which files may run code: those that this user's own commands wrote, or that the user trusted.

PyTorch programs, TorchScript, AOTInductor packages and generated C run code as they are loaded. Their sha256 digests
are kept in the user's state directory (``$XDG_STATE_HOME``, else ``~/.local/state``), never beside the files: whatever
is unzipped, cloned or copied from another machine is untrusted until ``--trust``.
"""

import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from stn_export import cli
from stn_export.config import state_directory
from stn_export.errors import UserError
from stn_export.limits import archive
from stn_export.run.store import sha256_of

RUNS_CODE = {
    "pt2": "a torch.export program",
    "torchscript": "a TorchScript file",
    "aotinductor": "an AOTInductor package",
    "aotinductor-cuda": "an AOTInductor package",
    "native": "generated C",
}
Provenance = Literal["written", "trusted"]


def store() -> Path:
    """Return the path of the file of known digests, one ``sha256 provenance`` per line."""
    return state_directory() / "digests"


def remember(digests: Iterable[str], provenance: Provenance) -> None:
    """Add sha256 digests to the store; warn where that fails, as later commands will ask for ``--trust``."""
    path, lines = store(), "".join(f"{digest} {provenance}\n" for digest in digests)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(lines)
    except OSError as error:
        reason = (
            f"cannot note in {path} which files were written here ({error.strerror}): other commands will not load them"
        )
        cli.say(f"{reason}; set XDG_STATE_HOME to a folder that you can write", "yellow")


def known(*provenances: Provenance) -> frozenset[str]:
    """Read the digests of these provenances; none where the store is missing or another user could have written it."""
    path = store()
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or _writable_by_others(facts):
            return frozenset()
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        digest for digest, _, provenance in (line.partition(" ") for line in lines) if provenance in provenances
    )


def _writable_by_others(facts: os.stat_result) -> bool:
    other_owner = hasattr(os, "getuid") and facts.st_uid not in (os.getuid(), 0)
    return other_owner or bool(facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def was_written_here(path: Path) -> bool:
    """Return whether one of this user's own commands wrote a file's bytes."""
    return sha256_of(path) in known("written")


def is_known(digests: Iterable[str]) -> bool:
    """Return whether all of these digests were written here or are trusted."""
    return known("written", "trusted").issuperset(digests)


def require(path: Path, kind: str, digests: Iterable[str], trust: bool = False) -> None:
    """Reject a file that runs code unless this user's commands wrote it or it is trusted.

    Args:
        path: the file, for the message.
        kind: its format, as artifacts name it.
        digests: sha256 of its bytes and of those files that are loaded with it.
        trust: whether the caller trusts it.

    Raises:
        UserError: saying what loading it can do, and how to allow it.
    """
    if kind in RUNS_CODE and not trust and not is_known(digests):
        can = "loading it runs what its maker put into it, which can read, change and send your files"
        raise UserError(
            f"{path} is {RUNS_CODE[kind]} that none of your commands wrote here: {can}",
            "add --trust (trust=True in Python) if you know its maker",
        )


def kind_of(path: Path) -> str | None:
    """Read from a file's bytes which of PyTorch's formats it has; None for any other.

    Raises:
        UserError: where it is a damaged archive, or one that unpacks to more than allowed.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(archive(path)) as packed:
        names = {name.partition("/")[2] for name in packed.namelist()}
    if any(name.startswith("data/aotinductor/") for name in names):
        return "aotinductor"
    if "archive_format" in names:
        return "pt2"
    return "torchscript" if any(name.startswith("code/") for name in names) else None


def require_kind(path: Path, kind: str) -> None:
    """Reject a file whose bytes are of another format than its name or its manifest says.

    Raises:
        UserError: naming both, or saying that it is a damaged archive.
    """
    actual = kind_of(path)
    if actual is not None and actual != kind.removesuffix("-cuda"):
        raise UserError(f"{path} is called {kind}, but is {RUNS_CODE[actual]}", "name it as what it is")
