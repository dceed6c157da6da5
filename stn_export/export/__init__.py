"""The stage ``export``: lowerings, precisions, input contracts, and the files written beside a run."""
