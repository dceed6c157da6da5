"""The stage ``runtimes``: install external runtimes, each into an environment of its own."""
