"""Runtimes that run in a process and an environment of their own: how these are made, and a child that serves one file.

A runtime is one row of ``RUNTIMES`` and one function of ``serve``.
"""

from stn_export.runtimes.child import Child, RefusedError
from stn_export.runtimes.environments import RUNTIMES, Runtime

__all__ = ["RUNTIMES", "Child", "RefusedError", "Runtime"]
