"""Random states that a clone would share: those with a known way are renewed, others are found.

What can seed itself at its first use is put into that state in the host, once, which costs children
nothing. The rest is renewed in each child.
"""

import gc
import os
import random
import sys
import types

# ---- in the host ------------------------------------------------------------------------


def settle():
    """Have generators seed themselves in each child. Repeated in a child if code may have run since."""
    for name, renew in _SEED_THEMSELVES.items():
        if name in sys.modules:
            renew(sys.modules[name])
    _find_those_to_renew()


def _settle_tempfile(tempfile):
    tempfile._name_sequence = None


def _settle_uuid(uuid):
    # libuuid keeps a clock sequence and a node, once it has them. Without it, uuid1() draws the
    # sequence from `random` each time, and a node once a process, since nothing is left to be asked
    # for a hardware address, which no job needs to know.
    uuid._generate_time_safe = None
    uuid._node = None
    uuid._GETTERS = []


def _settle_apsw(apsw):
    # Its SQLite is its own, and exports nothing that `random_states.rs` could find.
    apsw.randomness(0)


_SEED_THEMSELVES = {"tempfile": _settle_tempfile, "uuid": _settle_uuid, "apsw": _settle_apsw}


# ---- in each child ----------------------------------------------------------------------


def renew():
    """Give this process random states of its own.

    CPython itself reseeds ``random`` at a fork, and `random_states.rs` what it can by a single write.
    """
    for function in _to_renew:
        function()


_to_renew = []

# What the host's program renews by itself.
_renewed_by_host = set()


def _find_those_to_renew():
    _to_renew.clear()
    for (module, path), renew in _RENEWED.items():
        target = sys.modules.get(module)
        for part in path.split("."):
            target = getattr(target, part, None)
        if target is not None and module not in _renewed_by_host:
            _to_renew.append(renew(target))


def _seed_32(seed):
    return lambda: seed(int.from_bytes(os.urandom(4), "little"))


def _seed_63(seed):
    return lambda: seed(int.from_bytes(os.urandom(8), "little") >> 1)


def _itself(function):
    return function


def _draw_bytes(random_bytes):
    # OpenSSL reseeds when the process id is not the one that it saw last. Drawing once here,
    # as PID 1, also protects grandchildren, whose ids may be equal to the host's.
    return lambda: random_bytes(1)


_X25519 = "cryptography.hazmat.primitives.asymmetric.x25519"

_RENEWED = {
    ("numpy.random", "seed"): _seed_32,
    ("torch", "manual_seed"): _seed_63,
    ("polars", "set_random_seed"): _seed_63,
    ("faker.generator", "random.seed"): _itself,
    ("mimesis.random", "random.seed"): _itself,
    ("ssl", "RAND_bytes"): _draw_bytes,
    # The wheel's own copy of OpenSSL: the cheapest call that draws from it.
    (_X25519, "X25519PrivateKey.generate"): _itself,
}


def find_numpy_state():
    """Return the address of the state of NumPy's global generator, if it is as known: a Mersenne
    twister's 624 words and its position.

    To seed it by its own function makes a child touch some 140 pages, which is a sixth of all.
    """
    if "cryptography.hazmat.bindings._rust" in sys.modules:
        import cryptography.hazmat.primitives.asymmetric.x25519  # noqa: F401
    address = _numpy_state()
    if address is not None:
        _renewed_by_host.add("numpy.random")
    return address


def _numpy_state():
    numpy_random = sys.modules.get("numpy.random")
    try:
        generator = numpy_random.mtrand._rand._bit_generator
        if type(generator) is not numpy_random.MT19937:
            return None
        # Seeded, it has no normal deviate left over from the last pair.
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))
        address = generator.ctypes.state_address
        import ctypes

        words = list((ctypes.c_uint32 * 625).from_address(address))
        state = generator.state["state"]
        return address if words == [*state["key"].tolist(), state["pos"]] else None
    except (AttributeError, ImportError, LookupError, TypeError):
        return None


# ---- generators that preloaded modules have made -----------------------------------------


def find_shared_generators(objects):
    """Return the names of generators among the collector's ``objects`` that every child would have in
    the same state, as modules hold them, and the number of those that no module names."""
    ours = {id(generator) for generator in _known_generators(objects)}
    found = {id(o): o for o in objects if type(o) in _generator_types() and id(o) not in ours}
    for generator in list(found.values()):
        if not issubclass(type(generator), random.Random):
            # A bit generator is named by what draws from it.
            found.pop(id(_attribute(generator, "_bit_generator")), None)
    torch_type = _attribute(sys.modules.get("torch"), "Generator")
    if not found and torch_type is None:
        return [], 0

    def is_wanted(value):
        return id(value) in found or (type(value) is torch_type and id(value) not in ours)

    named = {}
    for name, value in _held_by_modules(is_wanted):
        named.setdefault(id(value), (name, value))
    shown = [
        f"{name} ({type(value).__module__}.{type(value).__qualname__})"
        for name, value in named.values()
        if name.partition(".")[0] not in _OF_NO_MATTER
    ]
    return shown, len(found.keys() - named.keys())


# Libraries that keep a generator whose numbers no job depends on: to test mathematical identities,
# to mask frames, for names of files, which a process id is part of.
_OF_NO_MATTER = {"aiohttp", "hypothesis", "joblib", "sympy", "tempfile"}


def _generator_types():
    if not _types:
        numpy = sys.modules.get("numpy.random")
        bases = [random.Random, *(_attribute(numpy, n) for n in ("Generator", "RandomState", "BitGenerator"))]
        _types.update(*(_with_subclasses(base) for base in bases if base is not None))
        _types.difference_update(_with_subclasses(random.SystemRandom))
    return _types


_types = set()


def _with_subclasses(base):
    classes = {base}
    for subclass in type.__subclasses__(base):
        classes |= _with_subclasses(subclass)
    return classes


def _known_generators(objects):
    """Those that are renewed, by whomever."""
    yield random._inst
    state = _attribute(sys.modules.get("numpy.random.mtrand"), "_rand")
    yield from (state, _attribute(state, "_bit_generator"))
    for module in ("faker.generator", "mimesis.random"):
        yield _attribute(sys.modules.get(module), "random")
    torch = sys.modules.get("torch")
    yield _attribute(torch, "default_generator")
    yield from _attribute(_attribute(torch, "cuda"), "default_generators") or ()
    names = _attribute(sys.modules.get("tempfile"), "_RandomNameSequence")
    for held in objects:
        if type(held) is names:
            yield _attribute(held, "_rng")  # it looks at the process id


def _attribute(value, name):
    return getattr(value, name, None)


# What holds nothing, or more than can be looked through.
_NOT_LOOKED_INTO = {str, bytes, int, float, types.FunctionType, types.BuiltinFunctionType, types.ModuleType}
_MOST = 10_000


def _held_by_modules(is_wanted):
    """Yield names and values of what is wanted: globals of modules, attributes of their classes, and
    what is one level below in containers and objects.

    Runs no code of others, such as that of objects that import something once they are looked at: the
    collector tells what an object refers to. ``isinstance`` would ask for the ``__class__``.
    """
    for module_name, module in list(sys.modules.items()):
        if not issubclass(type(module), types.ModuleType) or module_name == __name__:
            continue
        for name, value in list(object.__getattribute__(module, "__dict__").items()):
            path = f"{module_name}.{name}"
            if is_wanted(value):
                yield path, value
            elif issubclass(type(value), type):
                attributes = type.__getattribute__(value, "__dict__")
                if attributes.get("__module__") == module_name:
                    yield from _entries(path, attributes, is_wanted, ".{}")
            elif type(value) not in _NOT_LOOKED_INTO:
                yield from _one_level_below(path, value, is_wanted)


def _one_level_below(path, value, is_wanted):
    if type(value) in (list, tuple, set, frozenset, dict) and len(value) > _MOST:
        return
    if type(value) is dict:
        yield from _entries(path, value, is_wanted, "[{!r}]")
        return
    for held in gc.get_referents(value):
        if is_wanted(held):
            yield path + _place_in(value, held), held
        elif type(held) is dict and type(value) not in (list, tuple) and len(held) <= _MOST:
            yield from _entries(path, held, is_wanted, ".{}")


def _place_in(value, held):
    if type(value) in (list, tuple):
        return next(f"[{place}]" for place, item in enumerate(value) if item is held)
    # From 3.11 on an object's attributes may lie in the object itself.
    try:
        attributes = object.__getattribute__(value, "__dict__")
        return next(f".{name}" for name, item in attributes.items() if item is held)
    except (AttributeError, StopIteration):
        return ""


def _entries(path, entries, is_wanted, form):
    for key, value in list(entries.items()):
        if is_wanted(value):
            yield path + form.format(key), value
