"""What the stage ``audit`` is made of: ONNX files read, placed on a provider and linted, whoever wrote them."""
