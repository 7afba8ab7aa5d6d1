"""The service under more load than it can take: what is refused, what accepted jobs wait, what memory grows.

    benches/http_load.py [SECONDS]

First as many jobs as it can take at full load (each connection sends the next when the last is answered), then four times
that rate, whatever it answers (an open loop). Prints one JSON object.
"""

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYSPAWNER = os.environ.get("PYSPAWNER", str(ROOT / "target/release/pyspawner"))
JOBS = ROOT / "tests/http/jobs"
BODY = b'["echo", 1]'
REQUEST = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)
CONFIG = "[pool]\nqueue = 64\n"


class Connection:
    """One connection that is kept, and made anew where the service has closed it."""

    def __init__(self, port):
        self.port = port
        self.reader = None

    async def ask(self, request=REQUEST):
        """Status and body of an answer, and how many seconds it took."""
        begun = time.perf_counter()
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
        body = await self.reader.readexactly(length)
        return int(head.split(b" ", 2)[1]), body, time.perf_counter() - begun


async def full_load(port, seconds, connections):
    """Jobs a second, and what each took."""
    times = []
    end = time.perf_counter() + seconds

    async def work():
        connection = Connection(port)
        while time.perf_counter() < end:
            status, body, took = await connection.ask()
            assert status == 200 and json.loads(body)["outcome"] == "ok", body
            times.append(took)

    await asyncio.gather(*(work() for _ in range(connections)))
    return len(times) / seconds, times


async def open_loop(port, rate, seconds):
    """Requests at this rate, each at its time: statuses, and what the accepted took."""
    statuses, times, ids, free, tasks = Counter(), [], Counter(), [], set()

    async def one():
        connection = free.pop() if free else Connection(port)
        status, body, took = await connection.ask()
        free.append(connection)
        statuses[status] += 1
        if status == 200:
            times.append(took)
            ids[json.loads(body)["id"]] += 1

    begun = time.perf_counter()
    for n in range(int(rate * seconds)):
        delay = begun + n / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    assert set(ids.values()) <= {1}, "a job was answered twice"
    return statuses, times


def resident(pid):
    """Bytes of the host's own memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    host = children[0] if children else pid
    status = Path(f"/proc/{host}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) << 10


def percentile(times, share):
    return sorted(times)[min(int(len(times) * share), len(times) - 1)]


def main():
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(CONFIG)
        config.flush()
        command = [PYSPAWNER, "serve", "-v", "--http", "127.0.0.1:0", "--child-main", "web.main", "--path", str(JOBS)]
        command += ["--python", sys.executable, "--config", config.name]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        port = None
        for line in process.stderr:
            found = re.search(r"listening at http://[^\s]+?:(\d+)", line)
            port = int(found.group(1)) if found else port
            if "jobs are taken" in line:
                break
        # The log is read to its end, so that nobody waits for it.
        subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            figures = asyncio.run(measure(port, process.pid, seconds))
        finally:
            process.send_signal(signal.SIGTERM)
            figures_exit = process.wait(timeout=60)
    print(json.dumps({**figures, "exit_status": figures_exit}, indent=1))


async def measure(port, pid, seconds):
    await full_load(port, 2, 4)  # once around
    before = resident(pid)
    rate, full = await full_load(port, max(seconds // 4, 5), (os.cpu_count() or 1) + 64)
    statuses, accepted = await open_loop(port, 4 * rate, seconds)
    return {
        "full_load_jobs_per_second": round(rate),
        "full_load_p99_ms": round(percentile(full, 0.99) * 1e3, 1),
        "overload_requests_per_second": round(4 * rate),
        "overload_statuses": dict(statuses),
        "overload_accepted_per_second": round(len(accepted) / seconds),
        "overload_median_ms": round(statistics.median(accepted) * 1e3, 1),
        "overload_p99_ms": round(percentile(accepted, 0.99) * 1e3, 1),
        "p99_ratio": round(percentile(accepted, 0.99) / percentile(full, 0.99), 2),
        "memory_growth_mib": round((resident(pid) - before) / 2**20, 1),
    }


if __name__ == "__main__":
    main()
