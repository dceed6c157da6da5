"""What the stage ``verify`` is made of: an artifact against the truth, and files against each other."""
