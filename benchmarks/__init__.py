"""The pytest-benchmark suites, which the wheel brings as ``stn_export.suites``, and what they are kept in."""
