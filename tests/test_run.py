"""``pyspawner run``: streams and exit statuses."""

import fcntl
import os
import signal
import subprocess
import time

import pytest
from processes import children_of, host_of, wait_until


def test_arguments_arrive_as_strings_and_output_goes_through(pyspawner):
    done = pyspawner.run("basic.greet", "a", "b c", "--", "-v")
    assert (done.status, done.stdout) == (0, "hello a b c -- -v\n")
    assert done.said == "warning\n"


def test_stdin_is_the_terminals(pyspawner):
    assert pyspawner.run("basic.cat", stdin="text").stdout == "TEXT"


def test_colon_names_a_function_too(pyspawner):
    assert pyspawner.run("basic:greet").status == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("leave", "0"), 0),
        (("leave", "3"), 3),
        (("leave", "-1"), 255),
        (("fail",), 1),
        (("sleep", "0.01"), 0),
    ],
)
def test_exit_status_is_the_childs(pyspawner, arguments, status):
    name, *rest = arguments
    assert pyspawner.run(f"basic.{name}", *rest).status == status


def test_exit_with_text_prints_it(pyspawner):
    done = pyspawner.run("basic.leave", "goodbye")
    assert (done.status, done.said) == (1, "goodbye\n")


def test_exception_prints_its_traceback_without_our_frames(pyspawner):
    done = pyspawner.run("basic.fail", "reason")
    assert done.status == 1
    assert done.said.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ValueError: reason\n")
    assert "<pyspawner>" not in done.stderr


def test_what_the_job_returns_is_printed_after_its_own_output(pyspawner, open_folder):
    (open_folder / "returns.py").write_text(
        "import os\n"
        "def main(expression):\n"
        "    print('its own')\n"
        "    os.write(1, b'unbuffered\\n')\n"
        "    return eval(expression)\n"
    )

    def run(expression, *flags):
        done = pyspawner.run("returns.main", expression, flags=flags, path=open_folder)
        return done.status, done.stdout.removeprefix("its own\nunbuffered\n"), done.said

    assert run("{'a': [1, 2.5, None]}") == (0, '{"a":[1,2.5,null]}\n', "")
    assert run("'text'") == (0, '"text"\n', "")
    assert run("None") == (0, "", "")
    assert run("7", "--no-result") == (0, "", "")
    status, out, said = run("object()")
    assert (status, out) == (1, "") and "cannot be printed: result: object" in said and "--no-result" in said
    assert run("object()", "--no-result") == (0, "", "")


def test_blocked_call_is_128_plus_sigsys_and_named(pyspawner):
    done = pyspawner.run("attacks.call", "unshare")
    assert done.status == 128 + signal.SIGSYS
    assert "blocked system call: unshare" in done.stderr


def test_timeout_is_124(pyspawner):
    done = pyspawner.run("basic.sleep", "30", flags=["--timeout", "0.3"])
    assert done.status == 124


def test_threads_and_exit_handlers_are_waited_for(pyspawner):
    assert pyspawner.run("basic.leave_thread_running").stdout == "thread ended\n"
    assert pyspawner.run("basic.after_exit_handler").stdout == "handler ran\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_job(pyspawner, number):
    command = pyspawner.command("run", "basic.sleep", "-vv") + ["--", "60"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number


def test_interrupt_while_a_hook_hangs(pyspawner, open_folder):
    (open_folder / "hanging.py").write_text(
        "import pyspawner_host, time\n"
        "calls = []\n"
        "@pyspawner_host.before_clone\n"
        "def hang():\n"
        "    calls.append(1)\n"
        "    time.sleep(60 * (len(calls) - 1))\n"
        "def main(): pass\n"
    )
    process = subprocess.Popen(pyspawner.command("run", "hanging.main", path=open_folder), stderr=subprocess.DEVNULL)
    time.sleep(1.5)
    process.terminate()
    assert process.wait(timeout=15) == 128 + signal.SIGTERM


def test_interrupt_while_importing(pyspawner, open_folder):
    importing = open_folder / "importing"
    (open_folder / "slow.py").write_text(f"import time; open({str(importing)!r}, 'w'); time.sleep(60)")
    command = pyspawner.command("run", "slow.main", path=open_folder)
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(importing.exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130


def test_the_terminal_is_left_as_it_was(pyspawner):
    import pty
    import termios

    master, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    flags = fcntl.fcntl(terminal, fcntl.F_GETFL)
    command = pyspawner.command("run", "attacks.spoil_terminal")
    done = subprocess.run(command, stdin=terminal, stdout=terminal, stderr=terminal, timeout=60, check=False)
    assert done.returncode == 0, os.read(master, 10_000)
    assert termios.tcgetattr(terminal) == before
    assert fcntl.fcntl(terminal, fcntl.F_GETFL) == flags


def test_terminal_modes_as_newer_c_libraries_ask_for_them(pyspawner):
    """glibc's ``tcgetattr`` and ``tcsetattr``, and with them ``isatty``, use other requests since 2.42."""
    import pty

    master, terminal = pty.openpty()
    command = pyspawner.command("run", "basic.terminal_modes")
    done = subprocess.run(command, stdin=terminal, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"True\n"), done


def test_child_ends_with_its_host(pyspawner):
    command = pyspawner.command("run", "basic.sleep") + ["--", "61.25"]
    process = subprocess.Popen(command)
    wait_until(lambda: (host := host_of(process)) and len(children_of(host)) == 1)
    time.sleep(0.5)  # past the first child, which only looks around
    host = host_of(process)
    children = children_of(host)
    assert len(children) == 1
    os.kill(host, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{children[0]}/exe"):
        assert time.monotonic() < deadline, "the child outlived its host"
        time.sleep(0.05)


def test_failing_preload_shows_the_traceback(pyspawner, open_folder):
    (open_folder / "broken.py").write_text("raise RuntimeError('broken on purpose')")
    done = pyspawner.run("basic.greet", flags=["--preload", "broken", "--path", str(open_folder)])
    assert done.status == 125
    assert "importing 'broken' failed" in done.stderr and "broken on purpose" in done.stderr


def test_failing_warm_up_shows_the_traceback(pyspawner):
    done = pyspawner.run("basic.greet", flags=["--warm-up", "basic.fail"])
    assert done.status == 125
    assert "warm_up basic:fail failed" in done.stderr and "ValueError: no" in done.stderr


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["run"], ["run", "--child-main", "x"], []])
def test_wrong_usage_is_125(pyspawner, arguments):
    from driving import PYSPAWNER

    assert pyspawner.finish([str(PYSPAWNER), *arguments], "", 10).status == 125


def test_configuration_error_names_file_and_line(pyspawner):
    done = pyspawner.run("basic.greet", config="preload = []\nprelaod = []\n")
    assert done.status == 125
    assert "pyspawner.toml:2: unknown field `prelaod`" in done.stderr
