"""`make demo`, whose figures the demo itself compares with what pandas computes."""

import json
import os
import subprocess
import sys

from driving import PYSPAWNER, ROOT


def test_the_demo(pyspawner):
    command = [sys.executable, ROOT / "examples/flights/demo.py"]
    environment = {**os.environ, "PYSPAWNER": str(PYSPAWNER)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "336,776 flights in all. Every figure\nequals what pandas computes directly." in done.stdout
    results = [json.loads(line) for line in (ROOT / "demo-results.ndjson").read_text().splitlines()]
    assert len(results) == 365 and {result["outcome"] for result in results} == {"ok"}
    # The same over HTTP, and a picture that came back as a file.
    assert "has computed the same, from lines that curl sent and read." in done.stdout
    assert "month 12:  16.6 minutes\n" in done.stdout
    picture = (ROOT / "demo-delays.svg").read_text()
    assert picture.startswith("<svg ") and picture.count("<rect ") == 12
