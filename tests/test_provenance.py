"""Nothing that runs code is loaded unless this user's own commands wrote it, or it was vouched for."""

import ast
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import stn_export
from stn_export import cli
from stn_export.errors import UserError
from stn_export.export import __main__ as export
from stn_export.predict import __main__ as predict
from stn_export.program.origin import BUILT_IN, module_from, origin_of
from stn_export.program.program import load_program
from stn_export.run import provenance
from stn_export.run.manifest import MANIFEST, NetworkDirectory
from stn_export.run.store import sha256_of
from stn_export.train.networks import build_model
from stn_export.verify import __main__ as verify

PACKAGE = Path(stn_export.__file__).parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory in which nothing was written yet: another user's, or another machine's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    return tmp_path / "other"


def stranger(folder: Path, mark: Path, file: str = "program.pt2") -> Path:
    """A run whose program names a callable that would touch ``mark``, listed by a manifest beside it."""
    exported = torch.export.export(torch.nn.ReLU(), (torch.ones(2, 3),))
    contract: dict[str, Any] = {
        side: [{"name": name, "dtype": "float32", "shape": ["N", 3], "batched": True}]
        for side, name in (("inputs", "input"), ("outputs", "relu"))
    }
    origin = {"callable": "os:system", "arguments": {"command": f"touch {mark}"}}
    folder.mkdir(parents=True)
    extra = {"contract.json": json.dumps({"contract": contract, "origin": origin})}
    torch.export.save(exported, folder / "program.pt2", extra_files=extra)
    path = (folder / "program.pt2").rename(folder / file)
    entry = {"name": "program", "file": file, "network": folder.name, "format": "pt2", "sha256": sha256_of(path)}
    facts = {"label": "theirs", "role": "subject"}
    listed = {"program": entry | {"contract": contract}}
    content = {"schema": "stn_export/manifest/2", "network": facts, "artifacts": listed, "rows": [], "refused": {}}
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_manifest_beside_a_file_opens_no_gate(
    trained_run: Path, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, good = tmp_path / "mark", trained_run / "stn" / "matmul-fp32.onnx"
    path = stranger(tmp_path / "strange" / "net", mark, "model.onnx")
    assert cli.run(verify.main, [str(good), str(path)]) == 2
    assert cli.run(predict.main, [str(picture), "--artifact", str(path)]) == 2
    assert cli.run(verify.main, ["--run", str(trained_run), "--against", str(path.parent.parent)]) != 0
    assert cli.run(export.main, ["--run", str(path.parent.parent)]) == 2
    assert "none of your commands wrote here" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError):
        stn_export.compare(good, path)
    assert not mark.exists()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_trust_lets_a_program_in_and_still_calls_nothing_that_it_names(tmp_path: Path) -> None:
    path, mark = stranger(tmp_path / "run" / "net", tmp_path / "mark"), tmp_path / "mark"
    directory = NetworkDirectory(path.parent)
    with pytest.raises(UserError, match="none of your commands"):
        directory.program()
    directory.trust()
    assert isinstance(directory.program().own_module(), str)
    assert isinstance(load_program(path).own_module(), str)
    assert not mark.exists()
    load_program(path, own=True).own_module()  # what the gate keeps out
    assert mark.exists()


def test_a_copied_run_is_a_strangers_until_it_is_trusted(run: Path, elsewhere: Path) -> None:
    directory = NetworkDirectory(run / "stn")
    with pytest.raises(UserError, match="add --trust"):
        directory.program()
    assert cli.run(export.main, ["--run", str(run), "--only", "torchscript-fp32", "--trust"]) == 0
    assert directory.program().sites
    assert cli.run(export.main, ["--run", str(run), "--only", "torchscript-fp32"]) == 0  # remembered
    assert (elsewhere / "stn_export").stat().st_mode & 0o077 == 0
    assert provenance.store().stat().st_mode & 0o077 == 0


def test_one_changed_byte_is_a_strangers(run: Path) -> None:
    path = run / "stn" / "torchscript-fp32.ts"
    changed = Path(shutil.copy(path, run / "changed.ts"))
    with changed.open("ab") as file:
        file.write(b"\0")
    assert provenance.was_written_here(path)
    assert not provenance.was_written_here(changed)


def test_a_store_that_others_can_write_counts_for_nothing(elsewhere: Path) -> None:
    digest = "a" * 64
    provenance.remember([digest], "trusted")
    assert provenance.is_known([digest])
    assert not provenance.is_known([digest, "b" * 64])
    assert digest not in provenance.known("written")
    provenance.store().chmod(0o622)
    assert not provenance.is_known([digest])
    target = provenance.store().rename(elsewhere / "aside")
    target.chmod(0o600)
    provenance.store().symlink_to(target)
    assert not provenance.is_known([digest])


def test_a_store_that_cannot_be_written_is_said(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere.write_text("no directory", encoding="utf-8")
    provenance.remember(["a" * 64], "written")
    assert "set XDG_STATE_HOME" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["model.onnx", "model.ts", "model.aoti.pt2"])
def test_a_name_that_its_bytes_belie_is_said(name: str, tmp_path: Path, trained_run: Path) -> None:
    path = Path(shutil.copy(trained_run / "stn" / "program.pt2", tmp_path / name))
    with pytest.raises(UserError, match=r"is called \w+, but is a torch\.export program"):
        stn_export.compare(path, path, trust=True)


def test_formats_are_read_from_bytes(trained_run: Path) -> None:
    files = {
        "program.pt2": "pt2",
        "torchscript-fp32.ts": "torchscript",
        "matmul-fp32.onnx": None,
        "checkpoint.pt": None,
    }
    assert {name: provenance.kind_of(trained_run / "stn" / name) for name in files} == files


def test_an_origin_is_looked_for_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the same name in the directory where a later command is started is not the one that was adopted."""
    assert f"{build_model.__module__}:{build_model.__name__}" == BUILT_IN
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder, text in ((mine, "from torch import nn\nbuild = nn.ReLU\n"), (theirs, "raise SystemExit\n")):
        folder.mkdir()
        (folder / "provenance_net.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(mine)
    origin = origin_of("provenance_net:build")
    monkeypatch.chdir(theirs)
    monkeypatch.setattr("sys.path", [entry for entry in os.sys.path if entry])
    assert isinstance(module_from(origin, {}), torch.nn.ReLU)


GATED = {  # every place that loads, executes or starts something, and what stands before it
    "__init__.py": {"importlib.import_module": "a table of this package's own modules"},
    "callables.py": {"importlib.import_module": "this package's own modules"},
    "cli/__init__.py": {"importlib.import_module": "a table of this package's own modules"},
    "cli/apart.py": {
        "children.start": "this module itself, which forks for every call",
        "importlib.import_module": "the module of this package that holds what is called",
        "pickle.loads": "what this process's own child wrote, and the other way round",
    },
    "cli/children.py": {"subprocess.Popen": "the one place that starts processes; its callers are below"},
    "cli/launch.py": {"ctypes.CDLL": "the C library of this process", "os.execvp": "what cli.children starts"},
    "cli/everything.py": {"children.follow": "this package's own stages"},
    "adopt/network.py": {"torch.load": "weights_only"},
    "run/environment.py": {"children.run": "git, in this project's own directory"},
    "run/store.py": {"torch.load": "weights_only"},
    "bench/machine.py": {"ctypes.CDLL": "the C library of this process"},
    "bench/startup.py": {"children.run": "this package's own module, on a path from NetworkDirectory.intact"},
    "run/gpu.py": {"ctypes.CDLL": "the system's CUDA driver"},
    "onnx_graph/placement.py": {"children.run": "Python, on text of our own"},
    "native/build.py": {"children.run": "$CC, on a path from NetworkDirectory.intact"},
    "play/__main__.py": {"children.run": "npm, for a pinned package without its scripts"},
    "program/origin.py": {
        "importlib.import_module": (
            "origin.allowed: named on this command line, or in a program that this user wrote; "
            "an installed package, by a program that passed the gate"
        ),
        "importlib.util.spec_from_file_location": "the same",
    },
    "program/program.py": {
        "torch.export.load": "provenance.require in NetworkDirectory.intact and open_side, or adopt"
    },
    "program/formats.py": {"torch.jit.load": "provenance.require in NetworkDirectory.intact and open_side"},
    "runners/onnx_runtime.py": {"ctypes.CDLL": "TensorRT's libraries, from the installed package of NVIDIA"},
    "runners/native.py": {"ctypes.CDLL": "provenance.require in NetworkDirectory.intact"},
    "runners/pytorch.py": {"torch._inductor.aoti_load_package": "provenance.require in intact and open_side"},
    "runners/external/process.py": {
        "children.start": "a runtime that --runtimes names",
        "children.run": "the same",
        "subprocess.Popen": "a type",
    },
    "runners/external/convert.py": {"torch.export.load": "a path from NetworkDirectory.intact"},
    "runners/external/environments.py": {
        "children.run": "pip and npm, asked for by stn-export runtimes; a runtime that --runtimes names"
    },
    "runners/external/serve.py": {
        "subprocess.run": "a runtime's own converter, in its environment",
        "ctypes.CDLL": "Vulkan's loader, of the system or of Chromium",
    },
    "train/data.py": {"torch.load": "weights_only"},
}
LOADS = {
    "torch.load",
    "torch.export.load",
    "torch.jit.load",
    "torch._inductor.aoti_load_package",
    "importlib.import_module",
}
LOADS |= {
    "importlib.util.spec_from_file_location",
    "ctypes.CDLL",
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "os.system",
}
LOADS |= {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}


LOADS |= {f"children.{name}" for name in ("run", "start", "follow")} | {
    f"os.{name}" for name in ("execvp", "execv", "popen")
}


def calls_of(path: Path) -> set[str]:
    """The dotted names of ``LOADS`` that a file mentions, called or handed on."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
    return named & LOADS


def test_every_place_that_loads_or_starts_something_is_listed() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): calls for path in PACKAGE.rglob("*.py") if (calls := calls_of(path))}
    assert found == {place: set(gates) for place, gates in GATED.items()}
