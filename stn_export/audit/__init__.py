"""The stage ``audit``."""
