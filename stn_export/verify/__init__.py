"""The stage ``verify``: compare artifacts with the float64 reference, and files with each other."""
