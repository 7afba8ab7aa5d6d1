"""Draws from generators that seed themselves once, all of which the host has used."""

import ctypes
import importlib
import os
import shutil
import sqlite3
import tempfile
import uuid


def blob(module):
    return lambda: module.connect(":memory:").execute("select hex(randomblob(8))").fetchone()[0]


def of_a_copy():
    """Of a library that is a copy of SQLite, as wheels bring some."""
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "libsqlite3" in line)
    with tempfile.TemporaryDirectory() as folder:
        library = ctypes.CDLL(shutil.copy(path, os.path.join(folder, "libcopied.so")))

    def draw():
        buffer = ctypes.create_string_buffer(8)
        library.sqlite3_randomness(8, buffer)
        return buffer.raw.hex()

    return draw


def installed(name, draw):
    """What draws from a module that the tests need not have."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return {}
    return {name: lambda: draw(module)}


DRAWS = {
    "sqlite3": blob(sqlite3),
    "a copy of SQLite": of_a_copy(),
    "uuid1": lambda: str(uuid.uuid1())[14:],
    "uuid node": uuid.getnode,
    "tempfile": lambda: os.path.basename(tempfile.mktemp()),
    **installed("apsw", lambda apsw: apsw.Connection(":memory:").execute("select hex(randomblob(8))").fetchone()[0]),
    **installed("pysqlite3", lambda pysqlite3: blob(pysqlite3.dbapi2)()),
    **installed("faker", lambda faker: faker.Faker().sentence(20)),
    **installed("mimesis.random", lambda mimesis_random: mimesis_random.random.random()),
    **installed("bson", lambda bson: str(bson.ObjectId())[8:18]),
}


def draw():
    return {name: draw() for name, draw in DRAWS.items()}


draw()


def main():
    return draw()


def in_a_chroot():
    print(draw_without_files())


def draw_without_files():
    return {name: DRAWS[name]() for name in ("sqlite3", "a copy of SQLite", "uuid1", "uuid node")}
