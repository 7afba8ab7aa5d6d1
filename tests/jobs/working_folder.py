"""What jobs do in their working folder and at home."""

import errno
import fcntl
import getpass
import grp
import os
import pathlib
import pwd
import shelve
import sqlite3
import stat
import subprocess
import sys
import tempfile


def surroundings():
    return {
        "cwd": os.getcwd(),
        "home": str(pathlib.Path.home()),
        "expanded": os.path.expanduser("~"),
        "HOME": os.environ.get("HOME"),
        "sh": subprocess.check_output(["sh", "-c", "echo $HOME; cd; pwd"], text=True).split(),
        "user": getpass.getuser(),
        "id": subprocess.check_output(["id"], text=True).strip(),
        "group": grp.getgrgid(os.getgid()).gr_name,
        "shell": pwd.getpwuid(os.getuid()).pw_shell,
        "names": sorted(entry.pw_name for entry in pwd.getpwall()),
        "groups": sorted(entry.gr_name for entry in grp.getgrall()),
        "path": sys.path[:3],
        "initial environment": pathlib.Path("/proc/self/environ").read_text(),
        "mode": stat.filemode(os.stat(os.getcwd()).st_mode),
        "owner": [os.stat(os.getcwd()).st_uid, os.getuid()],
        "listing": os.listdir(),
    }


def leave(name):
    """Leave files in every private place, and tell what is there."""
    before = [sorted(os.listdir(place)) for place in (".", "/tmp", os.path.expanduser("~"), "/dev/shm")]
    for place in (".", "/tmp", os.path.expanduser("~"), "/dev/shm"):
        pathlib.Path(place, name).write_text("of another job")
    return before


def work():
    """What programs do with files where they may write."""
    done = []
    with open("lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
    done.append("locks")
    os.chmod("lock", 0o640)
    os.rename("lock", "renamed")
    os.link("renamed", "second name")
    os.symlink("renamed", "link")
    done.append([sorted(os.listdir()), stat.filemode(os.stat("link").st_mode)])
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    with open("fifo", "w") as writer:
        writer.write("through a fifo")
    done.append(os.read(reader, 100).decode())
    script = pathlib.Path("script")
    script.write_text("#!/bin/sh\necho executed\n")
    script.chmod(0o755)
    done.append(subprocess.check_output(["./script"], text=True).strip())
    with sqlite3.connect("data.sqlite") as database:
        database.execute("create table t as select 1")
        done.append(database.execute("select count(*) from t").fetchone()[0])
    with shelve.open("shelf") as shelf:
        shelf["key"] = "kept"
    with shelve.open("shelf") as shelf:
        done.append(shelf["key"])
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(b"x")
    with tempfile.TemporaryDirectory(dir=pathlib.Path.home()) as folder:
        done.append(os.path.isdir(folder))
    return done


def fill(place, size):
    """How many bytes there is room for, up to `size`."""
    written = 0
    with open(os.path.join(place, "big"), "wb", buffering=0) as file:
        try:
            while written < size:
                written += file.write(b"x" * 65536)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return written


def fill_with_files():
    made = 0
    try:
        while made < 1_000_000:
            os.mkdir(f"folder-{made}")
            made += 1
    except OSError as error:
        return [errno.errorcode[error.errno], made > 500]
    return ["never", made]


def import_late(*names):
    """What each of these modules says of itself, or why there is none."""
    found = []
    for name in names:
        try:
            found.append(__import__(name).VALUE)
        except ImportError as error:
            found.append(type(error).__name__)
    return found


def import_own():
    pathlib.Path("written_by_the_job.py").write_text("VALUE = 'own'\n")
    return import_late("written_by_the_job")


def look_up(*names):
    found = []
    for name in names:
        try:
            found.append(pwd.getpwnam(name).pw_uid)
        except KeyError:
            found.append(None)
    return found
