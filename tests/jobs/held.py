"""A preloaded module that holds one of everything open, and jobs that use it."""

import asyncio
import ctypes
import logging
import logging.handlers
import os
import select
import socket
import sqlite3
import tempfile
import zipfile

libc = ctypes.CDLL(None, use_errno=True)

FOLDER = tempfile.mkdtemp(dir="/var/tmp")
os.chmod(FOLDER, 0o711)


def _file(name, content):
    path = os.path.join(FOLDER, name)
    with open(path, "w") as file:
        file.write(content)
    os.chmod(path, 0o600)
    return path


WORDS = open(_file("words", "a\nb\nc\n"), "rb", buffering=0)
WORDS.read(2)
WORDS_AGAIN = os.dup(WORDS.fileno())
UNLINKED = tempfile.TemporaryFile(dir=FOLDER)
UNLINKED.write(b"unlinked")
UNLINKED.flush()
with zipfile.ZipFile(_file("zip", ""), "w") as archive:
    archive.writestr("member", "zipped")
ZIP = zipfile.ZipFile(os.path.join(FOLDER, "zip"))
UPDATED = open(_file("updated", "as it was"), "r+")
LOG = open(_file("log", ""), "a")
CSV = open(_file("csv", ""), "w")
DATABASE = sqlite3.connect(os.path.join(FOLDER, "database"), check_same_thread=False)
DATABASE.execute("create table t (x)")
DATABASE.execute("insert into t values (7)")
DATABASE.commit()
MEMORY = os.memfd_create("held")
os.write(MEMORY, b"memory")
DIRECTORY = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
PATH = os.open("/etc", os.O_PATH)
OWN_MEMORY = os.open("/proc/self/mem", os.O_RDONLY)
NULL = os.open("/dev/null", os.O_RDWR)
RANDOM = os.open("/dev/urandom", os.O_RDONLY)
STDERR = os.dup(2)
STDOUT = os.dup(1)

PATH_OBJECT = open("/etc/hostname")
CLOSED_LATER = PATH_OBJECT.fileno()

READER, WRITER = os.pipe()
LONELY_READER, _closed = os.pipe()
os.close(_closed)
_closed, LONELY_WRITER = os.pipe()
os.close(_closed)
ONE, OTHER = socket.socketpair()
SERVER = socket.create_server(("127.0.0.1", 0))
CONNECTED = socket.create_connection(SERVER.getsockname())
ACCEPTED, _ = SERVER.accept()
UDP = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
UDP.bind(("127.0.0.1", 0))
EVENT = os.eventfd(5) if hasattr(os, "eventfd") else libc.eventfd(5, 0)
TIMER = libc.timerfd_create(1, 0)
INOTIFY = libc.inotify_init1(0)
libc.inotify_add_watch(INOTIFY, FOLDER.encode(), 0xFFF)
EPOLL = select.epoll()
EPOLL.register(READER, select.EPOLLIN)
EPOLL.register(EVENT, select.EPOLLIN)
LOOP = asyncio.new_event_loop()

NUMBERS = {
    name: value if isinstance(value, int) else value.fileno()
    for name, value in globals().copy().items()
    if name.isupper() and (isinstance(value, int) or hasattr(value, "fileno"))
}


def outcome(action):
    """What an action returns, or the name of its error."""
    try:
        result = action()
    except OSError as error:
        return os.strerror(error.errno)
    except sqlite3.Error as error:
        return type(error).__name__
    return result.decode() if isinstance(result, bytes) else result


def use():
    """Each object as a program would use it."""
    EPOLL.unregister(EVENT)
    found = {
        "words": outcome(lambda: WORDS.read(2)),
        "its duplicate goes on": outcome(lambda: os.read(WORDS_AGAIN, 2)),
        "unlinked": outcome(lambda: os.pread(UNLINKED.fileno(), 8, 0)),
        "zip": outcome(lambda: ZIP.read("member")),
        "updated, read": outcome(lambda: UPDATED.read()),
        "updated, written": outcome(lambda: os.write(UPDATED.fileno(), b"x")),
        "database": outcome(lambda: DATABASE.execute("select x from t").fetchone()[0]),
        "database, written": outcome(lambda: DATABASE.execute("insert into t values (8)").rowcount),
        "memory": outcome(lambda: os.pread(MEMORY, 6, 0)),
        "directory": outcome(lambda: os.listdir(DIRECTORY)),
        "path": outcome(lambda: os.open("passwd", os.O_RDONLY, dir_fd=PATH)),
        "own memory": outcome(lambda: os.pread(OWN_MEMORY, 1, id(use))),
        "null": outcome(lambda: os.write(NULL, b"x")),
        "random": outcome(lambda: len(os.read(RANDOM, 4))),
        "pipe": outcome(lambda: (os.write(WRITER, b"in"), EPOLL.poll(1) == [(READER, 1)], os.read(READER, 2).decode())),
        "lonely reader": outcome(lambda: os.read(LONELY_READER, 1)),
        "lonely writer": outcome(lambda: os.write(LONELY_WRITER, b"x")),
        "pair": outcome(lambda: (ONE.send(b"hi"), OTHER.recv(2).decode())),
        "connected, read": outcome(lambda: CONNECTED.recv(1)),
        "connected, written": outcome(lambda: CONNECTED.send(b"x")),
        "accepted": outcome(lambda: ACCEPTED.recv(1)),
        "server": outcome(lambda: SERVER.accept()),
        "server is quiet": outcome(lambda: select.select([SERVER], [], [], 0)[0] == []),
        "udp": outcome(lambda: UDP.sendto(b"x", ("127.0.0.1", 9))),
        "event": outcome(lambda: int.from_bytes(os.read(EVENT, 8), "little")),
        "timer": outcome(lambda: select.select([TIMER], [], [], 0)[0] == []),
        "inotify": outcome(lambda: select.select([INOTIFY], [], [], 0)[0] == []),
        "loop": LOOP.run_until_complete(asyncio.wait_for(_work(), 5)),
    }
    LOG.write("logged\n")
    LOG.flush()
    CSV.write("1,2\n")
    CSV.flush()
    os.write(STDERR, b"to stderr\n")
    os.write(STDOUT, b"to stdout\n")
    return found


async def _work():
    """What needs the loop's own descriptors: a call from another thread, and a timer."""
    await asyncio.sleep(0.01)
    return await LOOP.run_in_executor(None, lambda: 7)


def own_files():
    """The job's own files, beside all these objects, after it has closed some of them."""
    PATH_OBJECT.close()
    files = [open(f"/tmp/{index}", "w+") for index in range(20)]
    LOG.write("a line of the log\n")
    LOG.flush()
    logging.getLogger("held").warning("a line of the handler")
    for file in files:
        file.write("own")
        file.flush()
    numbers = set(NUMBERS.values()) - {CLOSED_LATER}
    return [
        [open(f"/tmp/{index}").read() for index in range(20)] == ["own"] * 20,
        [file.fileno() for file in files if file.fileno() in numbers],
    ]


ROTATING = logging.handlers.RotatingFileHandler(_file("rotating", ""), maxBytes=10_000)
logging.getLogger("held").addHandler(ROTATING)


def rotate():
    logging.getLogger("held").warning("one line")
    return "logged"
