"""Anyone's network into a run: ``python -m stn_export.adopt``, or in Python ``stn_export.adopt(module, ...)``."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """This package, which is also the function of its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See ``stn_export.adopt.adoption.adopt``."""
        from stn_export.adopt.adoption import adopt  # takes PyTorch with it, which is slow to load

        return adopt(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
