"""Files of others that are wrong in one place each: weights, labels, examples, graphs, contracts, manifests.

``CASES`` are more rows of the table of tests/test_bad_input.py; ``make`` writes what they speak of.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.parser import parse_model
from torch import nn

HEADER = '<ir_version: 9, opset_import: ["" : 18]>'
RELU = f"{HEADER} g (float[N,4] x) => (float[N,4] y) {{ y = Relu (x) }}"
Cases = list[tuple[str, list[str], str]]
NET, FLAT, PICTURES = "{linear}", ["--input", "x=N,3"], ["--input", "x=N,3,4,4"]

# What stands in a weights file beside what the module is: --weights of a module with weight (2×3) and bias (2).
WEIGHTS: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: {"weight": torch.zeros(2, 3)}, "bias"),
    "other": (lambda: {"a": torch.zeros(2)}, "weight"),
    "extra": (lambda: nn.Linear(3, 2).state_dict() | {"more": torch.zeros(1)}, "more"),
    "shape": (lambda: nn.Linear(4, 2).state_dict(), "weight"),
    "none": (dict, "weight"),
    "list": (lambda: [torch.zeros(2, 3)], "weights"),
    "tensor": (lambda: torch.zeros(2, 3), "weights"),
    "number": (lambda: 3, "weights"),
    "text": (lambda: "weights", "weights"),
    "numbered": (lambda: {0: torch.zeros(2, 3), 1: torch.zeros(2)}, "holds no state dict"),
    "mixed": (lambda: {"weight": torch.zeros(2, 3), "bias": 3}, "holds no state dict"),
    "nested": (lambda: {"weight": {"a": torch.zeros(2, 3)}, "bias": torch.zeros(2)}, "weight"),
    "sparse": (lambda: {"weight": torch.zeros(2, 3).to_sparse(), "bias": torch.zeros(2)}, "weight"),
    "meta": (lambda: {"weight": torch.zeros(2, 3, device="meta"), "bias": torch.zeros(2)}, "weight"),
    "complex": (lambda: {"weight": torch.zeros(2, 3, dtype=torch.cfloat), "bias": torch.zeros(2)}, "weight"),
}

# Lines of --labels beside five examples.
LABELS = {
    "few": ("0,1\n1,0\n", "has no label for 2"),
    "twice": ("0,1\n0,2\n1,0\n2,0\n3,0\n4,0\n", "label"),
    "negative": ("0,-1\n1,0\n2,0\n3,0\n4,0\n", ":1 is '0,-1'"),
    "float": ("a,b\n0,1.5\n1,0\n2,0\n3,0\n4,0\n", ":2 is '0,1.5'"),
    "word": ("a,b\n0,cat\n1,0\n2,0\n3,0\n4,0\n", ":2 is '0,cat'"),
    "nines": (f"0,{'9' * 30}\n1,0\n2,0\n3,0\n4,0\n", ":1 is '0,999"),
    "digits": (f"0,{'9' * 5000}\n1,0\n2,0\n3,0\n4,0\n", ":1 is '0,999"),
    "foreign digits": ("0,٣\n1,²\n2,0\n3,0\n4,0\n", ":1 is"),
    "empty": ("", "has no label for 0"),
    "blank": ("\n\n\n", "has no label for 0"),
    "heading": ("file,label\n", "has no label for 0"),
    "single": ("0\n1\n2\n3\n4\n", ":2 is '1'"),
    "names": ("0,1,cat\n1,1,dog\n2,0\n3,0\n4,0\n", "dog"),
    "latin": ("0,1,caf\xe9\n".encode("latin-1"), "cannot be read"),
    "bytes": (b"\x00\xff\xfe", "cannot be read"),
    "nul": ("0,1\0\n1,0\n2,0\n3,0\n4,0\n", "label"),
    "quote": ('"0,1\n1,0\n2,0\n3,0\n4,0\n', "label"),
    "wide": (f"0,1,{'x' * 200_000}\n", "cannot be read"),
}

# Arrays of --examples for an input x of N×3 float32, and labels among them.
EXAMPLES: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "none": ({}, "lack input x"),
    "empty": ({"x": np.zeros((0, 3), np.float32)}, "examples' x is 0×3"),
    "scalar": ({"x": np.float32(1)}, "examples' x"),
    "rank": ({"x": np.zeros((5, 3, 1), np.float32)}, "examples' x"),
    "width": ({"x": np.zeros((5, 4), np.float32)}, "examples' x"),
    "whole": ({"x": np.zeros((5, 3), np.int64)}, "examples' x"),
    "complex": ({"x": np.zeros((5, 3), np.complex64)}, "examples' x"),
    "text": ({"x": np.array([["a", "b", "c"]])}, "x"),
    "dates": ({"x": np.zeros((5, 3), "datetime64[s]")}, "x"),
    "records": ({"x": np.zeros((5, 3), [("a", "f4")])}, "x"),
    "nan": ({"x": np.full((5, 3), np.nan, np.float32)}, "is not finite"),
    "infinite": ({"x": np.full((5, 3), -np.inf, np.float32)}, "is not finite"),
    "large": ({"x": np.full((5, 3), 1e300)}, "which float32 cannot hold"),
    "labels short": ({"x": np.zeros((5, 3), np.float32), "labels": np.zeros(4, np.int64)}, "labels 4"),
    "labels empty": ({"x": np.zeros((5, 3), np.float32), "labels": np.zeros(0, np.int64)}, "labels"),
    "labels complex": ({"x": np.zeros((5, 3), np.float32), "labels": np.zeros(5, np.complex64)}, "labels"),
    "labels float": ({"x": np.zeros((5, 3), np.float32), "labels": np.zeros(5, np.float32)}, "labels"),
    "labels negative": ({"x": np.zeros((5, 3), np.float32), "labels": np.full(5, -1)}, "labels"),
    "labels flat": ({"x": np.zeros((5, 3), np.float32), "labels": np.zeros((5, 2), np.int64)}, "labels"),
    "labels one": ({"x": np.zeros((5, 3), np.float32), "labels": np.int64(1)}, "labels"),
}

# How a .npy member of an .npz is spoiled.
MEMBERS = {
    "nothing": b"",
    "words": b"hello",
    "magic": b"\x93NUMPY",
    "version": b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
    "cut": b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (5, 3), }".ljust(128) + b"abc",
    "vast": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999, 99999999), }".ljust(117)
    + b"\n",
    "negative": b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3), }".ljust(127)
    + b"\n",
    "code": b"\x93NUMPY\x01\x00\x76\x00{'descr': __import__('os').getcwd(), 'shape': (5, 3)}".ljust(127) + b"\n",
    "deep": b"\x93NUMPY\x02\x00\x00\x10\x00\x00" + b"[" * 4095 + b"\n",
}

# External data of an ONNX file with a weight of 300 float32: 1,200 bytes stand in w.bin.
EXTERNAL: dict[str, dict[str, str]] = {
    "longer": {"location": "w.bin", "length": "999999"},
    "shorter": {"location": "w.bin", "length": "8"},
    "beyond": {"location": "w.bin", "offset": "1000", "length": "1200"},
    "offset": {"location": "w.bin", "offset": "-8"},
    "far": {"location": "w.bin", "offset": str(2**70)},
    "word": {"location": "w.bin", "offset": "eight"},
    "digits": {"location": "w.bin", "offset": "9" * 5000},
    "long": {"location": "x" * 5000},
    "nowhere": {"location": ""},
    "nul": {"location": "w\0.bin"},
    "folder": {"location": "."},
    "up": {"location": "../w.bin"},
    "absolute": {"location": "/etc/passwd"},
    "pipe": {"location": "pipe.bin"},
    "link": {"location": "link.bin"},
    "no place": {"length": "1200"},
}

# What stands as a contract in the metadata of an ONNX file that predict is to run.
SPEC = {"name": "x", "dtype": "float32", "shape": ["N", 3, 4, 4], "batched": True}
CONTRACTS: dict[str, object] = {
    "words": "hello",
    "nothing": "",
    "null": "null",
    "list": "[]",
    "number": "1e999",
    "deep": "[" * 200_000,
    "closed": "[" * 200_000 + "]" * 200_000,
    "bare": {},
    "types": {"inputs": 1, "outputs": []},
    "nameless": {"inputs": [{k: v for k, v in SPEC.items() if k != "name"}], "outputs": [SPEC]},
    "negative": {"inputs": [SPEC | {"shape": ["N", -3, 4, 4]}], "outputs": [SPEC]},
    "vast": {"inputs": [SPEC | {"shape": ["N", 2**62, 4, 4]}], "outputs": [SPEC]},
    "fraction": {"inputs": [SPEC | {"shape": ["N", 3.5, 4, 4]}], "outputs": [SPEC]},
    "layout": {"inputs": [SPEC | {"layout": "NHWC", "shape": ["N", 3]}], "outputs": [SPEC]},
    "unknown layout": {"inputs": [SPEC | {"layout": "WHCN"}], "outputs": [SPEC]},
    "type": {"inputs": [SPEC | {"dtype": "float31"}], "outputs": [SPEC]},
    "module": {"inputs": [SPEC | {"dtype": "nn"}], "outputs": [SPEC]},
    "pixels": {"inputs": [SPEC | {"pixels": {"mean": [], "std": [0]}}], "outputs": [SPEC]},
    "another name": {"inputs": [SPEC | {"name": "z"}], "outputs": [SPEC]},
    "twice": {"inputs": [SPEC, SPEC], "outputs": [SPEC]},
}

# What a manifest says of its program instead of the reference; the rest of the run is as it was written.
MANIFESTS: dict[str, tuple[dict, str]] = {
    "up": ({"file": "../../program.pt2"}, "is no name of a file beside it"),
    "absolute": ({"file": "/etc/passwd"}, "is no name of a file beside it"),
    "hidden": ({"file": ".program.pt2"}, "is no name of a file beside it"),
    "gone": ({"file": "other.pt2"}, ""),
    "itself": ({"file": "manifest.json"}, ""),
    "nul": ({"file": "program\0.pt2"}, ""),
    "long": ({"file": "x" * 5000}, ""),
    "digest": ({"sha256": "0" * 64}, ""),
    "no digest": ({"sha256": ""}, ""),
    "format": ({"format": "onnx"}, ""),
    "foreign format": ({"format": "pickle"}, ""),
    "no format": ({"format": 3}, "`str`"),
    "precision": ({"precision": 16}, "`str`"),
    "contract": ({"contract": {}}, "missing required field"),
    "no contract": ({"contract": None}, "`object`"),
    "beside": ({"beside": {"../x": "0" * 64}}, "is no name of a file beside it"),
    "nobody": ({"network": None}, "`str`"),
}
NETWORKS: dict[str, tuple[dict, str]] = {
    "role": ({"role": "king"}, "king"),
    "label": ({"label": 3}, "`str`"),
    "classes": ({"classes": [1, 2]}, "`str`"),
    "parameters": ({"parameters": "many"}, "`int`"),
    "sites": ({"sites": [{"name": "x"}]}, "missing required field"),
    "site list": ({"sites": {}}, "`array`"),
    "examples": ({"examples": {"file": "../../../etc/passwd", "sha256": "", "source": ""}}, "no name of examples"),
    "digest": ({"examples": {"file": "examples.pt", "sha256": "../../x", "source": ""}}, "matching regex"),
    "bare examples": ({"examples": {}}, "missing required field"),
}

CASES: Cases = [
    *(("adopt", [NET, *FLAT, "--weights", f"{{weights-{name}}}"], words) for name, (_, words) in WEIGHTS.items()),
    *(
        ("adopt", [NET, *FLAT, "--examples", "{five}", "--labels", f"{{labels-{name}}}"], words)
        for name, (_, words) in LABELS.items()
    ),
    *(("adopt", [NET, *FLAT, "--examples", "{five}", "--labels", place], words) for place, words in (
        ("/dev/zero", "is a pipe or a device"),
        ("/proc/self/mem", ""),
        ("{pipe.npz}", "is a pipe or a device"),
        ("{folder.npz}", "is a directory"),
        ("{tmp}/none.csv", "there is no file"),
        ("{five}", "cannot be read"),
    )),
    *(("adopt", [NET, *FLAT, "--examples", f"{{examples-{name}}}"], words) for name, (_, words) in EXAMPLES.items()),
    *(("adopt", [NET, *FLAT, "--examples", f"{{member-{name}}}"], "cannot be read") for name in MEMBERS),
    *(("adopt", [NET, "--input", text], words) for text, words in (
        ("x=N,", "cannot be read"),
        ("x=,3", "cannot be read"),
        ("x=N,-3", "cannot be read"),
        ("x=N,3.5", "cannot be read"),
        ("x=N,0", ""),
        ("x=0,3", ""),
        ("x=N,3:", "cannot be read"),
        ("x=N,3:float32:float32", ""),
        ("=N,3", "cannot be read"),
        ("=", "cannot be read"),
        ("", "cannot be read"),
        ("x=N;3", "cannot be read"),
        ("x=N,3\n", "cannot be read"),
        (f"x=N,{'9' * 5000}", ""),
        (f"x={','.join(['N'] * 5000)}", ""),
        ("x=N,N", ""),
        ("x=N,3,4", "does not take 2×3×4"),
        ("x=N,٣", "cannot be read"),
        ("x=N,³", "cannot be read"),
        ("x=N,1e3", "cannot be read"),
        ("x=N,W=0", "cannot be read"),
    )),
    *((stage, arguments, "") for name in EXTERNAL for stage, arguments in (
        ("audit", [f"{{external-{name}}}"]),
        ("verify", ["{relu.onnx}", f"{{external-{name}}}"]),
    )),
    *(("predict", ["{picture}", "--artifact", f"{{contract-{name}}}"], "") for name in CONTRACTS),
    *((stage, ["--run", f"{{manifest-{name}}}"], words) for name, (_, words) in MANIFESTS.items()
      for stage in ("export", "play")),
    *(("report", ["--run", f"{{network-{name}}}"], words) for name, (_, words) in NETWORKS.items()),
    *(("bench", ["--run", "{run}", "--budget", text], "invalid") for text in ("0s", "nan", "inf", "3x", "m", "1e999h")),
    *(("all", ["--budget", text], "invalid") for text in ("0s", "nan", "10 parsecs")),
    *((stage, arguments, words) for stage, own in (("gain", []), ("train", ["--dataset", "folder"]))
      for arguments, words in (
        (own, "takes pictures of your own"),
        ([*own, "--data", "{five}"], "is not a directory"),
        ([*own, "--data", "{tmp}/none"], "is not a directory"),
        ([*own, "--data", "/proc"], ""),
        ([*own, "--data", "{tmp}", "--size", "0"], "0 is less than 1"),
        ([*own, "--data", "{tmp}", "--size", "9" * 30], "is more than 512 pixels"),
        ([*own, "--data", "{tmp}", "--seeds", "0"], "0 is less than 1"),
        ([*own, "--data", "{tmp}", "--recipe", "slow"], "unknown recipe"),
    )),
    ("train", ["--data", "{tmp}"], "has no effect: --dataset digits takes no files"),
    ("train", ["--size", "64"], "--size 64 has no effect"),
    ("gain", ["--json"], "is of single stages"),
]  # fmt: skip


def make(tmp: Path, run: Path) -> dict[str, Path | str]:
    """Everything that the cases speak of, by name."""
    made: dict[str, Path | str] = {}
    (tmp / "linear.py").write_text(
        "import torch\n\n\nclass Linear(torch.nn.Linear):\n"
        "    def forward(self, x):\n        return super().forward(x)\n"
        "\n\ndef make():\n    return Linear(3, 2).eval()\n",
        encoding="utf-8",
    )
    made["linear"] = f"{tmp / 'linear.py'}:make"
    np.savez(tmp / "five.npz", x=np.zeros((5, 3), np.float32))
    made["five"] = tmp / "five.npz"
    for name, (content, _) in WEIGHTS.items():
        torch.save(content(), tmp / f"weights-{name}.pt")
        made[f"weights-{name}"] = tmp / f"weights-{name}.pt"
    for name, (text, _) in LABELS.items():
        made[f"labels-{name}"] = path = tmp / f"labels-{name}.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, (arrays, _) in EXAMPLES.items():
        np.savez(tmp / f"examples-{name}.npz", **arrays)
        made[f"examples-{name}"] = tmp / f"examples-{name}.npz"
    for name, member in MEMBERS.items():
        made[f"member-{name}"] = path = tmp / f"member-{name}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", member)
    return made | external(tmp / "external") | contracts(tmp) | manifests(tmp / "manifests", run)


def external(folder: Path) -> dict[str, Path]:
    """ONNX files whose weights lie elsewhere, or are said to."""
    made = {}
    for name, entries in EXTERNAL.items():
        place = folder / name
        place.mkdir(parents=True)
        (place / "w.bin").write_bytes(bytes(1200))
        (place / "link.bin").symlink_to("/etc/passwd")
        if name == "pipe":
            import os

            os.mkfifo(place / "pipe.bin")
        model = parse_model(f"{HEADER} g (float[N,300] x) => (float[N,300] y) {{ y = Add (x, w) }}")
        weight = onnx.numpy_helper.from_array(np.zeros((300,), np.float32), "w")
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            weight.external_data.add(key=key, value=value)
        model.graph.initializer.append(weight)
        made[f"external-{name}"] = place / "model.onnx"
        (place / "model.onnx").write_bytes(model.SerializeToString())
    return made


def contracts(tmp: Path) -> dict[str, Path]:
    """ONNX files whose metadata holds a contract that is none."""
    made = {}
    for name, contract in CONTRACTS.items():
        model = parse_model(f"{HEADER} g (float[N,3,4,4] x) => (float[N,3,4,4] y) {{ y = Relu (x) }}")
        text = contract if isinstance(contract, str) else json.dumps(contract)
        onnx.helper.set_model_props(model, {"contract": text, "classes": "[]"})
        made[f"contract-{name}"] = tmp / f"contract-{name}.onnx"
        made[f"contract-{name}"].write_bytes(model.SerializeToString())
    return made


def manifests(folder: Path, run: Path) -> dict[str, Path]:
    """Runs of which one manifest says something else of its program, or of the network."""
    made = {}
    for kind, table in (("manifest", MANIFESTS), ("network", NETWORKS)):
        for name, (changes, _) in table.items():
            made[f"{kind}-{name}"] = place = Path(shutil.copytree(run, folder / f"{kind}-{name}"))
            path = place / "stn" / "manifest.json"
            content = json.loads(path.read_text(encoding="utf-8"))
            changed = content["artifacts"]["program"] if kind == "manifest" else content["network"]
            changed |= changes
            path.write_text(json.dumps(content), encoding="utf-8")
    return made
