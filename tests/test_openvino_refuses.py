"""A file that OpenVINO cannot convert is left out with its reason; it is no failed check of the file."""

from pathlib import Path

import pytest
from onnx import parser, save

from stn_export.program.specs import Contract, TensorSpec
from stn_export.runners import RUNNERS
from stn_export.runners.external import RefusedError

VOLUME = """<ir_version: 9, opset_import: ["" : 20]>
graph (float[1,1,4,4,4] x, float[1,4,4,4,3] grid) => (float[1,1,4,4,4] y) { y = GridSample (x, grid) }"""


def test_a_sampler_of_volumes_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    save(parser.parse_model(VOLUME), tmp_path / "volume.onnx")
    [spec] = [each for each in RUNNERS if each.name == "openvino-cpu"]
    shapes = {"x": (1, 1, 4, 4, 4), "grid": (1, 4, 4, 4, 3)}
    inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
    contract = Contract(inputs, (TensorSpec("y", "float32", shapes["x"]),))
    with pytest.raises(RefusedError, match="OpenVINO cannot convert it: "):
        spec.open(tmp_path / "volume.onnx", contract)
