"""The demo's jobs: departures from New York City's airports in 2013, a day at a time or as a picture of the year."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

DATA = Path(__file__).parent / "data"


def warm_up():
    """Run in the host, once: what a first job would import and set up, no later one has to."""
    main(1, 1)


def main(month, day):
    """Read one day's rows and summarise them."""
    rows = pq.ParquetFile(DATA / f"{month:02}-{day:02}.parquet").read(use_threads=False).to_pandas(use_threads=False)
    assert (rows["month"] == month).all() and (rows["day"] == day).all()
    by_carrier = rows.groupby("carrier")["dep_delay"].mean()
    return {
        "month": month,
        "day": day,
        "flights": len(rows),
        "mean_dep_delay": float(rows["dep_delay"].mean()),
        "most_delayed_carrier": by_carrier.idxmax(),
    }


def call(what, *args):
    """What the service calls: one job or the other."""
    return {"day": main, "picture": picture}[what](*args)


def picture():
    """Draw each month's mean delay into delays.svg, and say how far it is."""
    delays = []
    for month in range(1, 13):
        days = sorted(DATA.glob(f"{month:02}-*.parquet"))
        rows = pd.concat(pq.ParquetFile(day).read(columns=["dep_delay"], use_threads=False).to_pandas() for day in days)
        delays.append(float(rows["dep_delay"].mean()))
        print(f"month {month:2}: {delays[-1]:5.1f} minutes", flush=True)
    bars = "".join(
        f'<rect x="{40 * n + 8}" y="{150 - 5 * delay:.1f}" width="28" height="{5 * delay:.1f}" fill="steelblue"/>'
        f'<text x="{40 * n + 22}" y="166" font-size="12" text-anchor="middle">{n + 1}</text>'
        for n, delay in enumerate(delays)
    )
    title = '<text x="8" y="16" font-size="13">Mean departure delay by month, minutes</text>'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="490" height="175" font-family="sans-serif">{title}{bars}</svg>'
    )
    Path("delays.svg").write_text(svg)
    return delays
