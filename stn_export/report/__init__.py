"""The stage ``report``: the sections of the report, and its figures.

In Python ``stn_export.report(run)``.
"""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.api:report")
