"""Where the interpreter imports from besides the folders of ``sys.path``: editable installs, mostly.

Their import hooks keep mappings from modules to source files, and their folders of links lead to such.
A job that imports something later must reach the same files. What is collected here is shown to jobs, so
a path counts only if a module can be imported from it; and nothing is imported or called to find out,
but for listing folders.
"""

import importlib.machinery
import os
import stat
import sys
import types

_SUFFIXES = tuple(importlib.machinery.all_suffixes())
# Finders are looked into so deeply, and no further: their mappings are flat, or trees of packages.
_DEEPEST = 12
_MOST = 100_000


def import_roots(untrusted):
    """Return pairs of a path and the module or the folder on account of which it is needed.

    A package counts with its folder, another module with its file. No link is followed that lies in an
    ``untrusted`` folder, or in one that others can write.
    """
    found = {}
    for label, name, value in _mapped():
        for path in _importable(name, value):
            found.setdefault(path, label)
    for name, path in _loaded_packages():
        found.setdefault(path, name)
    for folder, path in _linked(untrusted):
        found.setdefault(path, folder)
    return _outermost(found)


def built_at_import():
    """Return the packages that meson-python builds once they are first imported, and has not yet."""
    finders = [_attributes(finder) for finder in sys.meta_path if type(finder).__name__ == "MesonpyMetaFinder"]
    names = [name for finder in finders for name in finder.get("_top_level_modules", ())]
    return sorted(name for name in names if isinstance(name, str) and name not in sys.modules)


def _outermost(found):
    return [(path, found[path]) for path in sorted(found) if not any(above in found for above in _above(path))]


def _above(path):
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


# ---- loaded packages ---------------------------------------------------------------------


def _attributes(thing):
    """What an object has in its own dictionary. Nothing is loaded by the look, as ``getattr`` may do."""
    try:
        return dict(object.__getattribute__(thing, "__dict__"))
    except (AttributeError, TypeError):
        return {}


def _loaded_packages():
    """Their folders: their submodules are imported from there, whatever has found them."""
    start = _working_directory()
    for name in [name for name in sys.modules if isinstance(name, str)]:
        # What was found in the working directory is shown if that is, which is a setting of its own.
        if any(os.path.dirname(folder) == start for folder in _folders(name.partition(".")[0])):
            continue
        for folder in _folders(name):
            yield name, folder


def _folders(package):
    """Those that a loaded package's modules are looked for in; none for another module."""
    try:
        path = list(_attributes(sys.modules.get(package)).get("__path__") or ())
    except Exception:
        return []  # it is computed from one that is gone
    folders = [os.path.normpath(folder) for folder in path if isinstance(folder, str) and os.path.isabs(folder)]
    return [folder for folder in folders if os.path.isdir(folder)]


def _working_directory():
    try:
        return os.getcwd()
    except OSError:
        return os.sep


# ---- mappings of import hooks --------------------------------------------------------------


def _mapped():
    """Names and values in the mappings of all finders, path hooks and loaders of others than Python, each
    with the module that it is about."""
    pending = [("", mapping) for hook in [*sys.meta_path, *sys.path_hooks] for mapping in _mappings_of_hook(hook)]
    for name, module in list(sys.modules.items()):
        loader = _attributes(_attributes(module).get("__spec__")).get("loader")
        if loader is not None and _is_foreign(type(loader)):
            pending += [(str(name), mapping) for mapping in _mappings_in(_attributes(loader))]
    seen = set()
    for _ in range(_DEEPEST):
        inner = []
        for label, mapping in pending:
            if id(mapping) in seen:
                continue
            seen.add(id(mapping))
            for name, value in list(dict.items(mapping)):
                if isinstance(value, dict):
                    inner.append((label or str(name), value))
                elif isinstance(name, str) and isinstance(value, (str, os.PathLike, list, tuple, set, frozenset)):
                    yield label or name, name, value
        pending = inner if len(seen) < _MOST else []


def _mappings_of_hook(hook):
    """Those of a finder, its class and its module."""
    owner = hook.__self__ if isinstance(hook, types.MethodType) else hook
    of = owner if isinstance(owner, (type, types.FunctionType)) else type(owner)
    if not _is_foreign(of):
        return []
    classes = [each for each in of.__mro__ if _is_foreign(each)] if isinstance(of, type) else []
    owners = [owner, *classes, sys.modules.get(of.__module__)]
    return [mapping for owner in owners for mapping in _mappings_in(_attributes(owner))]


def _mappings_in(attributes):
    """Only these: what else a finder or a module has are settings, of whatever kind."""
    return [value for name, value in attributes.items() if isinstance(value, dict) and not name.startswith("__")]


def _is_foreign(thing):
    """Whether a class or function is not of the standard library."""
    module = getattr(thing, "__module__", None)
    if not isinstance(module, str):
        return False
    top = module.partition(".")[0]
    return top not in sys.stdlib_module_names and not top.startswith(("_frozen_importlib", "_pyspawner"))


def _importable(name, value):
    """The paths among the value of a mapping from which a module can be imported."""
    values = [value] if isinstance(value, (str, os.PathLike)) else value
    for path in list(values)[:_MOST]:
        path = os.fspath(path) if isinstance(path, os.PathLike) else path
        if not isinstance(path, str) or not os.path.isabs(path) or "\0" in path:
            continue
        path = os.path.normpath(path)
        # A package's folder by its name; or a module without the ending of its file.
        is_name = all(part.isidentifier() for part in name.split("."))
        if os.path.isdir(path):
            if is_name and _holds_modules(path, 2):
                yield path
            continue
        for file in [path] if path.endswith(_SUFFIXES) else [path + suffix for suffix in _SUFFIXES if is_name]:
            if os.path.isfile(file):
                yield _root_of(file)


def _root_of(file):
    """A package is more than the file that it begins with."""
    folder, name = os.path.split(file)
    return folder if name.partition(".")[0] == "__init__" else file


def _holds_modules(folder, depth):
    """Whether there are modules, or, in a namespace package, packages with modules."""
    try:
        with os.scandir(folder) as entries:
            entries = list(entries)
    except OSError:
        return False
    if any(entry.name.endswith(_SUFFIXES) for entry in entries):
        return True
    folders = (entry for entry in entries if entry.name.isidentifier() and entry.is_dir())
    return depth > 1 and any(_holds_modules(entry.path, depth - 1) for entry in folders)


# ---- links -------------------------------------------------------------------------------


def _linked(untrusted):
    """Where links in the folders of ``sys.path`` lead to: packages, and all links of a strict install."""
    for folder in list(sys.path):
        if not isinstance(folder, str) or not os.path.isabs(folder):
            continue
        is_strict = os.path.basename(folder).startswith("__editable__.")
        for link in _links(folder, untrusted, _DEEPEST if is_strict else 1):
            target = os.path.realpath(link)
            if os.path.isdir(target):
                if _holds_modules(target, 2):
                    yield link, target
            elif os.path.isfile(target) and (is_strict or target.endswith(_SUFFIXES)):
                yield link, _linked_package(link, folder, target)


def _linked_package(link, folder, target):
    """The outermost folder that has the same place as the package that a link lies in, or the file."""
    inner = os.path.relpath(link, folder)
    if os.sep not in inner or not target.endswith(os.sep + inner):
        return target
    return os.path.join(target[: -len(inner)], inner.partition(os.sep)[0])


def _links(folder, untrusted, depth):
    try:
        found = os.stat(folder)
        trusted = (0, os.geteuid())
        if found.st_uid not in trusted or found.st_mode & stat.S_IWOTH:
            return
        real = os.path.join(os.path.realpath(folder), "")
        if any(real.startswith(os.path.join(place, "")) for place in untrusted):
            return
        with os.scandir(folder) as entries:
            entries = list(entries)
        for entry in entries:
            if entry.is_symlink():
                if entry.stat(follow_symlinks=False).st_uid in trusted:
                    yield entry.path
            elif depth > 1 and entry.is_dir(follow_symlinks=False):
                yield from _links(entry.path, untrusted, depth - 1)
    except OSError:
        return  # gone meanwhile, or not for this user, whose children cannot read it either
