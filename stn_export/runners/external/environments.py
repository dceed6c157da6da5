"""External runtimes, one row each, and their environments: one subfolder each of a common folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from stn_export.cli import children
from stn_export.errors import UserError, typed
from stn_export.run.store import private_folder
from stn_export.runners.external.serve import WEBGPU

if TYPE_CHECKING:
    import onnx

HERE = Path(__file__).parent
DEFAULT = Path(".runtimes")
VARIABLE = "STN_EXPORT_RUNTIMES"  # names the folder, for this process and its children
LIMIT = 120  # seconds per command of an installation, and per answer


def folder() -> Path:
    """Return the folder of all environments."""
    return Path(os.environ.get(VARIABLE) or DEFAULT).absolute()


def runtimes_here() -> dict[str, str]:
    """Return the requested and installed runtimes with their versions; empty where none were requested."""
    return {runtime.name: runtime.version for runtime in RUNTIMES if runtime.version} if VARIABLE in os.environ else {}


def by_name(name: str) -> "Runtime":
    """Return the runtime of that name."""
    return next(runtime for runtime in RUNTIMES if runtime.name == name)


def why_not(runtime: "Runtime") -> str:
    """Return why a runtime cannot run here; empty where it can."""
    if VARIABLE in os.environ and runtime.version:
        return runtime.obstacle
    return (
        "not installed in the folder that --runtimes names"
        if VARIABLE in os.environ
        else "needs --runtimes DIR (see 'stn-export runtimes')"
    )


@contextmanager
def asked_for(where: Path | None) -> Iterator[None]:
    """Let the runtimes installed in a folder run within this block; None changes nothing.

    Raises:
        UserError: where the folder contains no runtime.
    """
    if where is None:
        yield
        return
    with in_folder(where):
        if not runtimes_here():
            raise UserError(f"there is no runtime in {where}", f"stn-export runtimes --into {typed(where)}")
        yield


@contextmanager
def in_folder(where: Path) -> Iterator[None]:
    """Use the environments in a folder within this block, whether there are any or not."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(where.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


@dataclass(frozen=True)
class Runtime:
    """An external runtime: packages and options for pip; ``module`` must import for it to count as installed.

    An environment gets no torch unless the runtime needs it. ``format`` is what it reads, which may be its own; its
    converter then runs in its environment, which is ``beside`` this one and sees its PyTorch. With ``open_sizes`` one
    loaded file serves all sizes; other runtimes get files with static sizes. An ``approximate`` one computes float32
    files less exactly than float32 by default.
    """

    name: str
    packages: tuple[str, ...]
    module: str
    options: tuple[str, ...] = ()
    format: str = "onnx"
    beside: bool = False
    open_sizes: bool = False
    approximate: bool = False
    device: str = "cpu"

    @property
    def runner(self) -> str:
        """The name of its runner."""
        return f"{self.name}-cpu"

    @property
    def obstacle(self) -> str:
        """Why it cannot run on this machine though it is installed; empty where it can."""
        return ""

    @property
    def software(self) -> str:
        """The device that stands in for a GPU, on the CPU and slowly; empty where none does."""
        return ""

    @property
    def home(self) -> Path:
        """Its environment."""
        return folder() / self.name

    @property
    def interpreter(self) -> Path:
        """The Python of its environment."""
        return self.home / "bin" / "python"

    @property
    def command(self) -> list[str | Path]:
        """The command that serves a file in it; a job in JSON is appended."""
        return [self.interpreter, HERE / "serve.py"]

    @property
    def version(self) -> str:
        """The version of its first package; empty unless it is installed and could be imported."""
        return self.packaged_version if self.tried.is_file() else ""

    @property
    def packaged_version(self) -> str:
        """The version in its first package's metadata; empty where there is none."""
        installed = distributions(name=self.packages[0], path=list(map(str, self.site_packages)))
        return next((package.version for package in installed), "")

    @property
    def tried(self) -> Path:
        """The file that marks it as installed and imported."""
        return self.home / "imported"

    @property
    def site_packages(self) -> list[Path]:
        """The folders of its packages, once it is installed."""
        return list(self.home.glob("lib/python*/site-packages"))

    def install(self) -> str:
        """Install it; return why that failed, or an empty string."""
        try:
            for command in self.installing():
                children.run(command, check=True, timeout=LIMIT, group=True)
            self.home.mkdir(parents=True, exist_ok=True)
            self.tried.touch()
        except subprocess.TimeoutExpired:
            return f"not installed within {LIMIT} s"
        except subprocess.CalledProcessError as error:
            lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
            return f"not installed: {lines[-1] if lines else error}"
        except OSError as error:
            return f"not installed: {error}"
        return ""

    def installing(self) -> Iterator[list[str | Path]]:
        """Yield the commands that install it."""
        yield [sys.executable, "-m", "venv", self.home]
        if self.beside:
            for packages in self.site_packages:
                (packages / "beside.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        yield [self.interpreter, "-m", "pip", "install", "--quiet", *self.options, *self.packages]
        yield [self.interpreter, "-c", f"import {self.module}"]


class InNode(Runtime):
    """A runtime that Node.js runs; its packages are named for npm."""

    @property
    def script(self) -> Path:
        """The module that Node.js imports."""
        return self.home / "node_modules" / self.packages[0] / "dist" / self.module

    @property
    def command(self) -> list[str | Path]:
        """The command that serves a file in Node.js; a job in JSON is appended."""
        return ["node", HERE / "serve.mjs", self.script]

    @property
    def packaged_version(self) -> str:
        """The version in its package.json; empty where there is none."""
        file = self.script.parent.parent / "package.json"
        return json.loads(file.read_text(encoding="utf-8"))["version"] if file.is_file() else ""

    def installing(self) -> Iterator[list[str | Path]]:
        """Yield the commands that install it with npm."""
        yield ["npm", "install", "--silent", "--prefix", self.home, *self.packages]
        yield ["node", "--input-type=module", "-e", f"await import({json.dumps(str(self.script))})"]


class OnWebGpu(Runtime):
    """ONNX Runtime with WebGPU, on a GPU of any maker through Vulkan, or on software where there is none."""

    @property
    def runner(self) -> str:
        """The name of its runner."""
        return "onnxruntime-webgpu"

    @property
    def obstacle(self) -> str:
        """Why no adapter serves it; empty where one does."""
        return _adapter(self.interpreter)[1]

    @property
    def software(self) -> str:
        """The adapter, if it computes on the CPU; empty on a GPU."""
        [name, software], _ = _adapter(self.interpreter)
        return name if software else ""

    def placement(self, model: "onnx.ModelProto") -> dict[str, str]:
        """Ask which provider runs each node of a model whose nodes have unique names; removed ones are left out.

        Raises:
            UserError: where it does not load the model.
        """
        with tempfile.TemporaryDirectory(dir=private_folder()) as folder:
            file = Path(folder) / "model.onnx"
            file.write_bytes(model.SerializeToString())
            [answer] = self.placements([file])
        if isinstance(answer, str):
            raise UserError(f"WebGPU does not load the file: {answer}", "leave out --runtimes for a prediction")
        return answer

    def placements(self, files: Sequence[Path]) -> list[dict[str, str] | str]:
        """Ask for each file which provider runs each node, or why it does not load.

        Raises:
            subprocess.CalledProcessError: where the runtime crashes on a file.
        """
        asked = children.run([self.interpreter, HERE / "serve.py", "placed", *files], timeout=LIMIT, check=True)
        return [_of_all(file, answer) for file, answer in zip(files, json.loads(asked.stdout), strict=True)]


def _of_all(file: Path, listed: dict[str, str] | str) -> dict[str, str] | str:
    """Complete the providers of the nodes that a session lists by those of the others that its graph still has."""
    if isinstance(listed, str):
        return listed
    import onnx  # takes a second

    names = [node.name.partition("_token_")[0] for node in onnx.load(f"{file}.placed").graph.node]
    return {name: listed.get(name, WEBGPU) for name in names}


@cache
def _adapter(interpreter: Path) -> tuple[tuple[str, bool], str]:
    """Return the adapter that serves WebGPU, whether it is software, and why there is none."""
    asked = children.run([interpreter, HERE / "serve.py", "vulkan"], timeout=LIMIT)
    if asked.returncode:
        return ("", True), asked.stderr.strip().splitlines()[-1].partition(": ")[2]
    name, software = json.loads(asked.stdout)
    return (name, software), ""


RUNTIMES = (
    Runtime("openvino", ("openvino",), "openvino", open_sizes=True),
    InNode("web", ("onnxruntime-web",), "ort.wasm.min.mjs", open_sizes=True),
    OnWebGpu("webgpu", ("onnxruntime-webgpu",), "onnxruntime", open_sizes=True, device="webgpu"),
    Runtime("tract", ("tract",), "tract"),
    Runtime("tvm", ("apache-tvm", "onnx"), "tvm"),
    Runtime("iree", ("iree-base-compiler", "iree-base-runtime", "onnx"), "iree.runtime"),
    Runtime("mnn", ("mnn",), "MNN.expr", approximate=True),
    Runtime("ncnn", ("ncnn", "pnnx", "numpy"), "ncnn", ("--no-deps",), approximate=True),
    Runtime("opencv", ("opencv-python-headless",), "cv2"),
    Runtime("executorch", ("executorch",), "executorch.runtime", format="executorch", beside=True),
    Runtime("litert", ("ai-edge-litert", "litert-torch"), "ai_edge_litert.interpreter", format="litert", beside=True),
)
ON_CPU = tuple(runtime for runtime in RUNTIMES if runtime.device == "cpu")  # docs/runtimes.md is of these
OWN = tuple(runtime.format for runtime in RUNTIMES if runtime.format != "onnx")  # formats of one runtime alone
