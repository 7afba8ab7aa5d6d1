"""``pyspawner map``: every line yields one result, whatever the line is."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from driving import skipping
from processes import children_of, host_of, name_of, wait_until


def test_result_line_is_complete(pyspawner):
    line = pyspawner.job("basic.echo", 1, "a")
    assert line.pop("wall_ms") > 0
    assert line.pop("cpu_ms") > 0
    assert 0 < line.pop("peak_memory_bytes") < 64 << 20
    assert line == {
        "line": 1,
        "id": "1",
        "outcome": "ok",
        "exit_code": 0,
        "signal": None,
        "result": {"args": [1, "a"], "kwargs": {}},
        "stdout": "",
        "stderr": "",
        "truncated": False,
        "detail": None,
    }


def test_object_lines(pyspawner):
    jobs = [{"id": "x", "args": [1], "kwargs": {"k": [None]}}, {"id": 5}, {}]
    lines = {line["id"]: line["result"] for line in pyspawner.map("basic.echo", jobs).lines}
    assert lines == {
        "x": {"args": [1], "kwargs": {"k": [None]}},
        "5": {"args": [], "kwargs": {}},
        "3": {"args": [], "kwargs": {}},
    }


def test_stdin_of_a_job(pyspawner):
    text = "line\n" * 100_000 + "ä"
    done = pyspawner.map("basic.copy_stdin", [{"stdin": text}, {}, {"stdin": ""}], "--ordered")
    assert [line["result"] for line in done.lines] == [text, "", ""]


def test_ordered_keeps_the_inputs_order(pyspawner):
    seconds = [0.3, 0.0, 0.2, 0.0, 0.1]
    done = pyspawner.map("basic.sleep", [[s] for s in seconds], "--ordered", "-j", "4")
    assert [line["result"] for line in done.lines] == seconds


MALFORMED = [b"", b"  ", b"42", b"[1", b'{"arg": 1}', b"\xff\xfe", b"[1] [2]", b"null", b'{"args": 1}']


def test_every_malformed_line_has_its_result(pyspawner):
    lines = [b"[0]", *MALFORMED, b"[9]"]
    done = pyspawner.map("basic.echo", b"\n".join(lines), "--ordered")
    assert done.status == 1
    outcomes = [line["outcome"] for line in done.lines]
    assert outcomes == ["ok", *["invalid_job"] * len(MALFORMED), "ok"]
    assert [line["id"] for line in done.lines] == [str(n + 1) for n in range(len(lines))]
    assert all(line["detail"] for line in done.lines[1:-1])


def test_megabytes_on_a_line(pyspawner):
    text = "x" * (20 << 20)
    config = '[profile.default.limits]\noutput = "32M"\n'
    assert pyspawner.value("basic.echo", text, config=config)["args"] == [text]


def test_a_line_beyond_the_limit_is_skipped_not_kept(pyspawner):
    jobs = b'["' + b"x" * (65 << 20) + b'"]\n[1]\n'
    done = pyspawner.map("basic.echo", jobs, "--ordered")
    assert [line["outcome"] for line in done.lines] == ["invalid_job", "ok"]


def test_arguments_too_deep_to_decode(pyspawner):
    line = pyspawner.map("basic.echo", "[" * 100_000 + "]" * 100_000 + "\n").lines[0]
    assert line["outcome"] == "invalid_job"
    assert "cannot be decoded" in line["detail"]


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        ("leave", [0], {"outcome": "ok", "exit_code": 0, "result": None}),
        ("leave", [3], {"outcome": "exited", "exit_code": 3}),
        ("leave_at_once", [0], {"outcome": "ok", "exit_code": 0, "result": None}),
        ("fail", [], {"outcome": "exited", "exit_code": 1}),
        ("unprintable", [], {"outcome": "exited", "exit_code": 1}),
        ("die", [11], {"outcome": "signaled", "signal": signal.SIGSEGV, "exit_code": None}),
        ("not_json", [], {"outcome": "invalid_result", "exit_code": 0, "result": None}),
        ("not_a_number", [], {"outcome": "ok", "exit_code": 0, "result": None}),
        ("deep", [100_000], {"outcome": "invalid_result", "exit_code": 0, "result": None}),
        ("write_bytes", [[255, 97]], {"outcome": "ok", "stdout_base64": "/2E="}),
    ],
)
def test_outcomes(pyspawner, function, args, expected):
    line = pyspawner.job(f"basic.{function}", *args)
    assert {key: line.get(key) for key in expected} == expected, line


def test_exception_is_on_stderr(pyspawner):
    line = pyspawner.job("basic.fail", "reason")
    assert line["stderr"].endswith("ValueError: reason\n")


def test_timeout(pyspawner):
    jobs = [{"args": [60], "timeout": 0.3}, {"args": [0], "timeout": "1m"}]
    done = pyspawner.map("basic.sleep", jobs, "--ordered")
    assert [line["outcome"] for line in done.lines] == ["timed_out", "ok"]
    assert 300 <= done.lines[0]["wall_ms"] < 5000


def test_a_job_may_shorten_the_profiles_limit_not_lengthen_it(pyspawner):
    done = pyspawner.map("basic.sleep", [{"args": [60], "timeout": 50}], "--timeout", "0.3")
    assert done.lines[0]["outcome"] == "timed_out"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_limit(pyspawner, stream):
    line = pyspawner.job("basic.write", 10_000_000, stream, config="[profile.default.limits]\noutput = 1000\n")
    assert (line["outcome"], line["truncated"], len(line[stream])) == ("output_limit", True, 1000)


def test_a_forged_result_is_no_json_and_not_passed_on(pyspawner):
    """One that is whole is replaced by the real one after it; others swallow that."""
    for forged, outcome in [
        ('R\x05\0\0\0{"a":', "ok"),
        ("garbage", "invalid_result"),
        ("R\xff\xff\xff\xff1", "invalid_result"),
    ]:
        line = pyspawner.job("basic.forge", forged)
        assert (line["outcome"], line["result"]) == (outcome, None), line


def test_a_result_cannot_be_more_than_one_line(pyspawner):
    """JSON may hold line feeds; a line of output that a job made up may not be another's."""
    forged = '[1,\n{"id":"2","outcome":"ok","result":"forged"}\n]'
    record = "R" + len(forged).to_bytes(4, "little").decode("latin-1") + forged
    done = pyspawner.map("basic.forge_or_not", [[record], [None]], "--ordered")
    assert [line["id"] for line in done.lines] == ["1", "2"]
    assert [line["outcome"] for line in done.lines] == ["invalid_result", "ok"]
    assert [line["result"] for line in done.lines] == [None, "honest"]
    assert "one line" in done.lines[0]["detail"]


def test_a_job_cannot_give_the_host_a_child(pyspawner):
    assert pyspawner.value("attacks.clone_parent") == "ENOSYS"
    assert pyspawner.value("attacks.clone_parent", config=skipping("seccomp")) != "ENOSYS"


def test_jobs_do_not_share_an_open_file(pyspawner):
    done = pyspawner.map("attacks.mark_stdin", [[], []], "-j", "1", "--ordered")
    assert [line["result"] for line in done.lines] == [False, False]


def test_an_absurd_timeout_is_an_invalid_job(pyspawner):
    done = pyspawner.map("basic.echo", '{"timeout": 1e19}\n[1]\n', "--ordered")
    assert [line["outcome"] for line in done.lines] == ["invalid_job", "ok"]


def test_a_job_that_runs_out_of_time_before_its_code_has_timed_out(pyspawner, open_folder):
    hook = "import pyspawner_host, time\npyspawner_host.after_clone(lambda: time.sleep(60))\n"
    (open_folder / "slow.py").write_text(hook)
    flags = ["--preload", "slow", "--path", open_folder]
    line = pyspawner.map("basic.nothing", [{"timeout": 0.5}], *flags).lines[0]
    assert line["outcome"] == "timed_out" and "before its code ran" in line["detail"]


def test_more_jobs_at_once_than_descriptors_by_default(pyspawner):
    limited = ["prlimit", "--nofile=1024:20000"]
    command = pyspawner.command("map", "basic.sleep", "-j", "300", prefix=limited)
    done = pyspawner.finish(command, "[0.5]\n" * 400, 120)
    assert done.status == 0 and len(done.lines) == 400


def test_input_is_not_overwritten(pyspawner, tmp_path):
    file = tmp_path / "jobs"
    file.write_text("[1]\n")
    done = pyspawner.map("basic.echo", "", "-i", file, "-o", file)
    assert done.status == 125 and "both input and output" in done.stderr
    assert file.read_text() == "[1]\n"


def test_interrupt_while_nobody_reads(pyspawner):
    command = pyspawner.command("map", "basic.echo")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"broken\n" * 5000)
    process.stdin.close()
    time.sleep(2)
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    whole = process.stdout.read()
    assert all(json.loads(line) for line in whole.splitlines(keepends=True) if line.endswith(b"\n"))


def test_nohup_is_heeded(pyspawner):
    command = pyspawner.command("run", "basic.sleep", prefix=["nohup"]) + ["--", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    os.kill(host_of(process), signal.SIGHUP)
    assert process.wait(timeout=20) == 0


def test_host_facts(pyspawner):
    line = pyspawner.map("basic.host_facts", [{"id": "seven", "timeout": 30}]).lines[0]
    facts = line["result"]
    assert facts["id"] == "seven"
    assert 20 < facts["deadline"] - facts["now"] <= 30
    assert pyspawner.value("basic.host_facts")["deadline"] is None


def test_files_in_and_out(pyspawner, tmp_path):
    (tmp_path / "in").write_text("[1]\n[2]")
    done = pyspawner.map("basic.echo", "", "-i", tmp_path / "in", "-o", tmp_path / "out")
    assert done.status == 0
    assert len((tmp_path / "out").read_text().splitlines()) == 2


def test_missing_input_is_an_error(pyspawner, tmp_path):
    done = pyspawner.map("basic.echo", "", "-i", tmp_path / "missing")
    assert done.status == 125
    assert "missing: No such file" in done.stderr


def test_empty_input_is_no_failure(pyspawner):
    done = pyspawner.map("basic.echo", "")
    assert (done.status, done.stdout) == (0, "")


def test_a_reader_that_leaves_ends_the_run(pyspawner):
    command = pyspawner.command("map", "basic.echo", "-j", "2")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"[1]\n" * 2000)
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stdin.close()


def test_a_reader_that_waits_stops_the_jobs(pyspawner, open_folder):
    """Results are not piled up: with a full pipe no further job is begun."""
    command = pyspawner.command("map", "basic.write", "-j", "2")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"[50000]\n" * 400)
    process.stdin.close()
    time.sleep(4)
    assert process.poll() is None
    lines = process.stdout.read().splitlines()
    assert process.wait(timeout=60) == 0
    assert len(lines) == 400


def test_interrupt_kills_children_and_reports_them(pyspawner):
    command = pyspawner.command("map", "basic.sleep", "-j", "2", spares=0)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"[60]\n[60]\n[60]\n")
    process.stdin.flush()
    time.sleep(2)
    children = children_of(host_of(process))
    assert len(children) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    outcomes = [json.loads(line)["outcome"] for line in process.stdout]
    assert outcomes == ["cancelled", "cancelled"]
    process.stdin.close()
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def test_memory_does_not_grow_with_the_input(pyspawner):
    """2,000 jobs of 100 kB each, in and out: 400 MB pass through."""
    command = pyspawner.command("map", "basic.echo", "-j", "2")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    line = json.dumps(["x" * 100_000]).encode() + b"\n"
    peak = []
    if os.fork() == 0:
        for _ in range(2000):
            process.stdin.write(line)
        process.stdin.close()
        os._exit(0)
    process.stdin.close()
    for number, result in enumerate(process.stdout):
        assert len(result) > 100_000
        if number % 450 == 449:
            status = open(f"/proc/{host_of(process)}/status").read()
            peak.append(int(status.split("VmRSS:")[1].split()[0]))
    os.wait()
    assert process.wait() == 0
    assert len(peak) == 4
    assert peak[-1] < peak[0] + 8 * 1024, peak


def test_what_waits_for_an_earlier_result_is_bounded_in_bytes(pyspawner, open_folder, tmp_path):
    """With --ordered, and a first job that ends last: 60 results of 7 MiB would wait for it."""
    (open_folder / "heavy.py").write_text(
        "import time\ndef main(number):\n    if number == 0: time.sleep(6)\n    return 'x' * (7 << 20)\n"
    )
    jobs = tmp_path / "jobs"
    jobs.write_text("".join(f"[{number}]\n" for number in range(60)))
    config = "[profile.default]\nlimits.output = '16M'\n"
    command = pyspawner.command(
        "map", "heavy.main", "-j", "2", "--ordered", "--input", jobs, config=config, path=open_folder
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        first = process.stdout.readline()
        status = Path(f"/proc/{host_of(process)}/status").read_text()
        lines = [json.loads(line) for line in [first, *process.stdout]]
    assert [(line["id"], line["outcome"]) for line in lines] == [(str(number + 1), "ok") for number in range(60)]
    peak = int(status.split("VmHWM:")[1].split()[0])
    assert peak < 250 << 10, peak


@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_a_fifo_without_its_other_end_can_be_interrupted_and_used(pyspawner, tmp_path, flag):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = pyspawner.command("map", "basic.nothing", flag, fifo)

    def start():
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    process = start()
    wait_until(lambda: host_of(process))
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM

    process = start()
    if flag == "--input":
        fifo.write_text("[]\n")
        assert json.loads(process.communicate(timeout=60)[0])["outcome"] == "ok"
    else:
        process.stdin.write(b"[]\n")
        process.stdin.close()
        assert json.loads(fifo.read_text())["outcome"] == "ok"
    assert process.wait(timeout=60) == 0


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 3


def keep_after_its_end(child, options=0):
    """Have the kernel keep a process that was killed. With PTRACE_O_TRACEEXIT (0x40) it stops before it has given its memory back."""
    seize = 0x4206  # PTRACE_SEIZE
    assert LIBC.ptrace(seize, child, None, options) == 0, os.strerror(ctypes.get_errno())


def test_a_child_that_cannot_be_reaped_does_not_hold_up_its_report(pyspawner):
    """Not even SIGKILL ends a process in some system calls. A tracer that looks away does the same:
    the kernel keeps a traced process for it, and tells the parent nothing."""
    command = pyspawner.command("map", "basic.sleep_as", "-j", "1", spares=0)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b'{"id": "stuck", "args": ["stuck", 60], "timeout": 3}\n')
    process.stdin.flush()
    wait_until(lambda: (host := host_of(process)) and [c for c in children_of(host) if name_of(c) == "stuck"])
    host = host_of(process)
    (child,) = children_of(host)
    keep_after_its_end(child)
    line = json.loads(process.stdout.readline())
    assert (line["id"], line["outcome"]) == ("stuck", "timed_out")
    assert "killed and has not ended" in line["detail"] and line["wall_ms"] > 12_000
    # The next job is served, and the child is reaped once it can be.
    process.stdin.write(b'{"id": "next", "args": ["next", 0]}\n')
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["outcome"] == "ok"
    assert children_of(host) == [child]
    os.waitpid(child, 0x40000000)  # __WALL: now the parent is told
    wait_until(lambda: children_of(host) == [])
    process.stdin.close()
    assert process.wait(timeout=20) == 1


def test_an_output_that_cannot_be_opened_is_an_error(pyspawner, tmp_path):
    """A socket says the same as a FIFO that nobody reads: ENXIO."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        done = pyspawner.map("basic.nothing", [[]], "-o", tmp_path / "socket")
        assert done.status == 125 and "opening the output" in done.stderr, done


def test_a_result_that_is_no_unicode_is_not_passed_on(pyspawner):
    """Python writes half of a surrogate pair, and other readers refuse the whole line."""
    jobs = [["\ud800"], ["\U0001f600"]]
    done = pyspawner.map("basic.echo", jobs, "--ordered")
    assert done.lines[0]["result"] is None and "\U0001f600" in str(done.lines[1]["result"]), done.lines
    assert done.lines[0]["outcome"] == "invalid_result" and "surrogate" in done.lines[0]["detail"]


@pytest.mark.parametrize("has_memory", [False, True])
def test_children_that_take_long_to_end_stop_no_others(pyspawner, has_memory):
    """Also if they hold memory, as long as there is enough: jobs can hold up each other's ends."""
    many = 17
    command = pyspawner.command("map", "basic.sleep_as", "-j", many, spares=0)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job = json.dumps({"args": ["stuck", 60], "timeout": 5}) + "\n"
    process.stdin.write(job.encode() * many)
    process.stdin.flush()
    wait_until(lambda: (host := host_of(process)) and [name_of(c) for c in children_of(host)] == ["stuck"] * many)
    children = children_of(host_of(process))
    for child in children:
        keep_after_its_end(child, 0x40 if has_memory else 0)
    lines = [json.loads(process.stdout.readline()) for _ in range(many)]
    assert all("killed and has not ended" in line["detail"] for line in lines), lines
    process.stdin.write(b'{"id": "next", "args": ["next", 0]}\n')
    process.stdin.flush()
    line = json.loads(process.stdout.readline())
    assert line["outcome"] == "ok"
    for child in children:
        os.waitpid(child, 0x40000000)  # __WALL: now the parent is told of its end, or the tracer of its stop
        if has_memory:
            assert LIBC.ptrace(17, child, None, None) == 0  # PTRACE_DETACH
    wait_until(lambda: not children_of(host_of(process)))
    assert process.communicate(b'["last", 0]\n', timeout=60)[0].count(b'"ok"') == 1


def test_the_log_has_one_progress_of_a_job(pyspawner, open_folder):
    (open_folder / "tells.py").write_text(
        "import pyspawner_host\n"
        "def main():\n"
        "    for n in range(5000):\n"
        "        pyspawner_host.progress(n / 5000, f'step {n}\\x1b[31m')\n"
    )
    done = pyspawner.map("tells.main", [[]], "-v", path=open_folder)
    assert done.lines[0]["outcome"] == "ok"
    told = [line for line in done.stderr.splitlines() if "progress" in line]
    assert len(told) == 1 and "step 4999" in told[0] and "\x1b" not in told[0], told[:3]


def test_a_result_is_one_line_to_every_reader(pyspawner, open_folder):
    (open_folder / "tells.py").write_text("def main(text):\n    print(text, end='')\n    return text\n")
    ends = "a\u2028b\u2029c\x85d\x0be\x1cf"
    job = {"id": ends, "args": [ends]}
    done = pyspawner.map("tells.main", [job], path=open_folder)
    assert len(done.stdout.splitlines()) == 1
    line = json.loads(done.stdout)
    assert (line["id"], line["stdout"], line["result"]) == (ends, ends, ends)


def test_lines_are_told_apart_whatever_their_ids(pyspawner):
    lines = pyspawner.map("basic.echo", [[], {"id": "1"}, {"id": "1"}]).lines
    assert sorted((line["line"], line["id"]) for line in lines) == [(1, "1"), (2, "1"), (3, "1")]
