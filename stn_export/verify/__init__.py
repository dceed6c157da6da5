"""The stage ``verify``: compare artifacts with the float64 reference, and files with each other.

In Python ``stn_export.verify(run)``.
"""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.api:verify")
