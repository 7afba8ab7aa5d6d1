"""Writable memory that a preloaded module shares: each job has a copy of its own, as it was at the clone."""

import json
import subprocess
import sys

from driving import JOBS

AS_IT_WAS = {
    "anonymous": "host",
    "named": "host",
    "file": "host",
    "memory file": "host",
    "System V": "host",
    "value": 7,
    "array": [1, 2, 3],
    "lock": True,
    "quiet": True,
}


def test_no_job_sees_what_another_wrote_or_locked(pyspawner):
    done = pyspawner.map("shares.main", [[]] * 3, "--preload", "shares", "-j", "1")
    for line in done.lines:
        seen, modes, own = line["result"]
        assert seen == AS_IT_WAS, line
        # Its own copy is as shared memory is: it can write there.
        assert own == "mine" and modes.endswith(("p", "s"))


def test_the_hosts_own_is_as_it_was(pyspawner, open_folder):
    (open_folder / "keeper.py").write_text(
        "import shares, pyspawner_host\nSEEN = []\n"
        "@pyspawner_host.before_clone\n"
        "def look():\n"
        "    seen = shares.look()\n"
        "    if seen['lock']: shares.LOCK.release()\n"
        "    SEEN.append(seen)\n"
        "def main(): shares.main(); return SEEN\n"
    )
    done = pyspawner.map("keeper.main", [[]] * 2, "-j", "1", "--ordered", "--path", JOBS, path=open_folder, spares=0)
    assert [seen == AS_IT_WAS for seen in done.lines[-1]["result"]] == [True] * 3


def test_the_control_forked_copies_share_it():
    """Without the product, what one child does the next one sees."""
    code = (
        "import sys, types, json, os\n"
        "sys.modules['pyspawner_host'] = types.ModuleType('pyspawner_host')\n"
        "import shares\n"
        "if os.fork() == 0: shares.main(); os._exit(0)\n"
        "os.wait(); print(json.dumps(shares.look()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=JOBS, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert [name for name in seen if seen[name] == AS_IT_WAS[name]] == []


def test_what_is_mapped_and_is_no_memory_is_out_of_reach(pyspawner, open_folder):
    """The ring of a packet socket, as an example: whoever shares it sees what the host receives."""
    (open_folder / "ring.py").write_text(
        "import ctypes, socket, struct\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "SOCKET = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)\n"
        "SOCKET.setsockopt(263, 5, struct.pack('IIII', 4096, 1, 2048, 2))  # PACKET_RX_RING\n"
        "libc.mmap.restype = ctypes.c_void_p\n"
        "RING = libc.mmap(None, 4096, 3, 1, SOCKET.fileno(), ctypes.c_long(0))\n"
        "ctypes.memset(RING, 0, 8)\n"
        "def main():\n"
        "    ctypes.memset(RING, 1, 8)\n"
    )
    done = pyspawner.map("ring.main", [[]], path=open_folder)
    assert done.lines[0]["outcome"] == "signaled" and done.lines[0]["signal"] == 11, done
    assert "jobs cannot use socket:[" in done.stderr


def test_io_uring_is_not_found_while_modules_are_preloaded(pyspawner, open_folder):
    """A library that finds it would go on to use it in jobs, which have none."""
    (open_folder / "ring.py").write_text(
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "FOUND = libc.syscall(425, 4, (ctypes.c_uint32 * 30)()), errno.errorcode[ctypes.get_errno()]\n"
        "def main(): return FOUND\n"
    )
    assert pyspawner.value("ring.main", path=open_folder) == [-1, "ENOSYS"]


def test_shared_memory_of_a_gibibyte_costs_a_clone_little(pyspawner, open_folder):
    """It is mapped, not copied."""
    (open_folder / "large.py").write_text(
        "import mmap\n"
        "LARGE = mmap.mmap(-1, 1 << 30)\n"
        "for page in range(0, 1 << 30, 4096): LARGE[page] = 1\n"
        "def main(): return LARGE[(1 << 30) - 4096]\n"
    )
    done = pyspawner.map("large.main", [[]] * 3, "-j", "1", path=open_folder, spares=0)
    assert [line["result"] for line in done.lines] == [1] * 3
    # A copy would touch a quarter of a million pages.
    assert all(line["peak_memory_bytes"] < 64 << 20 for line in done.lines), done.lines


def test_processes_of_one_job_share_its_copy(pyspawner, open_folder):
    (open_folder / "family.py").write_text(
        "import multiprocessing\n"
        "LOCK, VALUE = multiprocessing.Lock(), multiprocessing.Value('i', 0)\n"
        "def work():\n"
        "    for _ in range(300):\n"
        "        with LOCK: VALUE.value += 1\n"
        "def main():\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    processes = [context.Process(target=work) for _ in range(3)]\n"
        "    for process in processes: process.start()\n"
        "    for process in processes: process.join()\n"
        "    return VALUE.value\n"
    )
    done = pyspawner.map("family.main", [[], []], "-j", "1", path=open_folder)
    assert [line["result"] for line in done.lines] == [900, 900], done
