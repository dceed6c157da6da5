"""What the stage ``verify`` is made of: an artifact against the reference, and files against each other."""
