"""Every runtime as one row, and the environment that it is installed in: a folder each below one folder of them all."""

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
VARIABLE = "STN_EXPORT_RUNTIMES"  # names the folder to this process and to those that it starts
LIMIT = 120  # seconds, of an installation and of an answer


def folder() -> Path:
    """Where the environments are."""
    return Path(os.environ.get(VARIABLE) or DEFAULT).absolute()


def runtimes_here() -> dict[str, str]:
    """The runtimes that were asked for and are installed, with their versions."""
    return {each.name: each.version for each in RUNTIMES if each.version} if VARIABLE in os.environ else {}


def by_name(name: str) -> "Runtime":
    """The row of that name."""
    return next(runtime for runtime in RUNTIMES if runtime.name == name)


def why_not(runtime: "Runtime") -> str:
    """Why it cannot run here, or an empty string."""
    if VARIABLE in os.environ and runtime.version:
        return ""
    return "not installed where --runtimes says" if VARIABLE in os.environ else "runs where --runtimes asks for it"


@contextmanager
def asked_for(where: Path | None) -> Iterator[None]:
    """Inside, the runners of the runtimes that are installed in a folder run too; nothing changes where it is None.

    Raises:
        UserError: where there is none of them.
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
    """Inside, environments are those in a folder, whether there are any or not."""
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
    """One row: what is installed for it, exactly as pip takes it. What needs no torch is spared it.

    It reads files of one ``format``, which may be its own; a converter into that runs in its environment, which then is
    ``beside`` this one and sees its PyTorch. ``open_sizes`` where one program serves all sizes; the others are given
    files whose sizes are all known. One that is ``approximate`` computes float32 files less exactly than float32 by
    itself. ``module`` is imported before it counts as installed.
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
        """That of its environment."""
        return self.home / "bin" / "python"

    @property
    def command(self) -> list[str | Path]:
        """What serves a file in it; a job in JSON comes last."""
        return [self.interpreter, HERE / "serve.py"]

    @property
    def version(self) -> str:
        """Of its first package; empty where it is not installed, or could not be imported once it was."""
        return self.packaged_version if self.tried.is_file() else ""

    @property
    def packaged_version(self) -> str:
        """What its first package says of itself."""
        found = distributions(name=self.packages[0], path=list(map(str, self.site_packages)))
        return next((each.version for each in found), "")

    @property
    def tried(self) -> Path:
        """A file that is written once it was installed and imported."""
        return self.home / "imported"

    @property
    def site_packages(self) -> list[Path]:
        """Where its packages are, once it is made."""
        return list(self.home.glob("lib/python*/site-packages"))

    def install(self) -> str:
        """Make the environment, or say why there is none."""
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
        """The commands that make it."""
        yield [sys.executable, "-m", "venv", self.home]
        if self.beside:
            for packages in self.site_packages:
                (packages / "beside.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
        yield [self.interpreter, "-m", "pip", "install", "--quiet", *self.options, *self.packages]
        yield [self.interpreter, "-c", f"import {self.module}"]


class InNode(Runtime):
    """One that Node.js runs, exactly as npm takes it."""

    @property
    def script(self) -> Path:
        """What Node.js imports of it."""
        return self.home / "node_modules" / self.packages[0] / "dist" / self.module

    @property
    def command(self) -> list[str | Path]:
        return ["node", HERE / "serve.mjs", self.script]

    @property
    def packaged_version(self) -> str:
        file = self.script.parent.parent / "package.json"
        return json.loads(file.read_text(encoding="utf-8"))["version"] if file.is_file() else ""

    def installing(self) -> Iterator[list[str | Path]]:
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
OWN = tuple(runtime.format for runtime in RUNTIMES if runtime.format != "onnx")  # formats, by the runtimes' names
