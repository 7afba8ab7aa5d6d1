"""Batches that are run again: ``map --retry``, ``--resume`` and ``--lines``."""

import json
import os
import signal
import subprocess

import pytest
from processes import host_of, is_alive, wait_until

FLAKY = (
    "import os, signal, sys, time\n"
    "def main(name, folder, good):\n"
    "    runs = sum(file.startswith(name) for file in os.listdir(folder)) + 1\n"
    "    open(f'{folder}/{name}-{runs}', 'x')\n"
    "    if runs < good:\n"
    "        {'wait': lambda: time.sleep(60), 'raise': lambda: 1 / 0, 'leave': lambda: sys.exit(3)}[name]()\n"
    "    return runs\n"
)


@pytest.fixture
def batch(pyspawner, open_folder):
    """Runs jobs that are good from their N-th run on: they count in a folder of theirs."""
    (open_folder / "flaky.py").write_text(FLAKY)
    counts = open_folder / "counts"
    counts.mkdir()
    counts.chmod(0o777)
    config = f"[profile.default]\nbinds = [{{ source = '{counts}', writable = true }}]\n"

    def run(jobs, *flags):
        lines = [[name, str(counts), good] for name, good in jobs]
        return pyspawner.map(
            "flaky.main", lines, "--ordered", "--timeout", "500ms", *flags, path=open_folder, config=config
        )

    return run


def test_a_job_is_run_again_for_the_outcomes_that_are_named(batch):
    jobs = [("wait", 3), ("raise", 2), ("leave", 1)]
    waits, raises, leaves = batch(jobs, "--retry", "2").lines
    assert (waits["outcome"], waits["attempts"], waits["result"]) == ("ok", 3, 3)
    # An exception is no accident, unless somebody says so.
    assert raises["outcome"] == "exited" and "attempts" not in raises
    assert leaves["outcome"] == "ok" and "attempts" not in leaves


def test_no_more_often_than_is_said(batch):
    done = batch([("wait", 9), ("raise", 9)], "--retry", "1", "--retry-on", "timed_out,exited")
    assert [(line["outcome"], line["attempts"]) for line in done.lines] == [("timed_out", 2), ("exited", 2)]
    assert done.status == 1


def test_without_it_no_job_is_run_again(batch):
    """The control."""
    [line] = batch([("wait", 2)]).lines
    assert line["outcome"] == "timed_out" and "attempts" not in line


@pytest.mark.parametrize("outcome", ["ok", "cancelled", "tired"])
def test_an_outcome_for_which_there_is_no_again(batch, outcome):
    done = batch([], "--retry", "1", "--retry-on", outcome)
    assert done.status == 125 and "expected one of exited, " in done.stderr


def test_an_interrupt_ends_the_trying(pyspawner, open_folder):
    (open_folder / "waits.py").write_text("import time\ndef main(): time.sleep(60)\n")
    command = pyspawner.command("map", "waits.main", "--retry", "1000000", "--timeout", "300ms", "-v", path=open_folder)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdin.write("[]\n")
    process.stdin.close()
    while "run again" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert json.loads(process.stdout.read())["outcome"] == "cancelled"


# ---- --resume -----------------------------------------------------------------------------


def test_what_was_ok_is_not_run_again(batch, tmp_path):
    """One command line, for a first run and all after it."""
    results = tmp_path / "results.ndjson"
    jobs = [("raise", 3), ("leave", 1), ("wait", 2)]
    seen = []
    for status in (1, 1, 0, 0):
        done = batch(jobs, "--resume", results)
        assert (done.status, done.stdout) == (status, ""), done
        seen.append([json.loads(line) for line in results.read_text().splitlines()])
    assert [len(lines) for lines in seen] == [3, 5, 6, 6]
    assert [(line["id"], line["outcome"]) for line in seen[-1]] == [
        ("1", "exited"), ("2", "ok"), ("3", "timed_out"), ("1", "exited"), ("3", "ok"), ("1", "ok"),
    ]  # fmt: skip
    assert seen[-1][1]["result"] == 1, "it was run once"
    assert results.stat().st_mode & 0o777 == 0o600


def test_jobs_are_known_by_their_own_ids(pyspawner, tmp_path):
    results = tmp_path / "results.ndjson"
    jobs = [{"id": "a", "args": ["a"]}, {"id": "b", "args": ["b"]}]
    pyspawner.map("basic.echo", jobs[:1], "--resume", results)
    pyspawner.map("basic.echo", jobs[::-1], "--resume", results)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["line"], line["id"]) for line in lines] == [(1, "a"), (1, "b")]


def test_a_run_that_was_killed_is_gone_on_with(pyspawner, tmp_path):
    """At any moment: the file may end in the middle of a line."""
    results = tmp_path / "results.ndjson"
    text = "".join(json.dumps([n]) + "\n" for n in range(300))
    command = pyspawner.command("map", "basic.echo", "--resume", results)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    process.stdin.write(text)
    process.stdin.flush()
    wait_until(lambda: results.exists() and results.read_text().count("\n") > 20)
    host = host_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    # Its host has its last results written; until then nobody else may write there.
    wait_until(lambda: not is_alive(host))
    with results.open("a") as file:
        file.write('{"line": 299, "id": "299", "outc')
    done = pyspawner.map("basic.echo", text, "--resume", results)
    assert done.status == 0 and "in the middle of a line" in done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    done = [line["id"] for line in lines if line["outcome"] == "ok"]
    assert sorted(done) == sorted(str(n + 1) for n in range(300))
    assert {line["outcome"] for line in lines} <= {"ok", "cancelled"}


def test_one_at_a_time(pyspawner, tmp_path):
    results = tmp_path / "results.ndjson"
    command = pyspawner.command("map", "basic.echo", "--resume", results)
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as first:
        first.stdin.write("[1]\n")
        first.stdin.flush()
        wait_until(lambda: results.exists() and results.read_text())
        done = pyspawner.map("basic.echo", [[1], [2]], "--resume", results)
        assert done.status == 125 and "another pyspawner writes to it" in done.stderr
        first.stdin.close()
    assert pyspawner.map("basic.echo", [[1], [2]], "--resume", results).status == 0


def test_another_file_is_left_alone(pyspawner, tmp_path):
    notes = tmp_path / "notes"
    notes.write_text("dear diary\n")
    done = pyspawner.map("basic.echo", [[1]], "--resume", notes)
    assert done.status == 125 and f"--resume {notes}: line 1 is no result of map" in done.stderr
    assert notes.read_text() == "dear diary\n"
    jobs = tmp_path / "jobs"
    jobs.write_text("[1]\n")
    done = pyspawner.map("basic.echo", [], "-i", jobs, "--resume", jobs)
    assert done.status == 125 and "it is the input" in done.stderr
    done = pyspawner.map("basic.echo", [], "--resume", "/dev/null")
    assert done.status == 125 and "expected a regular file" in done.stderr


def test_no_job_reads_earlier_results(pyspawner, open_folder, tmp_path):
    (open_folder / "reads.py").write_text("def main(path): return open(path).read()\n")
    results = open_folder / "results.ndjson"
    results.write_text('{"line": 1, "id": "earlier", "outcome": "ok", "result": "secret"}\n')
    results.chmod(0o644)
    pyspawner.map("reads.main", [[str(results)]], "--resume", results, path=open_folder)
    assert json.loads(results.read_text().splitlines()[1])["result"] in (None, "")
    # The control: as any other file it can be read.
    other = open_folder / "other"
    other.write_text("text")
    other.chmod(0o644)
    assert pyspawner.value("reads.main", str(other), path=open_folder) == "text"


# ---- --lines ------------------------------------------------------------------------------


def test_lines_of_text_are_arguments(pyspawner):
    texts = ["plain", "", '["json"]', "späte Äpfel", 'quo"te\\', "  spaces  "]
    done = pyspawner.map("basic.echo", "\n".join(texts), "--lines", "--ordered")
    assert [line["result"]["args"] for line in done.lines] == [[text] for text in texts]
    assert pyspawner.map("basic.echo", "plain\n").lines[0]["outcome"] == "invalid_job"
    bad = pyspawner.map("basic.echo", b"\xff\n", "--lines").lines[0]
    assert bad["outcome"] == "invalid_job" and "not UTF-8" in bad["detail"]
