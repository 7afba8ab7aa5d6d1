"""Who a thread of this process is to Python: its name, its stack, the module that it runs."""

import os
import sys
import sysconfig
import threading
import traceback

_LIBRARY = tuple(
    os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")
)
_SITE = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))


def describe(native_id):
    """Return what Python knows of a thread: ``name, module, stack``; None of one that Python did not start."""
    for thread in threading.enumerate():
        if thread.native_id == native_id:
            frame = sys._current_frames().get(thread.ident)
            if frame is None:
                return thread.name, "", ""
            return thread.name, _module_of(frame), "".join(traceback.format_stack(frame))
    return None


def _module_of(frame):
    """The module nearest to the thread's call that is not the standard library's."""
    nearest = frame.f_globals.get("__name__", "")
    while frame is not None:
        file = os.path.abspath(frame.f_code.co_filename)
        if not file.startswith(_LIBRARY) or file.startswith(_SITE):
            return frame.f_globals.get("__name__", nearest)
        frame = frame.f_back
    return nearest
