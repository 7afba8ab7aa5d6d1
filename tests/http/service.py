"""How tests start a service and talk to it: over HTTP as anybody would, with the standard library's client."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driving import PYSPAWNER
from processes import wait_until

JOBS = Path(__file__).parent / "jobs"


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    def problem(self):
        """Kind and detail of a problem document."""
        assert self.headers["content-type"] == "application/problem+json", self
        document = self.json
        assert document["status"] == self.status and document["title"] and document["detail"]
        return document["type"].removeprefix("urn:pyspawner:problem:"), document["detail"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Service:
    """A service that runs. ``address`` is a port of this machine, or the path of a socket."""

    process: subprocess.Popen
    address: int | str
    log: list[str]
    token: str | None = None

    def connection(self, timeout=30.0):
        if isinstance(self.address, int):
            return http.client.HTTPConnection("127.0.0.1", self.address, timeout=timeout)
        return _UnixConnection(self.address, timeout)

    def open(self, method, path, body=None, headers=(), timeout=30.0):
        """The connection and its response, whose body is not read yet."""
        sent = {"content-type": "application/json"} if body is not None else {}
        if self.token:
            sent["authorization"] = f"Bearer {self.token}"
        sent.update(headers)
        if body is not None and not isinstance(body, (bytes, str)) and not hasattr(body, "__next__"):
            body = json.dumps(body)
        connection = self.connection(timeout)
        connection.request(method, path, body, {k: v for k, v in sent.items() if v is not None})
        return connection, connection.getresponse()

    def ask(self, method, path, body=None, headers=(), timeout=30.0):
        connection, response = self.open(method, path, body, headers, timeout)
        try:
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def run(self, *args, headers=(), **options):
        """The record of a job."""
        answer = self.ask("POST", "/v1/jobs", {"args": args, **options}, headers)
        assert answer.status == 200, answer
        return answer.json

    def begin(self, *args, headers=(), **options):
        """Begins a job that nobody waits for: its path."""
        headers = {"prefer": "respond-async", **dict(headers)}
        answer = self.ask("POST", "/v1/jobs", {"args": args, **options}, headers)
        assert answer.status == 202 and answer.headers["preference-applied"] == "respond-async", answer
        assert answer.headers["location"] == f"/v1/jobs/{answer.json['job']}"
        return answer.headers["location"]

    def ended(self, path, timeout=20.0):
        """The record of a job that was begun."""
        wait_until(lambda: self.ask("GET", path).json["state"] == "ended", timeout)
        return self.ask("GET", path).json["record"]

    def map(self, lines, ordered=False):
        body = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        path = "/v1/map?ordered=true" if ordered else "/v1/map"
        answer = self.ask("POST", path, body, {"content-type": "application/x-ndjson"})
        assert answer.status == 200, answer
        return [json.loads(line) for line in answer.body.splitlines()]

    def metric(self, name):
        text = self.ask("GET", "/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found.group(1))

    def is_ready(self):
        try:
            return self.ask("GET", "/readyz", headers={"authorization": None}).status == 200
        except OSError:
            return False


@dataclass
class Event:
    name: str
    id: str
    data: dict


def events(response):
    """The events of a stream, as they come."""
    fields = {}
    for line in iter(response.readline, b""):
        line = line.decode().rstrip("\n")
        if line == "":
            if "event" in fields:
                yield Event(fields["event"], fields["id"], json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


@contextmanager
def serving(
    *flags,
    address="127.0.0.1:0",
    config=None,
    tmp_path=None,
    token=None,
    status=0,
    child_main="web.main",
    jobs=JOBS,
):
    """A service, which ends on SIGTERM with this status."""
    command = [PYSPAWNER, "serve", "-v", "--child-main", child_main, "--path", jobs, "--python", sys.executable]
    if config is not None:
        path = tmp_path / "pyspawner.toml"
        path.write_text(config)
        command += ["--config", path]
    command += ["--http", address, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = []
        reader = threading.Thread(target=lambda: log.extend(_noted(process.stderr, log)), daemon=True)
        reader.start()
        try:
            yield _started(process, address, log, token)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=40) == status, log
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join(timeout=5)


def _noted(stream, log):
    for line in stream:
        log.append(line)
    return ()


def _started(process, address, log, token):
    if address.startswith("unix:"):
        where = address.removeprefix("unix:")
        wait_until(lambda: Path(where).exists() or process.poll() is not None)
    else:
        wait_until(lambda: _port(log) is not None or process.poll() is not None)
        where = _port(log)
    assert process.poll() is None, log
    service = Service(process, where, log, token)
    wait_until(service.is_ready)
    return service


def _port(log):
    text = "".join(log)
    found = re.search(r"listening at http://[^\s]+?:(\d+)", text)
    return int(found.group(1)) if found else None
