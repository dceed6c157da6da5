"""The house keeps its plan: imports point one way, stages never import stages, and each library has its rooms."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FLOORS = (
    ("config", "errors", "grids", "tolerances"),
    ("method",),
    ("environment", "artifacts"),
    ("cli", "compare", "intervals", "interrupts"),
    ("model", "digits", "augmentation", "capture", "sampling", "folding", "graph", "probes", "pictures", "thetas"),
    ("checkpoint", "torch_files", "lowering", "kernels", "gain"),
    ("data", "onnx_export", "placement", "diagnosis"),
    ("figures", "challenges", "variants", "quantise", "optimise", "optimizers", "triton", "modelcard"),
    ("trainer", "lint", "deployment", "matrix", "report_content", "figures_bench", "figures_training", "report_advice"),
    ("captured", "cells", "plan", "distributed"),
    ("portability", "runners.base"),
    ("runners.pytorch", "runners.onnx_runtime", "runners.open_vino"),
    ("runners.registry",),
    ("runners",),
    ("checks", "sides", "report_parity", "report_bench", "report_training"),
    ("versus", "search"),
    ("train", "export", "verify", "report", "predict", "audit", "keep"),
)
HEIGHT = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
READ_ONNX = {"graph", "kernels", "placement", "deployment", "lint", "portability", "audit"}
WRITE_ONNX = {"lowering", "onnx_export", "quantise", "optimise", "export"}
ROOMS = {
    "onnx": READ_ONNX
    | {"optimise", "challenges", "probes", "runners.onnx_runtime"}
    | {"lowering", "onnx_export", "quantise", "export"},
    "onnx_ir": {"lowering", "sampling", "folding"},
    "onnxscript": {"lowering", "sampling"},
    "onnxruntime": {
        *("runners.onnx_runtime", "runners.registry"),
        *("quantise", "optimise", "kernels", "placement", "deployment"),
    },
    "openvino": {"runners.open_vino", "portability"},
    "pytest": set(),
    "jinja2": {"report", "modelcard"},
    "hypothesis": {"search"},
}
PACKAGE = REPOSITORY / "stn_export"


def name_of(path: Path) -> str:
    """A module's dotted name below ``stn_export``; a package's own name stands for its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"}
MODULES = sorted(SOURCES)


def imported(module: str) -> set[str]:
    """Top-level names of other packages, and ``stn_export.x`` for ours."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "stn_export":
            names |= {f"stn_export.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name if name.startswith("stn_export.") else name.split(".")[0] for name in names}


def test_every_module_has_a_floor():
    assert sorted(HEIGHT) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str):
    ours = {name.removeprefix("stn_export.") for name in imported(module) if name.startswith("stn_export.")}
    for other in ours & set(HEIGHT):
        assert HEIGHT[other] < HEIGHT[module], f"{module} imports {other}, which stands no lower"


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_in_their_rooms(module: str):
    for library, allowed in ROOMS.items():
        assert library not in imported(module) or module in allowed, f"{module} must not know {library}"
