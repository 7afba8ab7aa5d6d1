"""Which modules have Python call something in the host at each fork: CPython keeps no list that can be read."""

import os
import sys

_registered = []


def watch():
    """Note from here on who registers a handler of the host's side."""
    register = os.register_at_fork

    def register_at_fork(*, before=None, after_in_child=None, after_in_parent=None):
        if before is not None or after_in_parent is not None:
            module = sys._getframe(1).f_globals.get("__name__", "")
            if module.partition(".")[0] not in sys.stdlib_module_names:
                _registered.append(module)
        handlers = {"before": before, "after_in_child": after_in_child, "after_in_parent": after_in_parent}
        register(**{name: handler for name, handler in handlers.items() if handler is not None})

    os.register_at_fork = register_at_fork


def are_registered():
    return bool(_registered)
