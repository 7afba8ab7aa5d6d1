"""Children that are ready before there is a job for them."""

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest
from processes import children_of, host_of, is_alive, parked, unslotted, wait_until

MOST = 2


@contextmanager
def host_with_spares(pyspawner, child_main, *flags, spares=MOST, log=None, **options):
    """A host that waits for jobs."""
    command = pyspawner.command("map", child_main, "-j", "4", *flags, spares=spares, **options)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    with subprocess.Popen(command, **pipes) as process:
        try:
            wait_until(lambda: host_of(process))
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def ask(process, *jobs):
    """What jobs returned that run at once."""
    for job in jobs:
        process.stdin.write(json.dumps(job).encode() + b"\n")
    process.stdin.flush()
    lines = [json.loads(process.stdout.readline()) for _ in jobs]
    assert [line["outcome"] for line in lines] == ["ok"] * len(jobs), lines
    return [line["result"] for line in lines]


def grown(process, *args):
    """Has as many spares made as there may be: jobs at once find none ready."""
    for _ in range(MOST + 1):
        ask(process, *[list(args)] * 4)
    wait_until(lambda: len(parked(process)) == MOST)
    return parked(process)


def test_a_job_gets_a_spare_and_no_two_jobs_the_same(pyspawner):
    with host_with_spares(pyspawner, "basic.sleep") as process:
        wait_until(lambda: len(parked(process)) == 1)
        spares = grown(process, 0.05)
        for _ in range(5):
            ask(process, [0])
            wait_until(lambda: len(parked(process)) == MOST)
            now = parked(process)
            assert len(set(spares) - set(now)) == 1 and not is_alive(*set(spares) - set(now))
            spares = now


def test_none_are_made_where_none_are_wanted(pyspawner):
    with host_with_spares(pyspawner, "basic.sleep", spares=0) as process:
        ask(process, [0], [0])
        time.sleep(0.3)
        assert children_of(host_of(process)) == []


def test_killed_spares_are_noticed(pyspawner):
    """At once, and also if a job comes in the same moment."""
    with host_with_spares(pyspawner, "basic.echo") as process:
        spares = grown(process, "echo")
        for pid in spares:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(parked(process)) == MOST and not set(spares) & set(children_of(host_of(process))))
        for number in range(20):
            for pid in parked(process):
                os.kill(pid, signal.SIGKILL)
            assert ask(process, [number])[0]["args"] == [number]


def test_spares_that_end_by_themselves_are_not_made_again_and_again(pyspawner, open_folder):
    (open_folder / "ends.py").write_text(
        "import os, threading, pyspawner_host\n"
        "@pyspawner_host.after_clone\n"
        "def end(): threading.Timer(0.01, os._exit, [0]).start()\n"
        "def main(): pass\n"
    )
    made = set()
    with host_with_spares(pyspawner, "ends.main", path=open_folder) as process:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            made.update(children_of(host_of(process)))
            time.sleep(0.001)
    assert 1 < len(made) < 8


def test_a_spare_has_the_streams_and_hooks_of_no_job(pyspawner, open_folder):
    (open_folder / "hooked.py").write_text(
        "import os, pyspawner_host\n"
        "SEEN = []\n"
        "@pyspawner_host.after_clone\n"
        "def look():\n"
        "    SEEN.extend([pyspawner_host.job_id(), pyspawner_host.deadline(), os.read(0, 1).decode()])\n"
        "    print('hook')\n"
        "def main(): return SEEN, [n for n in range(50) if os.path.exists(f'/proc/self/fd/{n}')]\n"
    )
    log = (open_folder / "log").open("wb")
    with log, host_with_spares(pyspawner, "hooked.main", path=open_folder, log=log) as process:
        wait_until(lambda: parked(process))
        [(seen, descriptors)] = ask(process, [])
        assert seen == [None, None, ""] and descriptors == [0, 1, 2]
    assert b"hook" in (open_folder / "log").read_bytes()


@pytest.mark.parametrize("is_put_back", [False, True])
def test_a_file_that_the_host_hides_later_is_in_no_spares_sight(pyspawner, open_folder, is_put_back):
    """Replaced while a spare waits, and perhaps put back: what covered it is gone then too.

    The control: a job that has the spare already sees it.
    """
    secret = open_folder / "secret"
    secret.write_text("first")
    config = f'[profile.default]\nhide = ["{secret}"]\n'
    read = ["read_when_told", str(secret), str(open_folder / "go")]
    (open_folder / "late.py").write_text(
        "import os, time\n"
        "def main(what, path, go):\n"
        "    while what == 'read_when_told' and not os.path.exists(go): time.sleep(0.01)\n"
        "    return open(path).read()\n"
    )
    with host_with_spares(pyspawner, "late.main", path=open_folder, config=config) as process:
        wait_until(lambda: parked(process))
        process.stdin.write(json.dumps(read).encode() + b"\n")
        process.stdin.flush()
        wait_until(lambda: len(children_of(host_of(process))) > len(parked(process)))
        wait_until(lambda: parked(process))
        time.sleep(0.3)  # until the first job waits
        (open_folder / "kept").hardlink_to(secret)
        (open_folder / "new").write_text("second")
        (open_folder / "new").rename(secret)
        if is_put_back:
            (open_folder / "kept").rename(secret)
        assert ask(process, ["read", *read[1:]]) == [""]
        (open_folder / "go").touch()
        line = json.loads(process.stdout.readline())
        assert line["result"] == ("first" if is_put_back else "second"), "this job had its spare before"


@pytest.mark.parametrize("is_remote", [True, False])
def test_none_are_kept_where_to_look_at_a_hidden_name_may_take_for_ever(pyspawner, remote_folder, is_remote):
    secret = (remote_folder if is_remote else remote_folder.parent / "served") / "secret"
    secret.write_text("secret")
    config = f'[profile.default]\nhide = ["{secret}"]\n'
    with host_with_spares(pyspawner, "basic.echo", config=config) as process:
        assert ask(process, [1])[0]["args"] == [1]
        if not is_remote:
            wait_until(lambda: parked(process))
        time.sleep(0.5)
        assert bool(children_of(host_of(process))) is not is_remote


def test_nothing_is_left_of_many(pyspawner):
    with host_with_spares(pyspawner, "basic.echo") as process:
        grown(process, 1)

        def state():
            host = host_of(process)
            return unslotted(host), len(os.listdir(f"/proc/{host}/task")), len(children_of(host))

        before = state()
        for number in range(100):
            ask(process, *[[number]] * 4)
        wait_until(lambda: state() == before)
