"""The stage ``bench``: time artifacts on every backend."""
