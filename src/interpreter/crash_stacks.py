"""Enables ``faulthandler`` while modules are imported, and tells whether one of them wants it, too. Runs in the host."""

import faulthandler

_enable = faulthandler.enable
_is_wanted = False


def start():
    """Enable it; return whether it was enabled already, as by PYTHONFAULTHANDLER."""
    if faulthandler.is_enabled():
        return True
    _enable(file=2, all_threads=False)  # the log's descriptor, which sys.stderr may not be
    faulthandler.enable = _enable_for_module
    return False


def is_wanted():
    """Whether a module has enabled it, so that it is to stay, or has disabled it."""
    faulthandler.enable = _enable
    return _is_wanted or not faulthandler.is_enabled()


def end():
    """Disable it again."""
    faulthandler.disable()


def _enable_for_module(*args, **kwargs):
    global _is_wanted
    _is_wanted = True
    return _enable(*args, **kwargs)
