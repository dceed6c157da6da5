"""Files that are never half written, known by their bytes; JSON under a schema's name."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from stn_export.errors import UserError


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[bytes]) -> str:
    """Hex digest of byte strings, each preceded by its length so that no two lists share one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all: to a neighbour first, flushed to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_if_changed(path: Path, content: bytes) -> bool:
    """Write ``path`` atomically unless it holds these bytes already; says whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    write_atomically(path, content)
    return True


def filled(text: str, name: str, lines: Iterable[str]) -> str:
    """A Markdown text with these lines between ``<!-- name -->`` and the next ``<!-- end -->``, each on a line alone.

    Raises:
        ValueError: where the text has no such place, or several.
    """
    opening, closing = f"<!-- {name} -->\n", "<!-- end -->"
    if text.count(opening) != 1 or closing not in text.split(opening)[1]:
        raise ValueError(f"the text has not one place for {name!r}")
    before, after = text.split(opening)
    return before + opening + "".join(f"{line}\n" for line in lines) + closing + after.split(closing, 1)[1]


def write_json(path: Path, schema: str, content: dict) -> None:
    """Write ``content`` under its schema's name, atomically."""
    write_atomically(path, json_bytes(schema, content))


def json_bytes(schema: str, content: dict) -> bytes:
    """``content`` under its schema's name, as ``read_json`` takes it."""
    return (json.dumps({"schema": schema} | content, indent=1) + "\n").encode()


def read_json(path: Path, schema: str) -> dict:
    """Read what ``write_json`` wrote under the same schema.

    Raises:
        UserError: where the file is no JSON or of another schema.
    """
    remedy = "delete it and run the stage that writes it again"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy) from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise UserError(f"{path} is not of schema {schema}", remedy)
    return content


def serialise(content: object) -> bytes:
    """``torch.save`` into memory."""
    import torch  # which takes seconds, and who reads ONNX files only need not have it

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_tensors(path: Path) -> object:
    """``torch.load`` without code execution, to the CPU; large files stay on disk until they are read.

    Raises:
        UserError: where the file is missing or PyTorch cannot read it.
    """
    import torch

    if not path.exists():
        raise UserError(f"there is no file {path}", "run 'make train' first, or name another")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, ... by kind of damage
        raise UserError(f"{path} is truncated or no PyTorch file", "delete it, then run 'make train'") from error
