"""The stage ``bench``: time artifacts on every backend.

In Python ``stn_export.bench(run)``.
"""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.api:bench")
