"""Under which names modules hold descriptors, for the operator; and handlers that must know a job from the host."""

import functools
import io
import os
import sys

# Of the standard library's modules only those that others have imported: what is imported here is in each child.
_HOLDERS = {"socket": "socket", "select": "epoll", "tempfile": "_TemporaryFileWrapper"}


def names(numbers):
    """Return ``{number: "module.NAME"}`` for those that a module's variable holds, itself or one level down."""
    found = {}
    holders = (io.IOBase, *_loaded_holders())
    wanted = set(numbers)
    for module_name, module in list(sys.modules.items()):
        # Of a submodule that a package re-exports, the longer name is as good.
        for name, value in list(_attributes(module).items()):
            for holder in (value, *_attributes(value).values()):
                number = _number(holder) if isinstance(holder, holders) else None
                if number in wanted:
                    found.setdefault(number, f"{module_name}.{name}")
    return found


def _loaded_holders():
    for module, name in _HOLDERS.items():
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


def _attributes(value):
    # Not getattr: a lazy module would import something.
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _number(value):
    try:
        return value.fileno()
    except (OSError, ValueError):
        return None  # closed, or in memory


def keep_logs_whole():
    """Let log files be renamed and begun anew by the host alone: a job's stand-in for such a file has no end to seek."""
    logging = sys.modules.get("logging")
    for reference in list(logging._handlerList) if logging else ():
        handler = reference()
        original = getattr(handler, "shouldRollover", None)
        if original is not None:
            handler.shouldRollover = functools.partial(_in_host_only, os.getpid(), original)


def _in_host_only(host, original, record):
    return os.getpid() == host and original(record)
