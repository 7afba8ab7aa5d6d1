"""What a clone inherits: locks, threads, thread ids, memory, descriptors."""

import json
import re
import subprocess
import threading
import time

import pytest
from driving import JOBS, skipping
from processes import children_of, host_of, unslotted


def test_a_childs_c_library_is_whole(pyspawner):
    seen = pyspawner.value("inherited.everything", flags=["--preload", "numpy,pyarrow"])
    assert seen["thread_id"] == [1, 1, 1]
    assert seen["affinity"] == 0
    assert seen["threads"] == 400
    assert seen["grandchild"] == ["deep", 0]
    assert seen["pool"] == [1, 2]


def test_glibcs_set_id_calls_do_not_hang(pyspawner):
    """They wait for every thread that glibc knows, also those that the clone left behind."""
    result = pyspawner.value(
        "inherited.set_ids_after_threads",
        config=skipping("seccomp", "drop_capabilities"),
        flags=["--preload", "numpy,pyarrow"],
    )
    assert result == [[0, 0], 400]


def test_a_child_may_use_the_addresses_of_the_hosts_private_heap(pyspawner):
    assert pyspawner.value("inherited.allocate", 500) == 500


@pytest.fixture
def noise(open_folder):
    """A module whose import starts a noisy thread; the argument is its pause in nanoseconds."""

    def build(pause):
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-pthread", "-o", open_folder / "noise.so", JOBS / "noise.c"], check=True
        )
        (open_folder / "noisy.py").write_text(
            "import ctypes, os\n"
            "library = ctypes.CDLL(os.path.join(os.path.dirname(__file__), 'noise.so'))\n"
            f"assert library.start_noise(ctypes.c_long({pause})) == 0\n"
            "def main(*_):\n"
            "    library.fopen.restype = library.fclose.argtypes = None\n"
            "    library.fopen.restype = ctypes.c_void_p\n"
            "    library.fclose.argtypes = [ctypes.c_void_p]\n"
            "    library.fclose(library.fopen(b'/dev/null', b'w'))\n"
            "    return ctypes.CDLL(None).fflush(None)\n"
        )
        return open_folder

    return build


def test_a_thread_that_never_sleeps_is_refused_by_name(pyspawner, noise):
    done = pyspawner.map("noisy.main", [[]], path=noise(0))
    assert (done.status, done.stdout) == (125, "")
    assert 'thread "file-noise"' in done.stderr and "before_clone" in done.stderr


def clone_beside_a_noisy_thread(pyspawner, noise, count):
    jobs = "".join('{"timeout": 30}\n' for _ in range(count))
    done = pyspawner.map("noisy.main", jobs, "-j", "4", path=noise(2_000_000), timeout=1800)
    outcomes = [line["outcome"] for line in done.lines]
    assert len(outcomes) == count
    # None hung. Where the thread did not sleep long enough, the job was refused by its name.
    assert set(outcomes) <= {"ok", "setup_failed"}, set(outcomes)
    refused = [line for line in done.lines if line["outcome"] == "setup_failed"]
    assert all("file-noise" in line["detail"] for line in refused)
    assert outcomes.count("ok") > count / 2
    return outcomes.count("ok")


def test_no_child_hangs_beside_a_thread_that_opens_files(pyspawner, noise):
    clone_beside_a_noisy_thread(pyspawner, noise, 300)


@pytest.mark.soak
def test_no_child_hangs_beside_a_thread_that_opens_files_10000(pyspawner, noise):
    count = clone_beside_a_noisy_thread(pyspawner, noise, 10_000)
    print(f"{count} of 10,000 ok, the rest refused")


def clone_beside_a_busy_io_thread(pyspawner, count):
    """Every job brings and takes 50 kB, logged at the highest level."""
    line = json.dumps({"args": ["x" * 50_000], "stdin": "y" * 50_000, "timeout": 60}) + "\n"
    command = pyspawner.command("map", "basic.echo", "-j", "8", "-vvv")
    with open(pyspawner.folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

        def feed():
            for _ in range(count):
                # Lines that end at once keep the I/O thread allocating, logging and writing.
                process.stdin.write(line.encode() + b"broken\n" * 20)
            process.stdin.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        outcomes = [json.loads(result)["outcome"] for result in process.stdout]
        feeder.join()
        process.wait()
    assert outcomes.count("ok") == count
    assert outcomes.count("invalid_job") == 20 * count


def test_no_child_hangs_beside_a_busy_io_thread(pyspawner):
    clone_beside_a_busy_io_thread(pyspawner, 500)


@pytest.mark.soak
def test_no_child_hangs_beside_a_busy_io_thread_10000(pyspawner):
    clone_beside_a_busy_io_thread(pyspawner, 10_000)


def state_of(pid):
    """What a host holds: descriptors, threads, children, mounts, memory in KiB."""
    status = open(f"/proc/{pid}/status").read()
    children = children_of(pid)
    zombies = [c for c in children if open(f"/proc/{c}/stat").read().split(")")[1].split()[0] == "Z"]
    return {
        "descriptors": unslotted(pid),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
        "children": len(children),
        "zombies": len(zombies),
        "mounts": len(open(f"/proc/{pid}/mountinfo").readlines()),
        "resident": int(re.search(r"VmRSS:\s+(\d+)", status)[1]),
    }


SPARES = 2  # children of an idle host


def leaks(pyspawner, count):
    """Run ``count`` jobs; the host's state when idle, after the first tenth and at the end."""
    command = pyspawner.command("map", "basic.nothing", "-j", "4", spares=SPARES)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(jobs):
        def feed():
            process.stdin.write(b"[]\n" * jobs)
            process.stdin.flush()

        feeder = threading.Thread(target=feed)
        feeder.start()
        outcomes = [json.loads(process.stdout.readline())["outcome"] for _ in range(jobs)]
        feeder.join()
        assert outcomes == ["ok"] * jobs
        time.sleep(0.5)
        return state_of(host_of(process))

    early = run(count // 10)
    late = run(count - count // 10)
    process.stdin.close()
    assert process.wait() == 0
    return early, late


def check_leaks(early, late):
    assert late["zombies"] == 0 and late["children"] == SPARES
    for key in ("children", "descriptors", "threads", "mounts"):
        assert late[key] == early[key], (early, late)
    assert late["resident"] <= early["resident"] + 1024, (early, late)


@pytest.mark.parametrize("thread", ["", "running", "not started"])
def test_in_the_host_locks_are_renewed_only_where_there_is_no_other_thread(pyspawner, open_folder, thread):
    """The host does what CPython's hooks do in a child, once: :func:`fill_type_cache`."""
    (open_folder / "locks.py").write_text(
        "import random, threading, time, pyspawner_host\n"
        f"if {thread!r}: thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)\n"
        f"if {thread!r} == 'running': thread.start()\n"
        "random.seed(7)\n"
        "LOCK, SEEN = threading._active_limbo_lock, []\n"
        "@pyspawner_host.before_clone\n"
        "def look(): SEEN.append([threading._active_limbo_lock is LOCK, random.getstate()[1][0]])\n"
        "def main(): return SEEN[0], random.Random(7).getstate()[1][0]\n"
    )
    (is_same, drawn), seeded = pyspawner.value("locks.main", path=open_folder)
    assert is_same is bool(thread)
    assert drawn == seeded, "what a module has seeded stays so in the host"


def test_a_handler_with_another_kind_of_lock_is_no_obstacle(pyspawner, open_folder):
    """CPython's hook for `logging` fails then, in children without an effect on them."""
    (open_folder / "handler.py").write_text(
        "import logging, multiprocessing\n"
        "handler = logging.StreamHandler()\n"
        "handler.lock = multiprocessing.RLock()\n"
        "def main(): return hasattr(handler.lock, '_at_fork_reinit')\n"
    )
    assert pyspawner.value("handler.main", path=open_folder) is False


def test_nothing_is_left_behind(pyspawner):
    mounts = len(open("/proc/self/mountinfo").readlines())
    check_leaks(*leaks(pyspawner, 2000))
    assert len(open("/proc/self/mountinfo").readlines()) == mounts


@pytest.mark.soak
def test_nothing_is_left_behind_20000(pyspawner):
    early, late = leaks(pyspawner, 20_000)
    print(f"after 2,000: {early}\nafter 20,000: {late}")
    check_leaks(early, late)
