"""Write files whole or not at all, hash them, read JSON by schema, and lock a run for one stage at a time."""

import glob
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, is_typeddict, overload

import msgspec
from filelock import FileLock, Timeout

from stn_export import cli
from stn_export.errors import UserError, command
from stn_export.limits import archive, regular

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


PARTIAL = ".partial"  # suffix of a file that is being written
OWNER = re.compile(rf"\.(\d+)\.(?:[^.]*\.)?{PARTIAL[1:]}$")  # the process id in the name of such a file
LOCK = ".stn_export.lock"
AGAIN = "delete it and run the stage that writes it again"
NUMBERS = "write it with numpy.savez, an array an input, numbers only"

Content = TypeVar("Content")


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """Return the hex sha256 of byte strings, each preceded by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


_STAGED: ContextVar[dict[Path, Path] | None] = ContextVar("staged", default=None)


@contextmanager
def all_or_none() -> Iterator[None]:
    """Write several files as one change: none takes its name before all are on disk.

    Within the block, read what has been written through ``latest``; a nested block is part of the outer one.
    """
    if _STAGED.get() is not None:
        yield
        return
    staged: dict[Path, Path] = {}
    token = _STAGED.set(staged)
    try:
        yield
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        _STAGED.reset(token)
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def latest(path: Path) -> Path:
    """Return where to read a file now: its new version within ``all_or_none``, else its path."""
    return (_STAGED.get() or {}).get(path, path)


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all: to a temporary file beside it, flushed to disk, then renamed.

    Raises:
        OSError: where writing fails, also because the directory is missing: it is never created.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.{os.getpid()}.", suffix=PARTIAL)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode())
        if (staged := _STAGED.get()) is None:
            temporary.replace(path)
        else:
            if path in staged:
                staged[path].unlink(missing_ok=True)
            staged[path] = temporary
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise


def _mode() -> int:
    """Return the permissions of a new file under this process's umask, which ``mkstemp`` ignores."""
    mask = os.umask(0o077)  # the umask can only be read by setting it
    os.umask(mask)
    return 0o666 & ~mask


def write_out(path: Path, content: bytes) -> None:
    """Write a file that a user named, creating its directories, and delete what dead processes left of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for partial_file in path.parent.glob(f".{glob.escape(path.name[:64])}.*{PARTIAL}"):
        owner = partial_file.name.removesuffix(PARTIAL).split(".")[-2]
        if owner.isdecimal() and not _lives(int(owner)):
            partial_file.unlink(missing_ok=True)
    write_atomically(path, content)


def sweep(folder: Path) -> None:
    """Delete what interrupted writes of ended processes left in a directory and two levels below."""
    for path in (*folder.glob(f".*{PARTIAL}"), *folder.glob(f"*/.*{PARTIAL}"), *folder.glob(f"*/*/.*{PARTIAL}")):
        if (owner := OWNER.search(path.name)) and not _lives(int(owner[1])) and not path.is_symlink():
            path.unlink(missing_ok=True)


def own_folder(path: Path) -> Path:
    """Create a directory inside a run, unless it exists.

    Raises:
        UserError: where it is a symbolic link, which would lead out of the run.
    """
    if path.is_symlink():
        raise UserError(f"{path} is a link, and nothing is written through one", "delete it")
    path.mkdir(parents=True, exist_ok=True)
    return path


@cache
def private_folder() -> Path:
    """Return this process's temporary directory, locked while it lives; delete those of dead processes."""
    prefix = "stn-export-"
    for lock_file in filter(_is_ours, Path(tempfile.gettempdir()).glob(f"{prefix}*/{LOCK}")):
        with suppress(OSError, Timeout), FileLock(lock_file, timeout=0):  # a dead process holds no lock
            shutil.rmtree(lock_file.parent, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{prefix}"))
    lock = FileLock(made / LOCK)
    lock.acquire()
    folder = made.rename(made.with_name(made.name.removeprefix(".")))  # visible only once it is locked
    Finalize(None, _delete, (folder, lock), exitpriority=0)  # at exit, and not in its forks
    return folder


def _is_ours(lock: Path) -> bool:
    """Return whether a lock belongs to a private folder of this user, not reached through a link."""
    links = lock.is_symlink() or lock.parent.is_symlink()
    return not links and (not hasattr(os, "getuid") or lock.parent.stat().st_uid == os.getuid())


def _delete(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # PermissionError: it belongs to another user
        return True
    return True


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write ``path`` atomically unless it holds these bytes already; return whether it was written."""
    if latest(path).is_file() and latest(path).read_bytes() == content:
        return False
    write_atomically(path, content)
    return True


def filled(text: str, name: str, lines: Iterable[str]) -> str:
    """Return Markdown with these lines between ``<!-- name -->`` and the next ``<!-- end -->``.

    Raises:
        ValueError: where the text has no such marks, or several.
    """
    opening, closing = f"<!-- {name} -->\n", "<!-- end -->"
    if text.count(opening) != 1 or closing not in text.split(opening)[1]:
        raise ValueError(f"the text has not one place for {name!r}")
    before, after = text.split(opening)
    return before + opening + "".join(f"{line}\n" for line in lines) + closing + after.split(closing, 1)[1]


def write_json(path: Path, schema: str, content: dict) -> None:
    """Write ``content`` as JSON with its schema's name, atomically."""
    write_atomically(path, json_bytes(schema, content))


def json_bytes(schema: str, content: dict) -> bytes:
    """Serialise ``content`` with its schema's name, as ``read_json`` reads it."""
    return (json.dumps({"schema": schema} | content, indent=1) + "\n").encode()


@overload
def read_json(path: Path, schema: str | None = None) -> dict[str, Any]: ...


@overload
def read_json(path: Path, schema: str | None, kind: type[Content]) -> Content: ...


@overload
def read_json(path: Path, *, kind: type[Content]) -> Content: ...


def read_json(path: Path, schema: str | None = None, kind: type[Any] = dict) -> Any:
    """Read JSON, such as ``write_json`` wrote under the same schema.

    Args:
        path: the file.
        schema: expected schema name; None where there is none.
        kind: a dataclass or ``TypedDict`` that states the keys and their types.

    Raises:
        UserError: where the file is not ordinary, not JSON or of another schema, or naming the key that does not fit.
    """
    try:
        content = json.loads(regular(path, "json", AGAIN).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", AGAIN) from error
    except RecursionError as error:
        raise UserError(f"{path} cannot be read: it is nested too deeply", AGAIN) from error
    if schema and (not isinstance(content, dict) or content.pop("schema", None) != schema):
        raise UserError(f"{path} is not of schema {schema}", AGAIN)
    return checked(path, content, kind)


def checked(path: Path, content: object, kind: type[Content]) -> Content:
    """Convert ``content``, read from ``path``, to ``kind``; for a ``TypedDict`` check it and keep further keys.

    Raises:
        UserError: naming the key that does not fit.
    """
    try:
        converted = msgspec.convert(content, kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}", AGAIN) from error
    return content if is_typeddict(kind) else converted  # type: ignore[return-value]  # the content fits the kind


def serialise(content: object) -> bytes:
    """Return the bytes that ``torch.save`` writes."""
    import torch  # slow to import, and not needed to read ONNX files

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_arrays(path: Path) -> "dict[str, np.ndarray]":
    """Read the arrays of an ``.npz`` file by name; never unpickles.

    Raises:
        UserError: where it is missing, damaged, or holds objects.
    """
    import numpy as np

    try:
        with np.load(archive(path, NUMBERS), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except UserError:
        raise
    except Exception as error:  # NumPy, zlib, zipfile and struct raise many types, by kind of damage
        raise UserError(f"{path} cannot be read: {error}", NUMBERS) from error


def load_arrays_as_tensors(path: Path) -> "dict[str, Tensor]":
    """Read the arrays of an ``.npz`` file as tensors by name.

    Raises:
        UserError: as ``load_arrays``, and where it holds anything but numbers.
    """
    import torch

    try:
        return {name: torch.from_numpy(array) for name, array in load_arrays(path).items()}
    except TypeError as error:  # a type that PyTorch lacks
        raise UserError(f"{path} cannot be read: {error}", NUMBERS) from error


def load_tensors(path: Path) -> object:
    """Load with ``torch.load`` onto the CPU, without running code; large files are memory-mapped.

    Raises:
        UserError: where the file is missing or PyTorch cannot read it.
    """
    import torch

    archive(path, f"run {command('train')} first, or name another")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, ... by kind of damage
        raise UserError(f"{path} is truncated or no PyTorch file", f"delete it, then run {command('train')}") from error


# The run lock: one stage at a time changes a run directory.


RUN_LOCK, HOLDER = ".run.lock", ".run.holder"
MANIFEST, STATE = "manifest.json", "training.pt"


@contextmanager
def alone(run: Path, wait: bool = True, make: bool = False) -> Iterator[None]:
    """Hold the run directory's lock for the length of a stage; it is released if the process dies.

    Leftovers of interrupted writes are deleted first.

    Args:
        run: the directory; one that is missing or no run is not locked, and the stage itself reports it.
        wait: whether to wait for another stage, after a line that names it.
        make: whether to create the directory.

    Raises:
        UserError: naming the holder, where ``wait`` is false, or where nothing can be written there.
    """
    if make:
        run.mkdir(parents=True, exist_ok=True)
    if not make and not _is_run(run):
        yield
        return
    lock = FileLock(run / RUN_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        reason = f"{run} is being changed by {_holder(run)}"
        if not wait:
            raise UserError(reason, "wait until it has ended, or leave out --no-wait") from None
        cli.say(f"{reason}; waiting")
        lock.acquire()
    except OSError as error:
        raise UserError(f"nothing can be written into {run}: {error.strerror}", "make it writable") from error
    try:
        holder = f"process {os.getpid()}: {' '.join(sys.argv)[:200]}"
        write_atomically(run / HOLDER, holder.encode(errors="backslashreplace"))
        sweep(run)
        yield
    finally:
        (run / HOLDER).unlink(missing_ok=True)
        lock.release()


def _is_run(path: Path) -> bool:
    """Return whether a directory contains a network or a training; nothing is written into any other."""
    patterns = (f"{depth}/{name}" for depth in ("*", "*/*") for name in (MANIFEST, STATE))
    return any(any(path.glob(pattern)) for pattern in patterns)


def _holder(run: Path) -> str:
    try:
        return (run / HOLDER).read_text(errors="replace", encoding="utf-8")
    except OSError:
        return "another process"
