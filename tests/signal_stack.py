"""Whether this process would survive a signal: libraries replace the stack that signal handlers run on."""

import ctypes
import mmap
import sys


class Stack(ctypes.Structure):
    """``stack_t`` of <signal.h> on Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def is_usable() -> bool:
    """Say whether the alternate signal stack of this thread, if it has one, is mapped; True on other systems."""
    if sys.platform != "linux":
        return True
    library, stack = ctypes.CDLL(None), Stack()
    library.sigaltstack(None, ctypes.byref(stack))
    if not stack.address:
        return True
    start = stack.address // mmap.PAGESIZE * mmap.PAGESIZE
    pages = -(-(stack.address + stack.size - start) // mmap.PAGESIZE)
    resident = ctypes.create_string_buffer(pages)
    return library.mincore(ctypes.c_void_p(start), ctypes.c_size_t(pages * mmap.PAGESIZE), resident) == 0
