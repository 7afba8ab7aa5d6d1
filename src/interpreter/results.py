"""A job's return value as JSON.

Imported once in the host. Plain values cost one call of the C encoder. Only what that cannot write is walked
through, value by value. ``docs/results.md`` has what each type becomes.
"""

import json
import re
import sys
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, Set, ValuesView

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

# Ordinary readers stop beyond these: Python's decoder at some 1,000 levels and at 4,300 digits.
_LEVELS = 200
_BOUND = 10**4300
# Enough for a walk through so many levels, wherever the job has its own limit.
_FRAMES = 4000

# How many values that became null are named, and how long a text about a result may be.
_NAMED = 3
_LONGEST = 1000

_INFINITIES = (float("inf"), float("-inf"))


class _NoForm(Exception):
    """A value has no JSON form."""


def encode(value):
    """Return the JSON of ``value`` and a note on what it lost, or ``None`` and the reason why it has none."""
    try:
        text = _encode(value)
        is_suspect = "\\ud" in text or '":' in text and _find_key(text) is not None
        if not is_suspect or _is_faithful(text, value):
            return text.encode("ascii"), None
    except (Exception, SystemExit):
        pass  # The walk finds out where the value is that cannot be written.
    text, note = _walk(value)
    return text and text.encode("ascii"), note and note[:_LONGEST].encode("utf-8", "backslashreplace")


# ---- what the encoder writes without a word --------------------------------------------

# A key that need not have been text: the encoder writes 1 and "1" alike, and one would be lost.
_find_key = re.compile(r'"(?:-?\d[^"]*|true|false|null)":').search
# What has no half of a surrogate pair: an escaped backslash, a whole pair.
_WHOLE_ESCAPES = re.compile(r"\\\\|\\ud[89ab]..\\ud[c-f]..")


def _is_faithful(text, value):
    """Whether ``text`` tells all of ``value``, also to readers that are stricter than Python's."""
    if "\\ud" in text and "\\ud" in _WHOLE_ESCAPES.sub("", text):
        return False
    return _find_key(text) is None or not _has_keys_of_another_type(value)


def _has_keys_of_another_type(value):
    if isinstance(value, dict):
        return any(type(key) is not str for key in value) or any(map(_has_keys_of_another_type, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_keys_of_another_type, value))


# ---- the walk --------------------------------------------------------------------------


def _walk(value):
    walk = _Walk()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _FRAMES))
    try:
        return _encode(walk.convert(value)), walk.note()
    except _NoForm as error:
        return None, str(error)
    except (Exception, SystemExit) as error:
        # Raised by the value's own code, or by its library's.
        return None, f"{walk.where()}: reading it raised {_described(error)}"
    finally:
        sys.setrecursionlimit(limit)


def _described(error):
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class _Walk:
    """Converts a value to what the encoder takes, and knows where in the result it is."""

    def __init__(self):
        # An index or a key for each level; None where neither is known.
        self.path = []
        self.is_at_key = False
        self.containers = set()
        self.forms = {}
        self.nulls = []
        self.null_count = 0

    def convert(self, value):
        # What the encoder takes by itself has the same form here, subclasses included.
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int):
            return self.integer(value)
        if isinstance(value, float):
            return self.number(value)
        if isinstance(value, list):
            return self.array(value, list.__iter__(value))
        if isinstance(value, tuple):
            return self.array(value, tuple.__iter__(value))
        if isinstance(value, dict):
            return self.object(value, value.items())
        kind = type(value)
        form = self.forms.get(kind)
        if form is None:
            form = self.forms[kind] = _form_of(kind)
        return form(self, value)

    def text(self, value):
        if not value.isascii():
            try:
                str.encode(value)
            except UnicodeEncodeError as error:
                self.fail(value, f"it has half of a surrogate pair at {error.start}; decode it with errors='replace'")
        return value

    def integer(self, value):
        if not -_BOUND < value < _BOUND:
            self.fail(value, "it has more than 4300 digits; return its hex()")
        return value

    def number(self, value):
        if value != value:
            return self.null("NaN")
        if value in _INFINITIES:
            return self.null("Infinity" if value > 0 else "-Infinity")
        return value

    def null(self, name):
        """Leave out a number that JSON does not have, and remember it."""
        self.null_count += 1
        if self.null_count <= _NAMED:
            self.nulls.append(f"{self.where()} is {name} and became null")

    def array(self, container, values):
        self.enter(container)
        converted = []
        for index, value in enumerate(values):
            self.path[-1] = index
            converted.append(self.convert(value))
        self.leave(container)
        return converted

    def members(self, container):
        """The members of a set, in an order that does not depend on their hashes."""
        self.enter(container)
        converted = []
        for value in container:
            self.path[-1] = ...
            converted.append(self.convert(value))
        self.leave(container)
        try:
            return sorted(converted)
        except TypeError:
            return sorted(converted, key=_encode)

    def object(self, container, items):
        self.enter(container)
        converted = {}
        for key, value in items:
            self.path[-1] = None
            name = key if type(key) is str and key.isascii() else self.key(key)
            self.path[-1] = name
            if name in converted:
                self.path[-1] = None
                self.fail(container, f"two of its keys are {_shortened(name)} in JSON")
            converted[name] = self.convert(value)
        self.leave(container)
        return converted

    def key(self, key):
        """A key as the encoder writes it; one that it does not take is converted as a value is."""
        self.is_at_key = True
        converted = self.convert(key)
        if isinstance(converted, (list, dict)):
            self.is_at_key = True  # The walk through it has met keys of its own.
            self.fail(key, "keys are text in JSON")
        self.is_at_key = False
        return str.__str__(converted) if isinstance(converted, str) else _encode(converted)

    def enter(self, container):
        if id(container) in self.containers:
            self.fail(container, "it contains itself")
        if len(self.path) >= _LEVELS:
            self.fail(container, f"it is deeper than {_LEVELS} levels")
        self.containers.add(id(container))
        self.path.append(None)

    def leave(self, container):
        self.path.pop()
        self.containers.discard(id(container))

    def fail(self, value, reason):
        raise _NoForm(f"{self.where()}: {type(value).__name__}; {reason}")

    def where(self):
        path = [_step(step) for step in self.path if step is not None]
        if len(path) > 12:
            path[6:-6] = "…"
        return ("a key of " if self.is_at_key else "") + "result" + "".join(path)

    def note(self):
        more = self.null_count - len(self.nulls)
        return "; ".join(self.nulls + [f"and {more} more"] * (more > 0)) or None


def _step(step):
    return "[*]" if step is ... else f"[{_shortened(step)}]"


def _shortened(step):
    if isinstance(step, str) and len(step) > 40:
        step = step[:40] + "…"
    return json.dumps(step, ensure_ascii=False)


# ---- forms -----------------------------------------------------------------------------


def _form_of(kind):
    """The function that converts instances of ``kind``.

    Libraries' types are known by their names: whoever has no pandas must not import it.
    """
    for base in kind.__mro__:
        form = _FORMS.get((base.__module__.partition(".")[0], base.__name__))
        if form is not None:
            return form
    for attribute, form in _FORMS_BY_ATTRIBUTE.items():
        if hasattr(kind, attribute):
            return form
    for base, form in _FORMS_BY_KIND.items():
        if issubclass(kind, base):
            return form
    if hasattr(kind, "__array__") and hasattr(kind, "tolist"):
        return _by("tolist")
    return _no_form


def _text(walk, value):
    return walk.text(str(value))


def _null(walk, value):
    return None


def _by(method):
    """A value that has a method which returns it as simpler values."""
    return lambda walk, value: walk.convert(getattr(value, method)())


def _hint(reason):
    return lambda walk, value: walk.fail(value, reason)


def _decimal(walk, value):
    return str(value) if value.is_finite() else walk.null(str(value))


def _enum(walk, value):
    return walk.convert(value.value)


def _in_order(walk, value):
    return walk.array(value, value)


def _members(walk, value):
    return walk.members(value)


def _mapping(walk, value):
    return walk.object(value, value.items())


def _dataclass(walk, value):
    return _attributes(walk, value, [field.name for field in sys.modules["dataclasses"].fields(value)])


def _attrs(walk, value):
    return _attributes(walk, value, [field.name for field in value.__attrs_attrs__])


def _attributes(walk, value, names):
    return walk.object(value, ((name, getattr(value, name)) for name in names))


def _numpy_array(walk, value):
    kind = value.dtype.kind
    if kind in "biu" or kind == "f" and bool(sys.modules["numpy"].isfinite(value).all()):
        return value.tolist()
    if kind not in "MmV":
        return walk.convert(value.tolist())
    # tolist() makes bare numbers of times, and of records tuples with such numbers.
    return walk.array(value, value) if value.ndim else walk.convert(value[()])


def _numpy_scalar(walk, value):
    kind = value.dtype.kind
    if kind in "Mm" and str(value) == "NaT":
        return None
    if kind == "M":
        return _iso_time(str(value))
    if kind == "m":
        return float(value / type(value)(1, "s"))
    if kind == "f":
        return walk.number(float(value))
    if kind == "V" and value.dtype.names:
        return walk.object(value, ((name, value[name]) for name in value.dtype.names))
    item = value.item()
    return walk.convert(item) if type(item) is not type(value) else _no_form(walk, value)


def _iso_time(text):
    """NumPy's text with as many digits of a second as datetime and pandas write: none, 6, 9, ..."""
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if not fraction:
        return whole
    return f"{whole}.{fraction.ljust(max(6, -(-len(fraction) // 3) * 3), '0')}"


def _no_form(walk, value):
    methods = [name for name in _METHODS if callable(getattr(type(value), name, None))][:2]
    ways = " or ".join(f"{name}()" for name in methods)
    walk.fail(value, f"return its {ways}" if ways else "it has no JSON form")


# Methods that return a value in a form that has one in JSON.
_METHODS = ("to_dicts", "to_pylist", "to_dict", "to_list", "tolist", "toarray")

_BYTES = _hint("return it decoded, or in base64")

# By the package and the name of a type or of a base of it.
_FORMS = {
    ("builtins", "async_generator"): _hint("return a list of what it yields"),
    ("builtins", "bytearray"): _BYTES,
    ("builtins", "bytes"): _BYTES,
    ("builtins", "complex"): _hint("return its real and imag"),
    ("builtins", "coroutine"): _hint("await it"),
    ("builtins", "frozenset"): _members,
    ("builtins", "memoryview"): _BYTES,
    ("builtins", "set"): _members,
    ("collections", "UserString"): _text,
    ("datetime", "date"): _by("isoformat"),
    ("datetime", "time"): _by("isoformat"),
    ("datetime", "timedelta"): _by("total_seconds"),
    ("decimal", "Decimal"): _decimal,
    ("enum", "Enum"): _enum,
    ("fractions", "Fraction"): _text,
    ("ipaddress", "_IPAddressBase"): _text,
    ("numpy", "generic"): _numpy_scalar,
    ("numpy", "ndarray"): _numpy_array,
    ("pandas", "DataFrame"): _hint("return its to_dict()"),
    ("pandas", "Interval"): _text,
    ("pandas", "NAType"): _null,
    ("pandas", "NaTType"): _null,
    ("pandas", "Period"): _text,
    ("pandas", "Series"): _hint("return its to_list() or to_dict()"),
    ("pathlib", "PurePath"): _text,
    ("pyarrow", "Array"): _by("to_pylist"),
    ("pyarrow", "ChunkedArray"): _by("to_pylist"),
    ("pyarrow", "Scalar"): _by("as_py"),
    ("pydantic", "BaseModel"): _by("model_dump"),
    ("torch", "Tensor"): _by("tolist"),
    ("uuid", "UUID"): _text,
}

_FORMS_BY_ATTRIBUTE = {"__dataclass_fields__": _dataclass, "__attrs_attrs__": _attrs}

_FORMS_BY_KIND = {
    Mapping: _mapping,
    Sequence: _in_order,
    (KeysView, ItemsView, ValuesView, Set): _in_order,
    Iterator: _hint("return it as a list"),
}
