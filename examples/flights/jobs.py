"""One job of the demo: a day of departures from New York City's airports in 2013."""

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
