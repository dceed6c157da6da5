"""The house keeps its plan: imports point one way, stages never import stages, and each library has its rooms."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FLOORS = (
    ("training", "exporting", "auditing", "verifying", "reporting"),  # a docstring each
    ("config", "errors", "grids", "tolerances"),
    ("method",),
    ("environment", "artifacts"),
    ("cli", "compare", "intervals", "training.interrupts"),
    ("model", "digits", "augmentation", "probes", "auditing.graph"),
    ("exporting.capture", "exporting.sampling", "exporting.folding", "verifying.pictures", "reporting.thetas"),
    ("checkpoint", "torch_files", "exporting.lowering", "auditing.kernels", "gain"),
    ("data", "exporting.onnx_export", "auditing.placement", "verifying.diagnosis"),
    ("challenges", "exporting.variants", "exporting.quantise", "exporting.optimise", "exporting.triton"),
    ("exporting.modelcard", "training.optimizers", "reporting.content", "reporting.figures"),
    ("training.trainer", "auditing.lint", "auditing.deployment", "exporting.matrix"),
    ("reporting.figures_bench", "reporting.figures_training", "reporting.advice"),
    ("training.captured", "training.cells", "training.plan", "training.distributed"),
    ("auditing.portability", "runners.base"),
    ("runners.pytorch", "runners.onnx_runtime", "runners.open_vino"),
    ("runners.registry",),
    ("runners",),
    ("verifying.checks", "verifying.sides", "reporting.parity", "reporting.bench", "reporting.training"),
    ("verifying.versus", "verifying.search"),
    ("train", "export", "verify", "report", "predict", "audit", "keep"),
)
HEIGHT = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
ROOMS = {
    "onnx": {
        *("auditing.graph", "auditing.kernels", "auditing.placement", "auditing.deployment", "auditing.lint"),
        *("auditing.portability", "audit", "challenges", "probes", "runners.onnx_runtime", "export"),
        *("exporting.lowering", "exporting.onnx_export", "exporting.quantise", "exporting.optimise"),
    },
    "onnx_ir": {"exporting.lowering", "exporting.sampling", "exporting.folding"},
    "onnxscript": {"exporting.lowering", "exporting.sampling"},
    "onnxruntime": {
        *("runners.onnx_runtime", "runners.registry", "exporting.quantise", "exporting.optimise"),
        *("auditing.kernels", "auditing.placement", "auditing.deployment"),
    },
    "openvino": {"runners.open_vino", "auditing.portability"},
    "pytest": set(),
    "jinja2": {"report", "exporting.modelcard"},
    "hypothesis": {"verifying.search"},
}
PACKAGE = REPOSITORY / "stn_export"


def name_of(path: Path) -> str:
    """A module's dotted name below ``stn_export``; a package's own name stands for its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"}
MODULES = sorted(SOURCES)


def imported(module: str) -> set[str]:
    """Top-level names of other packages, and the dotted names that may be modules of ours."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
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
