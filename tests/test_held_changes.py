"""What hooks, fork handlers and threads open, close and map between clones: jobs find it as it is at the clone."""

import subprocess

import pytest

HOOK = "pyspawner_host.before_clone(change)\n"
FORK_HANDLER = "os.register_at_fork(before=change)\n"


def run(pyspawner, folder, source, jobs=4, **options):
    (folder / "changes.py").write_text("import mmap, os, pyspawner_host, socket, tempfile\n" + source)
    lines = pyspawner.map("changes.main", [[]] * jobs, "-j", "1", "--timeout", "20", path=folder, **options).lines
    assert [line["outcome"] for line in lines] == ["ok"] * jobs, lines
    return [line["result"] for line in lines]


@pytest.mark.parametrize("when", [HOOK, FORK_HANDLER])
def test_a_file_that_is_opened_anew_at_the_same_number(pyspawner, open_folder, when):
    """As a log or a table of data is rotated."""
    results = run(
        pyspawner,
        open_folder,
        "COUNT = [0]\n"
        "for n in range(20): open('/var/tmp/version-%d-%d' % (os.getpid(), n), 'w').write('version %d' % n)\n"
        "PID = os.getpid()\n"
        "DATA = [open('/var/tmp/version-%d-0' % PID)]\n"
        "def change():\n"
        "    COUNT[0] += 1; number = DATA[0].fileno(); DATA[0].close()\n"
        "    DATA[0] = open('/var/tmp/version-%d-%d' % (PID, COUNT[0])); assert DATA[0].fileno() == number\n"
        + when
        + "def main(): return [DATA[0].read(), 'version %d' % COUNT[0]]\n",
        spares=0,
    )
    assert all(read == opened for read, opened in results), results


@pytest.mark.parametrize("when", [HOOK, FORK_HANDLER])
def test_numbers_that_are_opened_and_closed_before_each_clone(pyspawner, open_folder, when):
    """No file of the job's own gets what is written to them, and none of them is the child's own socket."""
    results = run(
        pyspawner,
        open_folder,
        "HELD, FILES = [], [open('/etc/hostname') for _ in range(6)]\n"
        "def change():\n"
        "    HELD.extend(socket.socketpair()); HELD.extend(socket.socketpair())\n"
        "    for old in HELD[:-6:2]: old.close()\n"
        "    if FILES: FILES.pop(0).close()\n" + when + "def main():\n"
        "    own = [open('/tmp/%d' % n, 'w+b', buffering=0) for n in range(40)]\n"
        "    numbers = [held.fileno() for held in HELD if held.fileno() >= 0]\n"
        "    for number in numbers:\n"
        "        try: os.write(number, b'for the library')\n"
        "        except OSError: pass\n"
        "    return [bool(numbers), [os.fstat(f.fileno()).st_size for f in own if os.fstat(f.fileno()).st_size]]\n",
        jobs=6,
    )
    assert results == [[True, []]] * 6


@pytest.mark.parametrize("when", [HOOK, FORK_HANDLER])
def test_memory_that_is_mapped_and_unmapped_before_each_clone(pyspawner, open_folder, when):
    results = run(
        pyspawner,
        open_folder,
        "FILE = tempfile.TemporaryFile(dir='/var/tmp'); FILE.write(b'host' + bytes(8188)); FILE.flush()\n"
        "MAPS = []\n"
        "def change():\n"
        "    for old in MAPS: old.close()\n"
        "    MAPS[:] = [mmap.mmap(-1, 4096 * 3), mmap.mmap(FILE.fileno(), 8192)]; MAPS[0][:4] = b'host'\n"
        "    MAPS.append(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))\n"
        "change()\n" + when + "def main():\n"
        "    seen = [bytes(MAPS[0][:4]).decode(), bytes(MAPS[1][:4]).decode()]\n"
        "    MAPS[0][:4] = MAPS[1][:4] = b'mine'\n"
        "    return seen\n",
    )
    assert results == [["host", "host"]] * 4


CHURN = """
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
static void *churn(void *unused)
{
    for (;;) {
        int one = open("/etc/hostname", O_RDONLY), other = dup(one);
        char *shared = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        shared[0] = 1;
        close(one);
        usleep(5000);
        munmap(shared, 1 << 16);
        close(other);
        usleep(5000);
    }
    return unused;
}
void start(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, churn, 0);
}
"""


def test_a_thread_that_opens_closes_maps_and_unmaps_all_the_time(pyspawner, open_folder):
    """A clone beside which it ran is made again, and what that one says is heard by nobody."""
    library = open_folder / "churn.so"
    command = ["cc", "-shared", "-fPIC", "-pthread", "-x", "c", "-o", library, "-"]
    subprocess.run(command, input=CHURN, text=True, check=True)
    results = run(
        pyspawner,
        open_folder,
        f"import ctypes\nctypes.CDLL({str(library)!r}).start()\n"
        "FILES = [open('/etc/hostname') for _ in range(10)]\n"
        "def main(): return [file.read() for file in FILES] == [open('/etc/hostname').read()] * 10\n",
        jobs=100,
    )
    assert results == [True] * 100


ODD = {
    "an epoll instance that watches what cannot be used": (
        "import select\nF = open('/proc/self/mountinfo'); E = select.epoll(); E.register(F, select.EPOLLPRI)"
    ),
    "a number that an epoll instance knows twice": (
        "import select\nE = select.epoll(); one = os.eventfd(0); copy = os.dup(one); E.register(one, 1)\n"
        "os.close(one); assert os.eventfd(0) == one; E.register(one, 4)"
    ),
    "a raw socket": "S = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "an alarm of the machine's": "import ctypes\nT = ctypes.CDLL(None).timerfd_create(9, 0)",
    "a socket of the kernel's": "S = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "thousands of files": "F = [open('/etc/hostname') for _ in range(1500)]",
    "a pipe with two names": "os.mkfifo('/var/tmp/fifo-%d' % os.getpid()); F = os.open('/var/tmp/fifo-%d' % os.getpid(), os.O_RDWR)",
}


@pytest.mark.parametrize("what", ODD)
def test_nothing_that_is_held_keeps_jobs_from_running(pyspawner, open_folder, what):
    assert run(pyspawner, open_folder, ODD[what] + "\ndef main(): return 1\n", jobs=2) == [1, 1]


def test_a_log_above_the_jobs_limit_of_open_files(pyspawner, open_folder):
    source = "LOG = open('/var/tmp/log-%d' % os.getpid(), 'w'); os.dup2(LOG.fileno(), 200)\ndef main(): return 1\n"
    config = "[profile.default.limits]\nopen_files = 40\n"
    assert run(pyspawner, open_folder, source, jobs=2, config=config) == [1, 1]


def test_what_a_module_keeps_from_forks_is_kept_from_jobs(pyspawner, open_folder):
    (open_folder / "keeps.py").write_text(
        "import mmap\nM = mmap.mmap(-1, 4096); M[:6] = b'secret'; M.madvise(mmap.MADV_DONTFORK)\n"
        "def main(): return bytes(M[:6]).decode()\n"
    )
    line = pyspawner.job("keeps.main", path=open_folder)
    assert (line["outcome"], line["signal"]) == ("signaled", 11)
