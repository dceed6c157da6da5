"""The stage ``play``: a static page that runs a run's ONNX files in the browser while the user rotates an image.

    stn-export play --run artifacts/digits

The page and everything that it loads are in one folder, which works on any static host. ONNX Runtime for the browser is
downloaded with npm, once.
"""

import base64
import io
import json
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any, BinaryIO
from urllib.parse import unquote

import onnx
import torch
from PIL import Image
from torch import Tensor

from stn_export import cli
from stn_export.cli import children
from stn_export.config import DEFAULT_RUN
from stn_export.errors import UserError, command
from stn_export.onnx_graph.points import point_values, with_outputs
from stn_export.program.specs import Pixels
from stn_export.run.environment import cache_directory
from stn_export.run.examples import picture_of
from stn_export.run.manifest import (
    PLAIN,
    PROGRAM,
    SUBJECT,
    Artifact,
    NetworkDirectory,
    network_directories,
)
from stn_export.run.store import own_folder, sha256_of, sweep, write_atomically

RUNTIME = "onnxruntime-web@1.30.0"
FILES = {  # of the runtime, with their sha256: for WebAssembly, and for WebGPU
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
PAGE = Path(__file__).parent / "page"
SAMPLES = 24


HOSTS = ("127.0.0.1", "localhost")  # a request with another host name comes from another site's page (DNS rebinding)


class Handler(SimpleHTTPRequestHandler):
    """Serve the page's own files, to its own host names only, with the MIME types that browsers require; no log."""

    def __init__(self, *arguments: Any, files: Collection[str], **options: Any) -> None:
        self.names = files
        super().__init__(*arguments, **options)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Answer with a file of the page; 403 for another host, 404 for another name."""
        name = unquote(self.path.partition("?")[0]).removeprefix("/") or "index.html"
        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif name not in self.names or (Path(self.directory) / name).is_symlink():
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            return super().send_head()
        return None

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".onnx": "application/octet-stream",
    }

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """A server on localhost; an interrupted download is no error."""

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Report an exception unless the connection broke."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serving(folder: Path, files: Collection[str], port: int = 0) -> Server:
    """Create a server on localhost for these files of a folder."""
    return Server(("127.0.0.1", port), partial(Handler, directory=str(folder), files=files))


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the folder and serve it on localhost until Ctrl-C."""
    options = cli.parse("play", arguments)
    run = options.run or DEFAULT_RUN
    folder = options.output or run / "play"
    files = build(run, folder, options.runtime)
    if options.build_only:
        cli.card([("page", f"{folder / 'index.html'}; copy {folder} to any static host")])
        return
    with serving(folder, files, options.port) as server:
        cli.card([("page", f"http://127.0.0.1:{server.server_port}/ until Ctrl-C")])
        server.serve_forever()


def build(run: Path, folder: Path, runtime: Path | None = None) -> frozenset[str]:
    """Write the page, its networks, some images, and ONNX Runtime for the browser; return the names of the files.

    Args:
        run: the run directory.
        folder: to write into.
        runtime: a directory with ``FILES``; by default they are downloaded with npm.

    Raises:
        UserError: if no network of the run samples images, or the runtime is not available.
    """
    by_role: dict[str, NetworkDirectory] = {directory.facts.role: directory for directory in network_directories(run)}
    if SUBJECT not in by_role or not by_role[SUBJECT].facts.sites:
        raise UserError(f"no network of {run} has a sampling site", "name another run")
    networks = [directory for role in (SUBJECT, PLAIN) if (directory := by_role.get(role))]
    subject, examples = networks[0], networks[0].examples()
    contract = subject.listed(PROGRAM).contract
    spec, (channels, height, width) = picture_of(contract, examples)
    pixels = spec.pixels
    if len(contract.inputs) != 1 or pixels is None:
        raise UserError("the page feeds one picture, normalised", "adopt a network with that one input")
    sweep(own_folder(folder))
    source = runtime or fetched()
    page = {name: source / name for name in FILES} | {path.name: path for path in PAGE.iterdir()}
    for name, path in page.items():
        write_atomically(folder / name, path.read_bytes())
    shown = [_network(directory, folder) for directory in networks]
    content = {
        "input": {"name": spec.name, "channels": channels, "height": height, "width": width}
        | {"mean": pixels.mean, "std": pixels.std},
        "classes": subject.facts.classes,
        "networks": shown,
        "samples": list(map(_url, _bytes(pixels, examples.inputs[spec.name][:SAMPLES]))),
    }
    write_atomically(folder / "play.json", json.dumps(content).encode())
    return frozenset((*page, "play.json", *(network["file"] for network in shown)))


def _network(directory: NetworkDirectory, folder: Path) -> dict:
    """Write a network's file beside the page, with the points of its sampling sites as outputs; return its entry."""
    artifact = _best(directory)
    model = onnx.load(directory.open(artifact))
    shown = point_values(model)
    file = f"{directory.name}.onnx"
    write_atomically(folder / file, with_outputs(model, list(shown.values())).SerializeToString())
    site = directory.facts.sites[0]["name"] if directory.facts.sites else ""
    return {
        "file": file,
        "label": directory.facts.label,
        "artifact": artifact.name,
        "output": directory.listed(PROGRAM).contract.outputs[0].name,
        "grid": shown.get(f"{site}/grid"),
        "warped": shown.get(f"{site}/warped"),
        "align": bool(directory.facts.sites and directory.facts.sites[0]["align_corners"]),
    }


def _best(directory: NetworkDirectory) -> Artifact:
    for name in (f"{lowering}-fp32" for lowering in directory.lowering_sizes):
        if name in directory.artifacts:
            return directory.artifacts[name]
    raise UserError(
        f"{directory.path} holds no ONNX file for the page", f"run {command('export', run=directory.path.parent)} first"
    )


def _bytes(pixels: Pixels, pictures: Tensor) -> Tensor:
    return pictures if pictures.dtype == torch.uint8 else pixels.denormalise(pictures)


def _url(picture: Tensor) -> str:
    """Return an image, uint8 C×H×W, as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def fetched() -> Path:
    """Return the directory of ONNX Runtime for the browser, downloaded if it is missing.

    Raises:
        UserError: if npm is missing or cannot download it, or a file has another sha256.
    """
    kept = cache_directory() / RUNTIME
    place = kept / "node_modules" / "onnxruntime-web" / "dist"
    if not all((place / name).is_file() for name in FILES):
        hint = "install Node.js, or give --runtime DIR with the .mjs and .wasm files of onnxruntime-web"
        if (npm := shutil.which("npm")) is None:
            raise UserError("the page needs onnxruntime-web, and there is no npm to download it", hint)
        cli.say(f"fetching {RUNTIME}")
        kept.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--silent", "--no-audit", "--ignore-scripts", "--prefix", str(kept), RUNTIME]
        result = children.run(command)
        if result.returncode or not all((place / name).is_file() for name in FILES):
            reason = next(_lines(result.stderr), "its files are missing")
            raise UserError(f"npm cannot fetch {RUNTIME}: {reason}", hint)
    if others := [name for name, digest in FILES.items() if sha256_of(place / name) != digest]:
        raise UserError(f"{place / others[0]} is not that of {RUNTIME}: its sha256 differs", f"delete {kept}")
    return place


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in text.splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(cli.run(main))
