"""Attacks on files: what can be read, written, opened and passed."""

import errno
import os
import signal
import socket


def _try(action):
    try:
        result = action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok" if result is None else result


def read(path):
    def action():
        with open(path) as file:
            return file.read()

    return _try(action)


def write(path):
    def action():
        with open(path, "w") as file:
            file.write("owned")

    return _try(action)


def append(path):
    """Only writing: nothing is made, nothing truncated."""

    def action():
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, b"owned")
        os.close(descriptor)

    return _try(action)


def listing(path):
    return _try(lambda: sorted(os.listdir(path)))


def all_of(path):
    """Every way to change what lies in a folder."""

    def in_folder(name):
        return os.path.join(path, name)

    return {
        "make": _try(lambda: os.mkdir(in_folder("new"))),
        "write": write(in_folder("file")),
        "truncate": _try(lambda: os.truncate(in_folder("file"), 0)),
        "rename": _try(lambda: os.rename(in_folder("file"), in_folder("other"))),
        "link": _try(lambda: os.link(in_folder("file"), in_folder("linked"))),
        "symlink": _try(lambda: os.symlink("/", in_folder("symbolic"))),
        "fifo": _try(lambda: os.mkfifo(in_folder("fifo"))),
        "socket": _try(lambda: socket.socket(socket.AF_UNIX).bind(in_folder("socket"))),
        "remove": _try(lambda: os.unlink(in_folder("file"))),
    }


def rename(old, new):
    return _try(lambda: os.rename(old, new))


def link_and_look(link, target):
    """Leave a link, unless that is there; then look at what every job needs."""
    made = _try(lambda: os.symlink(target, link))
    looks = {place: listing(place) for place in ("/", "/usr", "/usr/lib", os.path.dirname(os.__file__))}
    return {"made": made, "looks": looks}


def through_symlink(folder, target):
    """Write to a target outside through a link that the job made in a place of its own."""
    link = os.path.join(folder, "link")
    os.symlink(target, link)
    return [read(link), write(link)]


def through_dotdot(folder, target):
    return write(os.path.join(folder, *[".."] * 10, target.lstrip("/")))


def connect_abstract(name):
    """A socket without a path, which no mount hides."""
    with socket.socket(socket.AF_UNIX) as client:
        return _try(lambda: client.connect("\0" + name))


def send_signal(pid):
    return _try(lambda: os.kill(pid, signal.SIGCONT))


def signal_own_children():
    """What Landlock must leave alone: signals within the job."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def own_abstract_socket():
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("\0own")
        server.listen()
        return _try(lambda: client.connect("\0own"))


def lock(path):
    import fcntl

    def action():
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return _try(action)


def whoami():
    return {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups()}


def ordinary_work():
    """Threads, processes and files, as honest jobs use them."""
    import multiprocessing
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "a")
        open(path, "w").close()
        os.makedirs(os.path.join(folder, "b"))
        os.rename(path, os.path.join(folder, "b", "c"))
    with multiprocessing.Pool(2) as pool:
        squares = pool.map(abs, [-1, -2])
    words = subprocess.run([sys.executable, "-c", "print('sub')"], capture_output=True, text=True, check=True)
    return [squares, words.stdout]


def starts_with(path, length):
    with open(path, "rb") as file:
        return file.read(length).decode()
