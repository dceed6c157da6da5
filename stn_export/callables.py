"""A package that is also the function of its name, so that ``stn_export.adopt`` is both a stage and what it does."""

import importlib
import sys
from types import ModuleType
from typing import Any


def callable_package(package: str, place: str) -> None:
    """Make a package callable: calls go to ``module:function``, imported only then, as it takes PyTorch along."""

    class Callable(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            module, _, name = place.partition(":")
            return getattr(importlib.import_module(module), name)(*arguments, **options)

    sys.modules[package].__class__ = Callable
