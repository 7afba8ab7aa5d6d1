"""The operator's terminal, in `pyspawner run`."""

import fcntl
import os
import pty
import struct
import subprocess
import termios

import pytest
from attacking import ALL_BUT_PID, ATTACKS, without


@pytest.fixture
def terminal():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    yield slave
    os.close(slave)
    os.close(master)


def ask(pyspawner, terminal, what, off=(), session=False):
    """What an attack got, on this terminal; with ``session``, as the operator's controlling one."""
    config = without(off)
    command = pyspawner.command("run", "terminal.main", config=config, path=ATTACKS) + ["--", what]
    if session:
        command = ["setsid", "--ctty", "--wait", *command]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["TIOCSTI", "TIOCLINUX", "TIOCSETD", "TIOCCONS", "TIOCVHANGUP", "TIOCSLCKTRMIOS"])
def test_requests_that_type_or_take_over_are_refused(pyspawner, terminal, name):
    assert ask(pyspawner, terminal, name) == "ENOSYS"
    assert ask(pyspawner, terminal, name, off=["seccomp"]) != "ENOSYS"


def test_typing_succeeds_without_the_layers(pyspawner, terminal):
    assert ask(pyspawner, terminal, "TIOCSTI", off=ALL_BUT_PID) == "ok"


def test_a_job_has_no_controlling_terminal(pyspawner, terminal):
    assert ask(pyspawner, terminal, "controlling", session=True) == "ENOENT"
    # There is no /dev/tty; with the host's, there is still nothing behind it.
    assert ask(pyspawner, terminal, "controlling", off=["root"], session=True) == "ENXIO"


def test_the_operators_terminal_cannot_be_made_the_jobs(pyspawner, terminal):
    for how in ("acquire", "steal"):
        assert ask(pyspawner, terminal, how, session=True) == "ENOSYS"
        assert ask(pyspawner, terminal, how, off=["seccomp"], session=True) == "EPERM"
    # The control: root may, of a terminal that has an owner.
    assert ask(pyspawner, terminal, "steal", off=ALL_BUT_PID, session=True) == "ok"


def test_the_terminal_stays_open_to_others(pyspawner, terminal):
    """TIOCEXCL would stay in force after the job, and refuse all but root."""

    def is_exclusive(*off):
        ask(pyspawner, terminal, "exclusive", off=off)
        return struct.unpack("i", fcntl.ioctl(terminal, 0x80045440, b"\0\0\0\0"))[0]  # TIOCGEXCL

    assert not is_exclusive()
    assert is_exclusive("seccomp")


def test_the_size_of_the_terminal_is_as_before(pyspawner, terminal):
    ask(pyspawner, terminal, "resize")
    size = fcntl.ioctl(terminal, termios.TIOCGWINSZ, b"\0" * 8)
    assert struct.unpack("4H", size)[:2] == (24, 80)
