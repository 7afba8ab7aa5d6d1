#!/usr/bin/env python3
"""Every figure of docs/performance.md, side by side in one run.

    make bench

Writes them into docs/performance.md, between its two marks, and into target/bench/performance.json.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import contenders
from environments import PYSPAWNER, ROOT, WORK, need_bubblewrap, python_of_old_package

PRELOAD = ["numpy", "pandas", "pyarrow"]
PAUSE = 0.02  # seconds between samples, in which a spare becomes ready
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "200"))
SLOW_ROUNDS = max(ROUNDS // 20, 3)  # of those that take half a second
THREADS = (1, 2, 4, 8)
PAGE = ROOT / "docs/performance.md"
MARKS = "<!-- figures -->\n", "<!-- end of figures -->\n"


def main():
    WORK.mkdir(parents=True, exist_ok=True)
    need_bubblewrap()
    old_python = python_of_old_package(*PRELOAD, "python-dateutil", "tzdata")
    figures = {
        "machine": machine(),
        "latency": latency(old_python, PRELOAD),
        "latency, nothing preloaded": latency(old_python, []),
        "floor": contenders.floor(PRELOAD, ROUNDS),
        "throughput": throughput(old_python, PRELOAD),
        "throughput, nothing preloaded": throughput(old_python, []),
        "memory": memory(old_python),
        "heap": heap(old_python),
        "thousand": thousand(),
    }
    figures["load"] = load(figures["throughput"]["this project"])
    (WORK / "performance.json").write_text(json.dumps(figures, indent=1))
    text = report(figures)
    head, rest = PAGE.read_text().split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    PAGE.write_text(head + MARKS[0] + text + MARKS[1] + tail)
    print(text)


def machine():
    """What the figures belong to."""
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    version = subprocess.run([PYSPAWNER, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return (
        f"{os.cpu_count()} processors ({model[0] if model else platform.machine()}), Linux {platform.release()}, "
        f"CPython {platform.python_version()}, {version}, {time.strftime('%Y-%m-%d')}"
    )


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def opened(*made):
    try:
        yield made
    finally:
        for contender in made:
            contender.close()


# ---- measuring -----------------------------------------------------------------------------


def in_turn(named, rounds):
    """Samples of each contender, taken in turn: milliseconds to the first byte, and to the end."""
    for contender in named.values():
        for _ in range(3):
            contender.sample()
            time.sleep(PAUSE)
    found = {name: [] for name in named}
    for _ in range(rounds):
        for name, contender in named.items():
            time.sleep(PAUSE)
            found[name].append(contender.sample())
    return {name: summary(samples) for name, samples in found.items()}


def summary(samples):
    first, reaped = zip(*samples, strict=True)
    return {
        "first p50": middle(first),
        "first p99": high(first),
        "reaped p50": middle(reaped),
        "reaped p99": high(reaped),
    }


def middle(values):
    return statistics.median(values)


def high(values):
    return sorted(values)[min(len(values) - 1, len(values) * 99 // 100)]


def latency(old_python, preload):
    say(f"latency with {preload or 'nothing'} preloaded")
    fast = {
        "this project, ready spare": contenders.this_project(preload),
        "this project, cold": contenders.this_project_cold(preload),
        "pyspawner 1.0.0": contenders.old_package(old_python, preload),
        "multiprocessing forkserver": contenders.forkserver(preload),
    }
    slow = {"python -c": contenders.FreshPython(preload), "bubblewrap python -c": contenders.bubblewrap(preload)}
    with opened(*fast.values(), *slow.values()):
        return in_turn(fast, ROUNDS) | in_turn(slow, SLOW_ROUNDS)


def throughput(old_python, preload):
    """Jobs per second, each contender at its best."""
    say(f"throughput with {preload or 'nothing'} preloaded")
    count = ROUNDS * 4
    best = {}
    with opened(contenders.this_project(preload), contenders.old_package(old_python, preload)) as (this, old):
        for threads in THREADS:
            for name, contender in (("this project", this), ("pyspawner 1.0.0", old)):
                best[name] = max(best.get(name, 0), contender.ask("throughput", threads, count))
    best["pyspawner map"] = max(contenders.map_throughput(preload, at_once, count * 2) for at_once in (2, 4))
    return best


def memory(old_python):
    say("memory")
    with opened(contenders.this_project_cold(PRELOAD), contenders.old_package(old_python, PRELOAD)) as (this, old):
        return {"this project": this.ask("private_memory", 10), "pyspawner 1.0.0": old.ask("private_memory", 10)}


def heap(old_python):
    """Cold clones and their ends with 1 GiB of live objects more."""
    say("1 GiB of live objects")
    big = [*PRELOAD, "bench_gibibyte"]
    named = {
        "this project": contenders.this_project_cold(PRELOAD),
        "this project, 1 GiB": contenders.this_project_cold(big),
        "pyspawner 1.0.0": contenders.old_package(old_python, PRELOAD),
        "pyspawner 1.0.0, 1 GiB": contenders.old_package(old_python, big),
    }
    with opened(*named.values()):
        return in_turn(named, ROUNDS // 2)


def thousand():
    """Cold clones among a thousand other children."""
    say("1,000 children")
    with opened(contenders.this_project_cold(PRELOAD)) as (this,):
        alone = summary(this.ask("among", 0, ROUNDS))
        return {"alone": alone, "among 1,000": summary(this.ask("among", 1000, ROUNDS))}


def load(best):
    """Ready spares while jobs come at half the rate that is possible."""
    say("50 % load")
    with opened(contenders.this_project(PRELOAD)) as (this,):
        first = this.ask("load", best / 2, max(ROUNDS * 2 / best, 2))
    return {"first p50": middle(first), "first p99": high(first), "jobs per second": best / 2}


# ---- reporting -----------------------------------------------------------------------------


def report(figures):
    lines = [f"Machine: {figures['machine']}.\n", "\n"]
    for title, key in (
        ("numpy, pandas and pyarrow preloaded", "latency"),
        ("Nothing preloaded", "latency, nothing preloaded"),
    ):
        lines += latency_table(title, figures[key])
    lines += throughput_table(figures)
    lines += aims_table(figures)
    return "".join(lines)


def latency_table(title, rows):
    old = rows["pyspawner 1.0.0"]
    yield f"{title}, milliseconds from the call:\n\n"
    yield "| | first byte, median | p99 | reaped, median | p99 | first byte: 1.0.0 takes |\n| --- | --- | --- | --- | --- | --- |\n"
    for name, row in rows.items():
        cells = [f"{row[key]:.2f}" for key in ("first p50", "first p99", "reaped p50", "reaped p99")]
        yield f"| {name} | {' | '.join(cells)} | {old['first p50'] / row['first p50']:.2f} × |\n"
    yield "\n"


def throughput_table(figures):
    yield "Jobs per second at the best number of threads:\n\n| | preloaded | nothing preloaded |\n| --- | --- | --- |\n"
    full, bare = figures["throughput"], figures["throughput, nothing preloaded"]
    for name in full:
        yield f"| {name} | {full[name]:.0f} | {bare[name]:.0f} |\n"
    yield "\n"


def aims_table(figures):
    """The ratios that this project aims at."""
    rows, floors = figures["latency"], figures["floor"]["latency_ms"]
    old, spare, cold = rows["pyspawner 1.0.0"], rows["this project, ready spare"], rows["this project, cold"]
    full, bare, heap = figures["throughput"], figures["throughput, nothing preloaded"], figures["heap"]
    thousand, load = figures["thousand"], figures["load"]
    inside = floors["cold"]["first_byte"]["p50"] / floors["floor"]["first_byte"]["p50"]
    aims = [
        ("ready spare, 1.0.0 ÷ this, first byte, median", old["first p50"] / spare["first p50"], "at least 30"),
        ("the same, p99", old["first p99"] / spare["first p99"], "at least 15"),
        ("cold, 1.0.0 ÷ this, first byte, median", old["first p50"] / cold["first p50"], "at least 3"),
        ("cold ÷ floor, first byte, in the host", inside, "at most 1.25"),
        ("`map` ÷ 1.0.0, jobs per second", full["pyspawner map"] / full["pyspawner 1.0.0"], "at least 3"),
        ("the same with nothing preloaded", bare["pyspawner map"] / bare["pyspawner 1.0.0"], "at least 4"),
        (
            "1 GiB of live objects more, cold, reaped",
            heap["this project, 1 GiB"]["reaped p50"] / heap["this project"]["reaped p50"],
            "at most 1.3",
        ),
        ("the same in 1.0.0", heap["pyspawner 1.0.0, 1 GiB"]["reaped p50"] / heap["pyspawner 1.0.0"]["reaped p50"], ""),
        (
            "private memory of an idle child ÷ 1.0.0's",
            figures["memory"]["this project"] / figures["memory"]["pyspawner 1.0.0"],
            "at most 0.7",
        ),
        (
            "cold among 1,000 children ÷ alone, first byte",
            thousand["among 1,000"]["first p50"] / thousand["alone"]["first p50"],
            "at most 1.2",
        ),
        (
            f"ready spares at {load['jobs per second']:.0f} jobs/s: p99 ÷ median",
            load["first p99"] / load["first p50"],
            "at most 5",
        ),
    ]
    yield "| ratio | measured | aim |\n| --- | --- | --- |\n"
    for name, ratio, aim in aims:
        yield f"| {name} | {ratio:.2f} | {aim} |\n"
    yield "\n"


if __name__ == "__main__":
    main()
