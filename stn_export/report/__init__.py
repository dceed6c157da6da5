"""The stage ``report``: the sections of the report, and its figures."""
