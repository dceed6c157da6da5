"""Register any network in a run: ``python -m stn_export.adopt``, or in Python ``stn_export.adopt(module, ...)``."""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.adopt.adoption:adopt")
