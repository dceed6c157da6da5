"""Machines on which something is missing, broken or strict: each is planted, and said in a line."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stn_export import cli
from stn_export.errors import UserError, one_line
from stn_export.export import __main__ as export
from stn_export.export import writing
from stn_export.limits import Limit
from stn_export.native import build
from stn_export.run import environment
from stn_export.run.store import write_atomically
from tests.processors import prepare
from tests.readme import REPOSITORY

PLACE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])}


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)])
def test_files_are_as_private_as_the_umask_asks(mask: int, mode: int, tmp_path: Path):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a", b"bytes")
        write_atomically(tmp_path / "a", b"others")
        after = os.umask(mask)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert after == mask  # as it was


@pytest.fixture
def _no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program is found, and the compiler is not named."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CC", raising=False)
    environment.git_commit.cache_clear()
    yield
    environment.git_commit.cache_clear()


@pytest.mark.usefixtures("_no_tools")
def test_without_git_and_without_a_compiler():
    assert environment.git_commit() == "unknown"
    assert environment.describe()["git_commit"] == "unknown"
    assert build.no_compiler() == "native code needs a C compiler (cc, or $CC), and there is none here"


@pytest.mark.parametrize("named", ["gcc '", "/nowhere/cc", "  ", "no-such-compiler -O2"])
def test_a_compiler_that_is_not_there_is_named(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CC", named)
    assert f"$CC, which is {named!r}, names none that is here" in build.no_compiler()
    source = tmp_path / "net.c"
    source.write_text("// Target: generic\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"\$CC, which is"):
        build.build(source, tmp_path / "net.so")


def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, start: str = "#!/bin/sh\n") -> str:
    """What is said where ``$CC`` is a script."""
    tool = tmp_path / "tool"
    tool.write_text(start + script, encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("CC", str(tool))
    source = tmp_path / "net.c"
    source.write_text("// Target: generic\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        build.build(source, tmp_path / "net.so")
    assert caught.value.message.startswith(f"$CC, {tool}, cannot compile net.c: ")
    return caught.value.message.partition("net.c: ")[2]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "net.c:1:1: warning: unused\\nnet.c:2:2: error: expected ;\\nnet.c:3:3: error: later",
            "net.c:2:2: error: expected ;",
        ),
        (
            "note: x\\n/usr/bin/ld: net.o: undefined reference to `f`\\ncollect2: error: ld",
            "/usr/bin/ld: net.o: undefined",
        ),
        ("cc1: fatal error: no room", "cc1: fatal error: no room"),
        ("internal trouble\\nmore", "internal trouble"),
        ("", "it gave no reason"),
    ],
)
def test_a_compilers_first_error_is_said(said: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert fail(tmp_path, monkeypatch, f"printf '{said}' >&2; exit 1").startswith(reason)


def test_a_compiler_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert fail(tmp_path, monkeypatch, "no program", start="").endswith("tool cannot be started: Exec format error")


def test_a_compiler_that_never_ends_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(build.LIMITS, "compiling", Limit(1, "seconds", "a C compiler's work on one network"))
    started = time.monotonic()
    assert (
        fail(tmp_path, monkeypatch, f"sleep 60 & echo $! > {tmp_path}/child; wait") == "it was not over after 1 seconds"
    )
    assert time.monotonic() - started < 30
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text(encoding="utf-8"):
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the compiler started still runs")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:",
            "backend='inductor' raised: Cpp",
        ),
        ("one:\n\ntwo:\n three\nfour", "one: two: three"),
        ("all:", "all:"),
        ("first\nsecond", "first"),
        ("", ""),
    ],
)
def test_a_reason_that_ends_in_a_colon_goes_on(text: str, said: str):
    found = one_line(RuntimeError(text))
    assert found.startswith("RuntimeError" + (f": {said}" if said else ""))
    assert "four" not in found
    assert "second" not in found


def cache(monkeypatch: pytest.MonkeyPatch, sets: list[str]) -> Path:
    """Where PyTorch would compile on a processor with these instruction sets."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(environment, "instruction_sets", lambda: sets)
    environment.use_own_compile_cache()
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_what_pytorch_compiled_for_another_processor_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    older, newer = cache(monkeypatch, ["AVX2"]), cache(monkeypatch, ["AVX2", "AVX-512"])
    assert older != newer
    assert cache(monkeypatch, ["AVX2"]) == older
    assert older.is_dir()
    assert tmp_path in older.parents
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    environment.use_own_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


def test_where_nothing_can_be_kept_the_cache_is_this_processes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache(monkeypatch, ["AVX2"]) == environment.private_folder()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one small network, to read only: nothing is exported into it."""
    run = tmp_path_factory.mktemp("hostile") / "run"
    prepare(run)
    return run


def test_a_module_that_exporters_need_is_no_fault_of_the_network(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As an onnxscript that is too old for PyTorch."""

    def onnx_bytes(*_: object) -> None:
        try:
            raise ModuleNotFoundError("No module named 'onnxscript.new'", name="onnxscript.new")
        except ModuleNotFoundError as error:
            raise RuntimeError("torch.onnx.export failed") from error

    monkeypatch.setitem(writing.WRITERS, "onnx", onnx_bytes)
    assert cli.run(export.main, ["--run", str(network), "--only", "matmul-fp32"]) == 2
    said = capsys.readouterr().err
    assert "matmul-fp32 cannot be written here: ModuleNotFoundError: No module named 'onnxscript.new'" in said
    assert "pip install --upgrade onnxscript" in said


EXPORTING = """
import sys
from pathlib import Path
from stn_export import cli
from stn_export.export import __main__ as export
from tests.processors import prepare
run = Path(sys.argv[1])
prepare(run)
sys.exit(cli.run(export.main, ["--run", str(run), "--only", *sys.argv[2:]]))
"""
WAYS = {"as ever": [], "-O": ["-O"], "-W error": ["-W", "error"], "0": [], "1": [], "2": []}  # the last are hash seeds


@pytest.mark.slow
def test_optimising_strict_and_reordered_pythons_write_the_same_bytes(tmp_path: Path):
    files = ("matmul-fp32.onnx", "default-fp32.onnx", "matmul-int8.onnx", "torchscript-fp32.ts", "program.pt2")
    rows = [name.rpartition(".")[0] for name in files[:-1]]
    found = {}
    for way, flags in WAYS.items():
        seeds = {"PYTHONHASHSEED": way} if way.isdecimal() else {}
        command = [sys.executable, *flags, "-c", EXPORTING, str(tmp_path / way / "run"), *rows]
        done = subprocess.run(
            command, env=os.environ | PLACE | seeds, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, f"{way}: {done.stderr[-2000:]}"
        folder = tmp_path / way / "run" / "stn"
        found[way] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    assert all(hashes == found["as ever"] for hashes in found.values()), found
