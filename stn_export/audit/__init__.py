"""Audit an ONNX file: ``python -m stn_export.audit``, or in Python ``stn_export.audit(file)``."""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.audit.content:audited")
