"""External runtimes, each in a process and an environment of its own.

A runtime is one row of ``RUNTIMES`` and one function of ``serve``, or ``serve.mjs`` for Node.js.
"""

from stn_export.runners.external.environments import RUNTIMES, Runtime
from stn_export.runners.external.process import Child, RefusedError

__all__ = ["RUNTIMES", "Child", "RefusedError", "Runtime"]
