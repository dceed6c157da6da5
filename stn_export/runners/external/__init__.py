"""Runtimes that run in a process and an environment of their own: how these are made, and a child that serves one file.

A runtime is one row of ``RUNTIMES`` and one function of ``serve``.
"""

from stn_export.runners.external.environments import RUNTIMES, Runtime
from stn_export.runners.external.process import Child, RefusedError

__all__ = ["RUNTIMES", "Child", "RefusedError", "Runtime"]
