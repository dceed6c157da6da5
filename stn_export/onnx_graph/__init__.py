"""Building blocks of ``audit``: read, place and lint any ONNX file."""
