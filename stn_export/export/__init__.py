"""The stage ``export``: lowerings, precisions, input contracts, and the files written beside a run.

In Python ``stn_export.export(run)``.
"""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.api:export")
