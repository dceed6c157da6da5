"""Sizes are found without a word of the library that finds them."""

import logging

import onnx
import pytest
from onnx import TensorProto, helper

from stn_export.graphs.graph import _folded


def test_values_that_are_not_there_are_no_words_on_the_terminal(caplog: pytest.LogCaptureFixture):
    absent = onnx.TensorProto(name="sizes", data_type=TensorProto.INT64, dims=[2], data_location=TensorProto.EXTERNAL)
    absent.external_data.add(key="location", value="there_is_none")
    graph = helper.make_graph(
        [helper.make_node("Split", ["x", "sizes"], ["y", "z"], axis=0)],
        "absent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"],
        [absent],
    )
    with caplog.at_level(logging.NOTSET):
        _folded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert [each.message for each in caplog.records if each.levelno >= logging.WARNING] == []
    assert logging.getLogger("onnxscript").level == logging.NOTSET
