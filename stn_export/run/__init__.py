"""The run directory: networks, artifacts, examples, results, and the machine that a result comes from."""
