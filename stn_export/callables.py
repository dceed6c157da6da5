"""Make a package callable, so that ``stn_export.adopt`` is both a stage and a function."""

import importlib
import sys
from types import ModuleType
from typing import Any


def callable_package(package: str, place: str) -> None:
    """Make a package callable: calls go to ``module:function``, imported at the first call as it imports PyTorch."""

    class Callable(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            module, _, name = place.partition(":")
            return getattr(importlib.import_module(module), name)(*arguments, **options)

    sys.modules[package].__class__ = Callable
