"""What a hostile job is reported as, what it leaves, and what a sibling beside it notices."""

import json
import os
import random
import signal
import struct
import time

import pytest
from attacking import ATTACKS, Running
from driving import IN_VM
from processes import children_of, wait_until

LIMITS = '[profile.default.limits]\nwall = "1s"\noutput = "64K"\n'


def run(pyspawner, what, *args):
    """The job's line, with an honest sibling beside it and nothing left behind it."""
    with Running(pyspawner, "outcomes.main", "-j", "2", config=LIMITS) as running:
        running.send(what, *args)
        running.send("honest")
        running.send("honest")
        lines = {line["id"]: line for line in (running.line() for _ in range(3))}
        assert children_of(running.host) == []
        tasks = os.listdir(f"/proc/{running.host}/task")
        assert len(tasks) == 2, "the host has its two threads"
    assert [lines[number]["result"] for number in ("2", "3")] == ["honest", "honest"]
    return lines["1"]


def record(tag, payload, length=None):
    return (tag.encode() + struct.pack("<I", len(payload) if length is None else length)).decode("latin-1") + payload


@pytest.mark.parametrize(
    "what", ["replace_streams", "replace_json", "replace_exit", "replace_shutdown", "fail_at_exit", "replace_builtins"]
)
def test_an_interpreter_turned_upside_down_hurts_only_itself(pyspawner, what):
    line = run(pyspawner, what)
    assert line["outcome"] in ("ok", "exited"), line
    if line["outcome"] == "ok":
        assert line["result"] == "returned"
    else:
        assert (line["exit_code"], line["result"]) == (1, None) and line["stderr"]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("None", 0), ("0", 0), ("256", 0), ("-1", 255), ("True", 1), ("2**80", 255), ("'text'", 1),
        ("1.5", 1), ("object()", 1), ("[]", 1), ("(3,)", 3), ("b''", 1),
    ],
)  # fmt: skip
def test_odd_exit_statuses(pyspawner, status, code):
    line = pyspawner.job("outcomes.leave", status, path=ATTACKS)
    assert (line["outcome"], line["exit_code"], line["result"]) == ("exited" if code else "ok", code, None)


@pytest.mark.parametrize(
    ("what", "outcome", "code"),
    [
        ("leave_at_once", "ok", 0),
        ("exit_at_exit", "exited", 7),
        ("unprintable", "exited", 1),
        ("leave_by_base_exception", "exited", 1),
        ("leave_by_excepthook", "ok", 0),
        ("overflow_stack", "signaled", None),
        ("close_all", "exited", 1),
    ],
)
def test_ends(pyspawner, what, outcome, code):
    line = run(pyspawner, what)
    assert (line["outcome"], line["exit_code"], line["result"]) == (outcome, code, None), line


@pytest.mark.parametrize(
    ("what", "args", "outcome"),
    [
        ("large", [1 << (28 if IN_VM else 30)], "output_limit"),
        ("large", [1 << 20], "output_limit"),
        ("deep", [100_000], "invalid_result"),
        ("strange", ["object"], "invalid_result"),
        ("strange", ["bytes"], "invalid_result"),
    ],
)
def test_results_that_cannot_be_passed_on(pyspawner, what, args, outcome):
    # A gigabyte takes its time; the limit on output is what ends it.
    config = LIMITS.replace('"1s"', '"60s"')
    done = pyspawner.map("outcomes.main", [[what, *args], ["honest"]], "--ordered", config=config, path=ATTACKS)
    first, second = done.lines
    assert (first["outcome"], first["result"], second["result"]) == (outcome, None, "honest"), first["detail"]


def test_ordinary_results_are_passed_on(pyspawner):
    """The control: what is within the limit, not too deep, and a number."""
    config = LIMITS.replace('"64K"', '"40M"').replace('"1s"', '"60s"')
    jobs = [["large", 32 << 20], ["deep", 100], ["number", "1.5"]]
    done = pyspawner.map("outcomes.main", jobs, "--ordered", config=config, path=ATTACKS)
    assert [line["outcome"] for line in done.lines] == ["ok"] * 3
    large, deep, number = (line["result"] for line in done.lines)
    assert (len(large), number) == (32 << 20, 1.5) and json.dumps(deep).count("[") >= 100


@pytest.mark.parametrize(
    "forged",
    [
        record("R", "1", length=0xFFFFFFFF),
        record("R", "1", length=2),
        "R",
        "R\x01\0",
        record("R", "not json"),
        record("R", ""),
        record("R", "[1,\n2]"),
        record("R", "1") + "R\xff",
        record("R", "NaN"),
        record("R", "1") * 1000 + record("R", '{"a":'),
        "\0" * 50_000,
    ],
    ids=lambda text: repr(text[:14]),
)
def test_forged_results_are_not_passed_on(pyspawner, forged):
    line = run(pyspawner, "forge", forged)
    assert (line["outcome"], line["exit_code"], line["result"]) == ("invalid_result", 0, None), line
    assert line["detail"]


@pytest.mark.parametrize("json", ["[" * 20_000 + "]" * 20_000, "1" * 5_000], ids=["deep", "large number"])
def test_a_result_that_stops_its_reader_is_not_passed_on(pyspawner, json):
    """Python's decoder, for one, raises at some depth, and at 4,300 digits."""
    line = run(pyspawner, "forge", record("R", json))
    assert (line["outcome"], line["result"]) == ("invalid_result", None)


def test_a_forged_result_that_is_json_is_the_jobs_own_word(pyspawner):
    """A job may return what it likes: the last record counts, and the outcome is not in it."""
    forged = '{"id":"2","outcome":"timed_out"}'
    line = run(pyspawner, "forge", record("R", "1") * 500 + record("R", forged))
    assert line["id"] == "1" and line["outcome"] == "ok" and line["result"] == {"id": "2", "outcome": "timed_out"}


@pytest.mark.parametrize("name", ["mount", "\n{}\n", "\xff", "x" * 1000])
def test_a_job_cannot_claim_to_have_been_blocked(pyspawner, name):
    line = run(pyspawner, "forge", record("B", name))
    assert line["outcome"] == "ok" and line["signal"] is None
    # One that is blocked may misname the call (docs/sandbox.md), on its own line.
    line = run(pyspawner, "forge", record("B", name), "block")
    assert (line["outcome"], line["signal"]) == ("blocked_syscall", signal.SIGSYS)


@pytest.mark.parametrize(
    "what",
    [
        "close_all_and_run_on",
        "ignore_signals",
        "stop_itself",
        "thread_that_never_ends",
        "hold_the_interpreter",
    ],
)
def test_what_runs_on_is_ended_at_its_limit(pyspawner, what):
    line = run(pyspawner, what)
    assert line["outcome"] == "timed_out" and 1000 <= line["wall_ms"] < 5000


@pytest.mark.parametrize("what", ["flood", "forge_endlessly"])
def test_floods_end_at_the_limit_on_output(pyspawner, what):
    line = run(pyspawner, what)
    assert (line["outcome"], line["truncated"]) == ("output_limit", True)
    assert all(len(line[stream]) <= 64 << 10 for stream in ("stdout", "stderr"))


def test_descendants_that_hold_the_pipes_end_with_the_job(pyspawner):
    line = run(pyspawner, "leave_pipes_to_descendants")
    assert (line["outcome"], line["result"]) == ("ok", "returned") and line["wall_ms"] < 500


def fuzzed(pyspawner, seconds):
    """Jobs that say anything on their result channel and end anyhow, for so long, in one host: how many there were."""
    ends = {"ok", "invalid_result", "exited", "signaled", "timed_out", "output_limit", "blocked_syscall"}
    rng = random.Random()
    count, end = 0, time.monotonic() + seconds
    with Running(pyspawner, "outcomes.main", "-j", "2", config=LIMITS) as running:
        while time.monotonic() < end:
            for _ in range(20):
                running.send("say_anything", rng.getrandbits(32))
            running.send("honest")
            lines = [running.line() for _ in range(21)]
            assert [line["result"] for line in lines].count("honest") == 1
            assert {line["outcome"] for line in lines} <= ends, lines
            for line in lines:
                assert line["outcome"] == "ok" or line["result"] is None, line
                assert len(line["detail"] or "") < 10_000 and (line["detail"] or "").isprintable(), line
            count += 20
        wait_until(lambda: children_of(running.host) == [])
        assert len(os.listdir(f"/proc/{running.host}/task")) == 2, "the host has its two threads"
    return count


def test_fuzzing_what_comes_from_a_child(pyspawner):
    assert fuzzed(pyspawner, 5) >= 100


@pytest.mark.soak
def test_fuzzing_what_comes_from_a_child_for_long(pyspawner):
    print(f"{fuzzed(pyspawner, int(os.environ.get('FUZZ_SECONDS', 600)))} jobs")
