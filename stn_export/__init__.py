"""Train a spatial transformer, export it, prove the exports equal to PyTorch and measure what they cost."""

__version__ = "0.1.0"
