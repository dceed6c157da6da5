"""What the stage ``export`` is made of: lowerings, precisions, input contracts, and what is written beside a run."""
