"""What is shown on a terminal, as a terminal shows it (pyte), and nowhere else."""

import json
import os
import pty
import select
import subprocess
import time

import pyte
import pytest

ROWS, COLUMNS = 40, 400
JOBS = (
    "import sys, time\n"
    "def main(what):\n"
    "    time.sleep(0.1)\n"
    "    if what == 'raise': raise ValueError('bad \\x1b[31mvalue')\n"
    "    if what == 'leave': sys.exit(3)\n"
    "    if what == 'wait': time.sleep(60)\n"
)


class Terminal:
    """A terminal with one command on its standard error."""

    def __init__(self, command, stdin, environment=None):
        self.master, terminal = pty.openpty()
        os.set_blocking(self.master, False)
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **(environment or {})}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=terminal, env=environment
        )
        os.close(terminal)
        self.process.stdin.write(stdin)
        self.process.stdin.close()
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        #: What each state of the screen had, line by line.
        self.seen = []

    def read(self, seconds):
        """Read for so long, or to the end. Return whether it goes on."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                return True
            try:
                data = os.read(self.master, 100_000)
            except OSError:  # nobody has it open any more
                return False
            self.raw += data
            self.stream.feed(data)
            self.seen.append(self.lines())
        return True

    def lines(self):
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def finish(self):
        """The result lines and the status."""
        while self.read(30):
            assert self.process.poll() is None or not self.read(0.2), "it has ended, and its terminal is open"
        output = self.process.stdout.read()
        return [json.loads(line) for line in output.splitlines()], self.process.wait(10)


def jobs(*whats):
    return "".join(json.dumps([what]) + "\n" for what in whats).encode()


@pytest.fixture
def command(pyspawner, open_folder):
    (open_folder / "jobs.py").write_text(JOBS)

    def make(*flags, **options):
        return pyspawner.command("map", "jobs.main", "-j", "2", *flags, path=open_folder, **options)

    return make


def test_a_bar_while_jobs_run_and_a_summary_at_the_end(command):
    whats = ["fine"] * 12 + ["raise", "leave", "wait"]
    terminal = Terminal(command("--timeout", "1s"), jobs(*whats))
    results, status = terminal.finish()
    assert (len(results), status) == (15, 1)
    # While it ran: one line, with counts by outcome, and the rate.
    shown = [lines[-1] for lines in terminal.seen if lines and " jobs (" in lines[-1] and lines[-1][0] != "p"]
    assert any(" ok" in line and "/s): " in line for line in shown)
    assert any("1 exited" in line for line in shown)
    # In the end there is nothing of it.
    first, *failures = terminal.lines()
    assert first.startswith("pyspawner: 15 jobs (") and "12 ok, 2 exited, 1 timed_out in " in first
    told = {failure.split()[0]: failure for failure in failures}
    assert len(failures) == 3 and told["timed_out"] == (
        "  timed_out       line 15: ran for its limit of 1s (limits.wall, --timeout)"
    )
    assert "  exited          line 13: ValueError: bad \\u{1b}[31mvalue" in failures
    assert "  exited          line 14: status 3" in failures
    assert b"\x1b[31m" not in terminal.raw  # the job's own


def test_of_many_failures_the_first_are_told(command):
    terminal = Terminal(command(), jobs(*["leave"] * 25))
    terminal.finish()
    assert terminal.lines()[-1] == "  and 15 more that are not ok"
    assert len(terminal.lines()) == 12


def test_ids_are_told_and_obeyed_by_no_terminal(command):
    line = json.dumps({"id": "first\x1b]0;title\x07", "args": ["leave"]}).encode() + b"\n"
    terminal = Terminal(command(), line)
    terminal.finish()
    assert 'line 1 "first' in terminal.lines()[-1] and b"\x1b]0;" not in terminal.raw


def test_a_file_has_a_percentage(command, open_folder):
    file = open_folder / "jobs.ndjson"
    file.write_bytes(jobs(*["fine"] * 10))
    terminal = Terminal(command("-i", file), b"")
    terminal.finish()
    assert any("%" in lines[-1] and "to go" in lines[-1] for lines in terminal.seen if lines)


def test_log_lines_have_lines_of_their_own(command):
    terminal = Terminal(command("-vv"), jobs(*["fine"] * 8))
    terminal.finish()
    lines = terminal.lines()
    assert len(lines) > 8 and all(line.startswith("pyspawner: ") for line in lines), lines


@pytest.mark.parametrize(
    ("flags", "environment"),
    [(["-q"], {}), ([], {"TERM": "dumb"}), ([], {"TERM": ""})],
    ids=["quiet", "dumb", "unknown"],
)
def test_nothing_where_it_is_not_wanted(command, flags, environment):
    terminal = Terminal(command(*flags), jobs("fine", "leave"), environment)
    results, _ = terminal.finish()
    assert len(results) == 2 and terminal.raw == b""


def test_nothing_where_there_is_no_terminal(pyspawner, command):
    done = pyspawner.finish(command(), jobs("fine", "leave"), 60)
    assert len(done.lines) == 2 and done.stderr == ""


def test_a_terminal_that_is_stopped_stops_no_job(command):
    """By Ctrl-S: a write to it waits then, for ever. The control: nothing is drawn meanwhile."""
    terminal = Terminal(command(), jobs(*["fine"] * 30))
    os.write(terminal.master, b"\x13")
    output = [terminal.process.stdout.readline() for _ in range(30)]
    assert all(b'"ok"' in line for line in output)
    terminal.read(0.5)
    assert terminal.raw == b""
    os.write(terminal.master, b"\x11")  # Ctrl-Q
    assert terminal.finish()[1] == 0


def test_the_time_goes_on_while_a_job_runs(command):
    terminal = Terminal(command("--timeout", "3s"), jobs("wait"))
    terminal.finish()
    times = {lines[-1].split()[-1] for lines in terminal.seen if lines and lines[-1][0] != "p"}
    assert len(times) >= 3, times


def test_a_measurement_shows_how_far_it_is(pyspawner):
    command = pyspawner.command("bench", "x.y", "--samples", "20", path=None)
    place = command.index("--child-main")
    del command[place : place + 2]
    terminal = Terminal(command, b"")
    terminal.read(60)
    assert terminal.process.wait(60) == 0
    assert any("%" in lines[-1] and "latency" in lines[-1] for lines in terminal.seen if lines)
    assert terminal.lines() == []
