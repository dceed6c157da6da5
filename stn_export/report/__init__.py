"""What the stage ``report`` is made of: each part of the report, and the figures."""
