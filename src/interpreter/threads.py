"""Who a thread of this process is to Python: its name, its stack, the module that it runs."""

import os
import sys
import threading
import traceback

_LIBRARY = os.path.dirname(os.__file__) + os.sep
_SITE = ("site-packages", "dist-packages")  # folders below it, for what is not its own


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
        if not _is_library(file):
            return frame.f_globals.get("__name__", nearest)
        frame = frame.f_back
    return nearest


def _is_library(file):
    return file.startswith(_LIBRARY) and file[len(_LIBRARY) :].split(os.sep, 1)[0] not in _SITE
