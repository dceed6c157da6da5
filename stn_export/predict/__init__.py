"""The stage ``predict``."""
