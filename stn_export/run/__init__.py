"""The run directory: networks, their artifacts, what they are tried on, and the machine that a result is from."""
