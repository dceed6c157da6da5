"""External runtimes, one row each, and their environments: one subfolder each of a common folder."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from stn_export.cli import children
from stn_export.errors import UserError

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
        return ""
    return "not installed where --runtimes says" if VARIABLE in os.environ else "runs where --runtimes asks for it"


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
            raise UserError(f"there is no runtime in {where}", f"stn-export runtimes --into {where}")
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


RUNTIMES = (
    Runtime("openvino", ("openvino",), "openvino", open_sizes=True),
    InNode("web", ("onnxruntime-web",), "ort.wasm.min.mjs", open_sizes=True),
    Runtime("tract", ("tract",), "tract"),
    Runtime("tvm", ("apache-tvm", "onnx"), "tvm"),
    Runtime("iree", ("iree-base-compiler", "iree-base-runtime", "onnx"), "iree.runtime"),
    Runtime("mnn", ("mnn",), "MNN.expr", approximate=True),
    Runtime("ncnn", ("ncnn", "pnnx", "numpy"), "ncnn", ("--no-deps",), approximate=True),
    Runtime("opencv", ("opencv-python-headless",), "cv2"),
    Runtime("executorch", ("executorch",), "executorch.runtime", format="executorch", beside=True),
    Runtime("litert", ("ai-edge-litert", "litert-torch"), "ai_edge_litert.interpreter", format="litert", beside=True),
)
OWN = tuple(runtime.format for runtime in RUNTIMES if runtime.format != "onnx")  # formats of one runtime alone
