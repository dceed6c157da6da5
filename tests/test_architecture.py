"""The house keeps its plan: imports point one way, stages never import stages, and each library has its rooms."""

import ast

import pytest

from tests.conftest import REPOSITORY

FLOORS = (
    ("config", "errors", "tolerances"),
    ("environment", "artifacts"),
    (
        "cli",
        "model",
        "augmentation",
        "intervals",
        "interrupts",
        "compare",
        "digits",
        "capture",
        "sampling",
        "folding",
        "graph",
        "probes",
        "pictures",
        "thetas",
    ),
    ("checkpoint", "torch_files", "lowering", "kernels", "gain"),
    ("data", "onnx_export", "placement", "diagnosis"),
    ("figures", "challenges", "variants", "quantise", "optimise", "optimizers", "triton", "modelcard"),
    ("trainer", "lint", "deployment", "matrix", "report_content", "figures_bench", "figures_training", "report_advice"),
    ("portability", "runners", "captured", "cells", "plan", "distributed"),
    ("checks", "sides", "report_parity", "report_bench", "report_training"),
    ("versus", "search"),
    ("train", "export", "verify", "report", "predict", "audit", "keep"),
)
HEIGHT = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
READ_ONNX = {"graph", "kernels", "placement", "deployment", "lint", "portability", "audit"}
WRITE_ONNX = {"lowering", "onnx_export", "quantise", "optimise", "export"}
ROOMS = {
    "onnx": READ_ONNX
    | {"optimise", "challenges", "probes", "runners"}
    | {"lowering", "onnx_export", "quantise", "export"},
    "onnx_ir": {"lowering", "sampling", "folding"},
    "onnxscript": {"lowering", "sampling"},
    "onnxruntime": {"runners", "quantise", "optimise", "kernels", "placement", "deployment"},
    "openvino": {"runners", "portability"},
    "pytest": set(),
    "jinja2": {"report", "modelcard"},
    "hypothesis": {"search"},
}
MODULES = sorted(path.stem for path in (REPOSITORY / "stn_export").glob("*.py") if path.stem != "__init__")


def imported(module: str) -> set[str]:
    """Top-level names of other packages, and ``stn_export.x`` for ours."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / "stn_export" / f"{module}.py").read_text())):
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
