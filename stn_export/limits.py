"""Limits on untrusted files and on requested amounts, checked before a file is read or work begins.

``docs/survival.md`` shows this table.
"""

import functools
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path

from stn_export.errors import UserError


@dataclass(frozen=True)
class Limit:
    """An upper limit: ``value`` in ``unit``; ``what`` names the thing that is limited."""

    value: int
    unit: str
    what: str


LIMITS = {
    "json": Limit(2**28, "bytes", "a JSON, JSON Lines, CSV or text file"),
    "onnx": Limit(2**31 - 1, "bytes", "an ONNX file (protobuf's limit; larger weights are external data)"),
    "picture": Limit(2**28, "bytes", "a picture's file"),
    "pixels": Limit(10**8, "pixels", "a picture"),
    "archive": Limit(2**40, "bytes", "a .npz, .pt, .pt2, .ts or .safetensors file"),
    "members": Limit(10**6, "files", "one such archive"),
    "unpacked": Limit(2**32, "bytes", "what a compressed archive unpacks to"),
    "tensors": Limit(2**26, "numbers", "an input that an ONNX file or a command line declares"),
    "trial": Limit(5, "seconds", "running an ONNX file in one runtime to audit it"),
    "audit": Limit(120, "seconds", "auditing an ONNX file, all in all"),
    "comparison": Limit(600, "seconds", "comparing two files"),
    "memory": Limit(2**33, "bytes", "what an audit, or a comparison of two files, may write to"),
    "compiling": Limit(600, "seconds", "a C compiler's work on one network"),
    "nodes": Limit(10**6, "nodes", "an ONNX graph and those inside it"),
    "depth": Limit(16, "graphs", "ONNX graphs inside each other"),
    "batch": Limit(2**16, "examples", "a batch that is asked for"),
    "timing": Limit(60, "seconds", "the first runs of an ONNX file that is to be timed"),
    "threads": Limit(1024, "threads", "those that a file is timed with"),
    "seed": Limit(2**63 - 1, "", "a seed"),
    "seeds": Limit(10**4, "seeds", "a training"),
    "images": Limit(10**9, "images", "validation images of a training"),
    "side": Limit(512, "pixels", "the side that the pictures of a training are resized to"),
    "classes": Limit(10**4, "classes", "a training"),
    "dataset": Limit(2**33, "bytes", "the pixels of a training's pictures, all in all"),
    "epochs": Limit(10**6, "epochs", "a training"),
    "port": Limit(2**16 - 1, "", "a port"),
    "shown": Limit(64, "pictures", "images that predict --show draws"),
}


def require(name: str, value: int, said: str) -> int:
    """Return ``value`` if it is within the limit ``name``; ``said`` names the thing for the message.

    Raises:
        UserError: where it is larger.
    """
    limit = LIMITS[name]
    if value > limit.value:
        raise UserError(
            f"{said}: {value} is more than {limit.value} {limit.unit}".rstrip(), f"the limit of {limit.what}"
        )
    return value


def regular(path: Path, kind: str, hint: str = "name another file") -> Path:
    """Return ``path`` if it is an ordinary file within the size limit ``kind``; its content is not read.

    Raises:
        UserError: where it is missing, a directory, a pipe or a device, too large, or cannot be accessed.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", hint) from error
    if not stat.S_ISREG(status.st_mode):
        kind_found = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe or a device, no ordinary file"
        raise UserError(f"{path} is {kind_found}", hint)
    if status.st_dev in _kernel_devices():  # reading one can wait for ever
        raise UserError(f"{path} is a file of the kernel's, no ordinary one", hint)
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: Permission denied", hint)
    require(kind, status.st_size, str(path))
    return path


@functools.cache
def _kernel_devices() -> frozenset[int]:
    """Return the device numbers of /proc and /sys, whose files the kernel makes up."""
    places = (Path("/proc"), Path("/sys"))
    return frozenset(place.stat().st_dev for place in places if place.is_mount())


def archive(path: Path, hint: str = "name another file") -> Path:
    """Return ``path`` if it is an ordinary file that, where it is a ZIP archive, unpacks to no more than allowed.

    Raises:
        UserError: where it is not, or the archive is damaged.
    """
    regular(path, "archive", hint)
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as opened:
                members = opened.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(f"{path} is a damaged archive: {error}", hint) from error
        require("members", len(members), str(path))
        unpacked = sum(member.file_size for member in members)
        if unpacked > path.stat().st_size:  # uncompressed members take no more than the file
            require("unpacked", unpacked, f"{path} unpacked")
    return path
