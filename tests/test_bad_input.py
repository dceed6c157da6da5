"""Whatever a user gives that is wrong: one line, a hint, exit code 2, nothing written; never a traceback or a hang.

``WRONG`` is one table over all commands; ``{...}`` stand for what ``places`` makes.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.parser import parse_model
from PIL import Image

from stn_export import cli
from stn_export.adopt.__main__ import TRUST
from stn_export.limits import LIMITS
from tests import bad_files

SECONDS = 60  # after which a case hangs
HEADER = '<ir_version: 9, opset_import: ["" : 18]>'
RELU = f"{HEADER} g (float[N,4] x) => (float[N,4] y) {{ y = Relu (x) }}"
HUGE = f"{HEADER} g (float[99999,99999,99] x) => (float[99999,99999,99] y) {{ y = Relu (x) }}"
DEEP = "[" * 100_000 + "]" * 100_000
DAMAGED = ("{members.pt2}", "{members.ts}", "{letters.pt2}", "{letters.ts}")  # archives

MANIFESTS = {  # how a manifest.json is spoiled, and what is said of it
    "blank": ("", "cannot be read"),
    "words": ("hello", "cannot be read"),
    "bytes": (b"\xff\xfe\x00", "cannot be read"),
    "null": ("null", "is not of schema"),
    "list": ("[]", "is not of schema"),
    "number": ("1e999", "is not of schema"),
    "deep": (DEEP, "nested too deeply"),
    "other": ('{"schema": "somebody/1"}', "is not of schema"),
    "older": ('{"schema": "stn_export/manifest/0"}', "is not of schema"),
    "bare": ('{"schema": "stn_export/manifest/2"}', "missing required field `network`"),
    "types": (
        '{"schema": "stn_export/manifest/2", "network": 1, "artifacts": {}, "rows": [], "refused": {}}',
        "Expected `object | null`, got `int` - at `$.network`",
    ),
    "rows": (
        '{"schema": "stn_export/manifest/2", "network": null, "artifacts": {}, "rows": [1], "refused": {}}',
        "Expected `str`, got `int` - at `$.rows[0]`",
    ),
    "pipe": (None, "is a pipe or a device"),
    "folder": (..., "is a directory"),
}
OF_RUNS = ("export", "verify", "report", "play")

RUNS = [
    *((stage, ["--run", place], words) for stage in OF_RUNS for place, words in (
        ("{tmp}/nowhere", "there is no run at"),
        ("{file}", "there is no run at"),
        ("{empty}", "holds no network"),
        ("{long}", "File name too long"),
        ("a\0b", "cannot hold a NUL"),
    )),
    *((stage, ["--run", f"{{{name}}}"], words) for stage in OF_RUNS for name, (_, words) in MANIFESTS.items()),
    *(("predict", ["{picture}", "--artifact", f"{{{name}}}/stn/program.pt2"], words)
      for name, (_, words) in MANIFESTS.items()),
]  # fmt: skip
TRAIN = [
    ("train", ["--models", ""], "no model is named"),
    ("train", ["--models", ","], "no model is named"),
    ("train", ["--models", "cnn,cnn"], "model cnn is named twice"),
    ("train", ["--models", "resnet"], "unknown model 'resnet'"),
    ("train", ["--seed", "-1"], "-1 is less than 0"),
    ("train", ["--seed", str(2**64)], "is more than"),
    ("train", ["--seed", str(2**63 - 1), "--seeds", "2"], "is more than"),
    ("train", ["--seed", "1.5"], "invalid"),
    ("train", ["--seeds", "0"], "0 is less than 1"),
    ("train", ["--seeds", "10001"], "is more than"),
    ("train", ["--epochs", "0"], "trains nothing"),
    ("train", ["--epochs", "-3"], "trains nothing"),
    ("train", ["--epochs", str(10**30)], "is more than"),
    ("train", ["--epochs", "nan"], "'nan' is no whole number"),
    ("train", ["--epochs", "9" * 5000], "is no whole number"),
    ("train", ["--precision", "tf32", "--device", "cpu"], "TF32 exists on GPUs only"),
    ("train", ["--precision", "fp8"], "unknown precision 'fp8'"),
    ("train", ["--keep", "best"], "needs held-out images"),
    ("train", ["--keep", "worst"], "unknown checkpoint"),
    ("train", ["--validation", "-1"], "-1 is less than 0"),
    ("train", ["--validation", str(10**30)], "is more than"),
    ("train", ["--dataset", "mnist"], "unknown data set"),
    ("train", ["--dataset", ""], "unknown data set"),
    ("train", ["--dataset", "cifar10", "--data", "{file}"], "is not a directory"),
    ("train", ["--dataset", "cifar10", "--data", "{empty}"], "holds neither"),
    ("train", ["--recipe", "../../x"], "unknown recipe"),
    ("train", ["--device", "cuda:99"], "unknown device"),
    ("train", ["--run", "{file}"], "is a file, no run directory"),
    ("train", ["--run", "{long}"], "File name too long"),
    ("train", ["--run", "a\0b"], "cannot hold a NUL"),
    ("train", ["extra"], "unrecognized arguments"),
]
NET = """import torch


class Net(torch.nn.Module):
    def forward(self, x):
        return x.relu()


def make():
    return Net().eval()
"""
ADOPT = [
    ("adopt", [], "the following arguments are required"),
    ("adopt", [""], "cannot be a network's name"),
    ("adopt", ["nothing"], "names no callable"),
    ("adopt", ["{relu.onnx}"], "bench "),
    ("adopt", ["{tmp}/weights.pth"], "--weights "),
    ("adopt", ["{file}"], "cannot be a network's name"),
    ("adopt", ["{tmp}/none.py:f", "--input", "x=N,3"], "cannot be imported"),
    ("adopt", ["os:nothing", "--input", "x=N,3"], "has no callable nothing"),
    ("adopt", ["os:getcwd", "--input", "x=N,3"], "gives a str"),
    ("adopt", ["{tmp}/none.pt2"], "there is no file"),
    ("adopt", ["{pipe.pt2}"], "is a pipe or a device"),
    ("adopt", ["{words.pt2}"], "no torch.export file"),
    ("adopt", ["{empty.pt2}"], "no torch.export file"),
    ("adopt", ["{folder.pt2}"], "is a directory"),
    ("adopt", ["{net}"], "no input shape was given"),
    ("adopt", ["{net}", "--input", "x"], "cannot be read"),
    ("adopt", ["{net}", "--input", "x="], "cannot be read"),
    ("adopt", ["{net}", "--input", "x=N,3:complex64"], "unknown type"),
    ("adopt", ["{net}", "--input", f"x={10**12},3"], "is more than"),
    ("adopt", ["{net}", "--input", "x=N,3", "--input", "x=N,3"], "input x is named twice"),
    ("adopt", ["{net}", "--input", "y=N,3"], "has no input y"),
    ("adopt", ["{net}", "--input", "x=N,3", "--name", "../up"], "cannot be a network's name"),
    ("adopt", ["{net}", "--input", "x=N,3", "--name", "a\x1b[2Jb"], r"cannot be a network's name"),
    ("adopt", ["{net}", "--input", "x=N,3", "--data-seed", str(2**64)], "is more than"),
    ("adopt", ["{net}", "--input", "x=N,3", "--data-seed", "-1"], "-1 is less than 0"),
    ("adopt", ["{net}", "--input", "x=N,3", "--mean", "0.5"], "no input is a picture"),
    ("adopt", ["{net}", "--input", "x=N,3,8,8", "--std", "0"], "does not fit"),
    ("adopt", ["{net}", "--input", "x=N,3,8,8", "--std", "nan"], "does not fit"),
    ("adopt", ["{net}", "--input", "x=N,3,8,8", "--mean", "inf"], "does not fit"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{tmp}/none.npz"], "there is no file"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{pipe.npz}"], "is a pipe or a device"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{words.npz}"], "cannot be read"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{objects.npz}"], "cannot be read"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{bomb.npz}"], "is more than"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{words.pt}"], "is damaged, or holds more than tensors"),
    ("adopt", ["{net}", "--input", "x=N,3", "--examples", "{good.npz}"], "the examples lack input x"),
    ("adopt", ["{net}", "--input", "x=N,3,8,8", "--examples", "{empty}"], "holds no pictures"),
    (
        "adopt",
        ["{net}", "--input", "x=N,3,8,8", "--examples", "{pictures}"],
        "is no PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM picture, or is damaged",
    ),
    ("adopt", ["{net}", "--input", "x=N,3", "--weights", "{tmp}/none.pt"], "there is no file"),
    ("adopt", ["{net}", "--input", "x=N,3", "--weights", "{words.pt}"], "is damaged, or holds more than tensors"),
    ("adopt", ["{net}", "--input", "x=N,3", "--labels", "{file}"], "there are labels, but no examples"),
    ("adopt", ["{net}", "--input", "x=N,3", "--run", "{file}/x"], "Not a directory"),
    ("adopt", ["{net}", "--input", "x=N,3", "--run", "{long}"], "File name too long"),
]
OF_FILES = [
    *(("audit", [place], words) for place, words in (
        ("{tmp}/none.onnx", "there is no file"),
        ("{empty.onnx}", "it has no graph"),
        ("{words.onnx}", "is not an ONNX file"),
        ("{pipe.onnx}", "is a pipe or a device"),
        ("{folder.onnx}", "is a directory"),
        ("{long}", "File name too long"),
        ("/dev/zero", "is a pipe or a device"),
        ("{huge.onnx}", "is more than"),
        ("{deep.onnx}", "is more than"),
        ("{opset.onnx}", "names an opset that cannot be: 1099511627776"),
        ("{unknown.onnx}", "Nonsense"),
        ("{lacking.onnx}", "lacks its external data"),
        ("{outside.onnx}", "lacks its external data"),
        ("", "no model is named"),
    )),
    ("audit", ["{relu.onnx}", "--provider", "tpu"], "invalid choice"),
    ("audit", ["{relu.onnx}", "{relu.onnx}"], "unrecognized arguments"),
    *(("verify", ["{relu.onnx}", place], words) for place, words in (
        ("{tmp}/none.onnx", "there is no file"),
        ("{words.onnx}", "is not an ONNX file"),
        ("{pipe.onnx}", "is a pipe or a device"),
        ("{folder.onnx}", "is a directory"),
        ("{huge.onnx}", "is more than"),
        ("{file}", "is a file of a kind that cannot be compared"),
        ("{words.ts}", "none of your commands wrote here"),
        ("{words.pt2}", "none of your commands wrote here"),
        ("/dev/zero", "is a pipe or a device"),
        *((place, "is a damaged archive") for place in DAMAGED),
    )),
    *(("verify", ["{relu.onnx}", place, "--trust"], words) for place, words in (
        ("{words.ts}", "truncated or no PyTorch file"),
        ("{words.pt2}", "truncated or no PyTorch file"),
        ("{bomb.ts}", "is more than"),
        ("{pipe.ts}", "is a pipe or a device"),
        *((place, "is a damaged archive") for place in DAMAGED),
    )),
    ("verify", ["{relu.onnx}"], "1 file cannot be compared"),
    ("verify", ["{relu.onnx}", "{relu.onnx}", "--inputs", "{words.npz}"], "cannot be read"),
    ("verify", ["{relu.onnx}", "{relu.onnx}", "--inputs", "{pipe.npz}"], "is a pipe or a device"),
    ("verify", ["{relu.onnx}", "{relu.onnx}", "--inputs", "{objects.npz}"], "cannot be read"),
    ("verify", ["{relu.onnx}", "{relu.onnx}", "--inputs", "{good.npz}"], "there is no input x"),
    ("verify", ["--search", "-1"], "invalid"),
    ("verify", ["--search", "inf"], "invalid"),
    ("verify", ["--search", "nan"], "invalid"),
    ("verify", ["--run", "{run}", "--only", "nothing"], "holds no exports"),
    ("verify", ["--run", "{run}", "--against", "{tmp}/nowhere"], "there is no run at"),
    ("export", ["--run", "{run}", "--batch", "0"], "0 is less than 1"),
    ("export", ["--run", "{run}", "--batch", str(10**30)], "is more than"),
    ("export", ["--run", "{run}", "--batch", "x"], "invalid"),
    ("export", ["--run", "{run}", "--only", "nothing"], "unknown export 'nothing'"),
    ("export", ["--run", "{run}", "--for", "nowhere"], "unknown destination 'nowhere'"),
    ("export", ["--run", "{run}", "--only", "plain", "--triton", "{pictures}"], "unknown export 'plain'"),
    *(("predict", [place, "--artifact", "{run}/stn/program.pt2"], words) for place, words in (
        ("{tmp}/none.png", "there is no file"),
        ("{words.png}", "is no PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM picture, or is damaged"),
        ("{empty.png}", "is no PNG, JPEG, BMP, WEBP, TIFF, GIF, PPM picture, or is damaged"),
        ("{pipe.png}", "is a pipe or a device"),
        ("{folder.png}", "is a directory"),
        ("{vast.png}", "has more than"),
        ("{float.tif}", "32-bit values of an unknown range"),
        ("/dev/zero", "is a pipe or a device"),
        ("{long}", "File name too long"),
    )),
    ("predict", [], "the following arguments are required"),
    ("predict", ["{words.png}", "{empty.png}", "--artifact", "{run}/stn/program.pt2"], "none of 2 files can be read"),
    ("predict", ["{picture}", "--artifact", "{file}"], "has no manifest.json beside it"),
    ("predict", ["{picture}", "--artifact", "{run}/stn/other.onnx"], "is not listed"),
    ("predict", ["{picture}", "--artifact", "{run}/stn/program.pt2", "--show", "{picture}"], "would be overwritten"),
    ("predict", ["{picture}", "--artifact", "{run}/stn/program.pt2", "--output", "{file}"], "is no NPZ file"),
    ("predict", ["{picture}", "--artifact", "{run}/stn/program.pt2", "--show", "{file}/x.png"], "File exists"),
    ("play", ["--run", "{run}", "--port", "70000"], "is more than"),
    ("play", ["--run", "{run}", "--port", "-1"], "-1 is less than 0"),
    ("play", ["--run", "{run}", "--runtime", "{empty}", "--build-only"], "No such file or directory"),
    ("report", ["--run", "{run}", "--beside", "{tmp}/nowhere"], "there is no run at"),
    ("report", ["--history", "{empty}"], "holds no kept results"),
    ("report", ["--history", "{tmp}/nowhere"], "holds no kept results"),
    ("verify", ["--run", "{run}", "--runtimes", "{empty}"], "there is no runtime in"),
    ("export", ["--run", "{run}", "--runtimes", "{empty}"], "there is no runtime in"),
    ("runtimes", ["--into", "{file}/x"], "Not a directory"),
    ("runtimes", ["extra"], "unrecognized arguments"),
    ("doctor", ["extra"], "unrecognized arguments"),
]  # fmt: skip
RESULTS = [
    ("report", ["--run", f"{{results}}/{name}"], words)
    for name, words in (
        ("verify-words", "verify.json cannot be read"),
        ("verify-bare", "missing required field `passed`"),
        ("verify-types", "Expected `bool`, got `str` - at `$.passed`"),
        ("bench-words", "is not a benchmark file of stn_export"),
        ("bench-left-out", "at `$.not_timed`"),
        ("bench-bare", "missing required field `machine_info`"),
        ("training-bare", "missing required field `runs`"),
        ("points-words", "points.pt is truncated or no PyTorch file"),
        ("points-other", "is not of schema stn_export/points/1"),
    )
]
WRONG = [*RUNS, *TRAIN, *ADOPT, *OF_FILES, *RESULTS, *bad_files.CASES]


@pytest.fixture(scope="module")
def places(entered_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """What the table speaks of, by name."""
    tmp = tmp_path_factory.mktemp("bad")
    made = {"tmp": tmp, "long": Path("x" * 5000), "run": tmp / "run", "results": tmp / "results"}
    shutil.copytree(entered_run, made["run"])
    for name, (content, _) in MANIFESTS.items():
        made[name] = tmp / "runs" / name
        spoil(made[name] / "stn" / "manifest.json", content)
    for name, content in (("file", "words"), ("picture", None)):
        made[name] = tmp / name
        made[name].write_text(content or "", encoding="utf-8")
    made["picture"] = tmp / "good.png"
    Image.new("RGB", (32, 32)).save(made["picture"])
    made["empty"] = tmp / "nothing"
    made["empty"].mkdir()
    made["net"] = f"{tmp / 'net.py'}:make"
    (tmp / "net.py").write_text(NET, encoding="utf-8")
    for suffix in ("onnx", "npz", "pt", "pt2", "ts", "png"):
        for name, content in (("words", "hello"), ("empty", ""), ("pipe", None), ("folder", ...)):
            made[f"{name}.{suffix}"] = tmp / f"{name}.{suffix}"
            spoil(made[f"{name}.{suffix}"], content)
    made |= graphs(tmp) | archives(tmp) | pictures(tmp) | bad_files.make(tmp, entered_run)
    results(made["results"], entered_run)
    return made


def spoil(path: Path, content: str | bytes | None) -> None:
    """A file of this content, a pipe for None, a directory for ``...``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        os.mkfifo(path)
    elif content is ...:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def graphs(tmp: Path) -> dict[str, Path]:
    """ONNX files."""
    texts = {"relu": RELU, "huge": HUGE, "unknown": RELU.replace("Relu", "Nonsense")}
    models = {name: parse_model(text) for name, text in texts.items()}
    inner = parse_model(RELU).graph
    for _ in range(LIMITS["depth"].value + 1):
        outer = parse_model(RELU).graph
        outer.node[0].attribute.append(onnx.helper.make_attribute("body", inner))
        inner = outer
    models["deep"] = onnx.helper.make_model(inner)
    models["opset"] = parse_model(RELU)
    models["opset"].opset_import[0].version = 2**40
    for name, location in (("lacking", "gone.bin"), ("outside", "../../../../etc/passwd")):
        model = parse_model(RELU)
        weight = onnx.numpy_helper.from_array(np.zeros((300,), np.float32), "w")
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
        model.graph.initializer.append(weight)
        models[name] = model
    for name, model in models.items():
        (tmp / f"{name}.onnx").write_bytes(model.SerializeToString())
    return {f"{name}.onnx": tmp / f"{name}.onnx" for name in models}


def archives(tmp: Path) -> dict[str, Path]:
    """Arrays, and zeros that unpack to more than any memory."""
    np.savez(tmp / "good.npz", other=np.zeros((2, 3), np.float32))
    np.savez(tmp / "objects.npz", x=np.array([Path("a")], object))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\0" * 2**20)
    content = bytearray(bomb.getvalue())
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = (2**32 - 2).to_bytes(4, "little")
    for name in ("bomb.npz", "bomb.ts"):
        (tmp / name).write_bytes(twice(bytes(content)))
    damaged = {"members": b"PK\1\3", "letters": None}  # no list of members; a name that is no UTF-8, said to be
    for name, signature in damaged.items():
        content = bytearray(bomb.getvalue())
        if signature:
            content[central : central + 4] = signature
        else:
            content[central + 9] |= 8
            content[central + 46] = 0xD5
        for suffix in ("pt2", "ts"):
            (tmp / f"{name}.{suffix}").write_bytes(content)
    written = (f"{name}.{suffix}" for name in damaged for suffix in ("pt2", "ts"))
    return {name: tmp / name for name in ("good.npz", "objects.npz", "bomb.npz", "bomb.ts", *written)}


def twice(archive: bytes) -> bytes:
    """The same archive with its member listed twice, which together are said to be larger than is allowed."""
    central, end = archive.rindex(b"PK\x01\x02"), archive.rindex(b"PK\x05\x06")
    entry, tail = bytes(archive[central:end]), bytearray(archive[end:])
    tail[8:12] = (2).to_bytes(2, "little") * 2
    tail[12:16] = (2 * len(entry)).to_bytes(4, "little")
    return bytes(archive[:central]) + 2 * entry + bytes(tail)


def pictures(tmp: Path) -> dict[str, Path]:
    """Pictures that are none, too large, or of numbers without a range; a folder of such."""
    Image.new("F", (8, 8)).save(tmp / "float.tif")
    Image.new("1", (20_000, 10_000)).save(tmp / "vast.png")
    (tmp / "pictures").mkdir()
    (tmp / "pictures" / "a.png").write_text("hello", encoding="utf-8")
    return {name: tmp / name for name in ("float.tif", "vast.png", "pictures")}


def results(folder: Path, run: Path) -> None:
    """Runs whose results are damaged, a copy for each."""
    spoiled = {
        "verify-words": ("verify.json", "hello"),
        "verify-bare": ("verify.json", '{"schema": "stn_export/verify/2"}'),
        "verify-types": ("verify.json", json.dumps({"schema": "stn_export/verify/2", "passed": "yes"})),
        "bench-words": ("bench.json", "hello"),
        "bench-bare": ("bench.json", "{}"),
        "bench-left-out": (
            "bench.json",
            json.dumps(
                {
                    "machine_info": {"stn_export": {"versions": {}, "cpu": "one", "gpu": None}},
                    "benchmarks": [],
                    "not_timed": 3,
                }
            ),
        ),
        "training-bare": ("training.json", '{"schema": "stn_export/training/2"}'),
        "points-words": ("points.pt", "hello"),
        "points-other": ("points.pt", ...),
    }
    for name, (file, content) in spoiled.items():
        copy = Path(shutil.copytree(run, folder / name))
        (copy / file).unlink(missing_ok=True)
        if content is ...:
            torch.save({"schema": "another"}, copy / file)
        else:
            spoil(copy / file, content)


@pytest.fixture
def bounded() -> Iterator[None]:
    """What takes longer than ``SECONDS`` is a failure."""

    def late(*_: object) -> None:
        raise TimeoutError(f"it hangs: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(
    ("stage", "arguments", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else ascii(value)[:80]
)
def test_it_is_one_line_a_hint_and_exit_code_2(
    stage: str,
    arguments: list[str],
    words: str,
    places: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    main = import_module(f"stn_export.{cli.COMMANDS[stage][0]}").main
    assert cli.run(main, [filled(each, places) for each in arguments]) == 2
    out, err = capfd.readouterr()
    assert words in err
    *before, error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert all(TRUST in line for line in before)
    assert "Traceback" not in out + err
    assert not any(tmp_path.iterdir()), "something was written"


def filled(text: str, places: dict[str, Path]) -> str:
    for name, place in places.items():
        text = text.replace(f"{{{name}}}", str(place))
    return text


def test_the_table_is_long():
    assert len(WRONG) >= 400
    assert {stage for stage, _, _ in WRONG} == set(cli.COMMANDS)


STREAMS = ((">&-", 0), ("> /dev/full", 2), ("| head -n 1", 0), ("2>&-", 0), ("| true", 0))


@pytest.mark.parametrize(
    ("words", "redirection", "code"),
    [
        ("doctor", "> /dev/full", 2),  # tables of a stage
        ("doctor", "| head -n 1", 0),
        *(("--help", *each) for each in STREAMS),
    ],
)
def test_streams_that_are_closed_full_or_broken(words: str, redirection: str, code: int):
    command = f"set -o pipefail; {sys.executable} -m stn_export {words} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_terminal_without_unicode(places: dict[str, Path]):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment["PYTHONIOENCODING"] = "ascii"
    command = [sys.executable, "-m", "stn_export.export", "--list", "--run", str(places["run"]), "--json"]
    done = subprocess.run(
        command, capture_output=True, check=False, env=environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    )
    assert done.returncode == 0, done.stderr
    done.stdout.decode("ascii")
