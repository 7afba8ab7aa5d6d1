"""What the operator names is imported here, and what is wrong with it is told in the operator's words.

Runs in the host, before the first clone. What only an error needs is imported there, or it would be in every child.
"""

import sys

_OWN_FRAMES = ("<pyspawner>", "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


class CannotUse(Exception):
    """What the operator named cannot be imported or called. The text says why, and what to do."""


def import_module(name):
    """Import and return the module ``name``; raise :class:`CannotUse`."""
    try:
        __import__(name)
    except BaseException as error:  # noqa: B902 - a module that leaves (SystemExit) is told, too
        if isinstance(error, ModuleNotFoundError) and not _users_frames(error) and _is_part(error.name, name):
            text = _not_found(name, error.name)
        else:
            text = f"importing {name!r} failed:\n{_traceback(error)}"
        raise CannotUse(text) from None
    return sys.modules[name]


def resolve(module, name):
    """Import ``module`` and return the callable ``name`` in it; raise :class:`CannotUse`."""
    target = import_module(module)
    place = f"module {module!r} ({getattr(target, '__file__', None) or 'built in'})"
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise CannotUse(f"{place} has no {name!r}{_did_you_mean(part, _callables(target))}") from None
    if not callable(target):
        raise CannotUse(f"{name!r} of {place} cannot be called: it is a {type(target).__name__}")
    return target


def _is_part(missing, name):
    return missing is not None and (name + ".").startswith(missing + ".")


def _users_frames(error):
    """The error's stack without what this program and Python's own import machinery did first."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename in _OWN_FRAMES:
        frame = frame.tb_next
    return frame


def _traceback(error):
    import traceback

    lines = traceback.format_exception(type(error), error, _users_frames(error))
    return "".join(lines).rstrip()


def _not_found(name, missing):
    import os
    import pkgutil

    above, _, last = missing.rpartition(".")
    if above:
        package = sys.modules[above]
        known = [module.name for module in pkgutil.iter_modules(getattr(package, "__path__", ()))]
        where = getattr(package, "__file__", None) or "built in"
        return f"there is no module {name!r}: {above!r} ({where}) has no {last!r}{_did_you_mean(last, known)}"
    folders = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    near = _did_you_mean(missing, [module.name for module in pkgutil.iter_modules(folders)])
    hint = (
        "; hint: for a module of yours, name its folder (--path, or path = [...] in a configuration file); for a package, "
        "install it (pip install) in the environment in use (--python, or executable= of a Client)"
    )
    return f"there is no module {missing!r} in {', '.join(folders)}{near or hint}"


def _did_you_mean(name, known):
    import difflib

    alike = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; hint: did you mean {alike[0]!r}?" if alike else ""


def _callables(target):
    return [name for name in dir(target) if callable(getattr(target, name, None))]


# ---- code that a job may have left (import_guard.rs) -------------------------------------------


def guard(check):
    """Has ``check(path)`` raise before a module is loaded, or read, from there.

    What ``io.open_code`` opens is looked at by a hook. It does not see extension modules, nor bytecode without its source, which
    a loader opens as any file, nor what loaders of other projects read.
    """
    import _frozen_importlib as bootstrap
    import _frozen_importlib_external as external

    module_from_spec, get_data = bootstrap.module_from_spec, external.FileLoader.get_data

    def checked_module(spec):
        if spec.has_location and spec.origin is not None:
            check(spec.origin)
        return module_from_spec(spec)

    def checked_data(self, path):
        check(path)
        return get_data(self, path)

    bootstrap.module_from_spec = checked_module
    external.FileLoader.get_data = checked_data
    # Bytecode is neither read nor written where jobs can write.
    if sys.pycache_prefix is not None:
        try:
            check(sys.pycache_prefix)
        except PermissionError:
            sys.pycache_prefix = None
