"""What a stranger can send: it costs little, is answered in words, and others do not notice."""

import hashlib
import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import wait_until
from service import serving

CONFIG = '[pool]\nconcurrency = 2\n[serve]\nbody = "1M"\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(config=CONFIG, tmp_path=tmp_path_factory.mktemp("service")) as service:
        yield service


def raw(service, data, wait=20.0):
    """What is answered to bytes, up to the connection's end."""
    with socket.create_connection(("127.0.0.1", service.address), timeout=wait) as connection:
        try:
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


def post(body, *headers):
    lines = [b"POST /v1/jobs HTTP/1.1", b"Host: localhost", b"Content-Type: application/json", b"Connection: close"]
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expected a JSON array of arguments, or an object"),
        (b"7", "expected a JSON array of arguments, or an object"),
        (b"{", "the body: EOF"),
        (b"[1", "the body: EOF"),
        (b'["\xff"]', "the body: "),
        (b'{"arg": []}', "unknown field `arg`"),
        (b'{"args": {}}', "args: expected an array"),
        (b'{"kwargs": []}', "kwargs: expected an object"),
        (b'{"args": [], "args": []}', "duplicate field `args`"),
        (b'{"timeout": "soon"}', "is not a duration"),
        (b'{"timeout": 0}', "greater than zero"),
        (b'{"limits": {"memory": "x"}}', "limits.memory: "),
        (b'{"limits": {"pids": 2000}}', "limits.pids: expected no more than the profile's own limit"),
        (b'{"limits": {"wall": null, "output": "2M"}}', "limits.output: expected no more"),
        (b'{"env": {"A=B": "1"}}', "env: "),
        (b'{"env": {"A": "\\u0000"}}', "env: "),
        (b'{"env": {"A": 1}}', "the body: "),
        (b'{"profile": "wide"}', "profile: this service runs jobs with the profile"),
        (b'{"id": ["x"]}', "id: text of at most"),
    ],
)
def test_a_body_that_is_no_job_is_refused_in_words(service, body, words):
    answer = service.ask("POST", "/v1/jobs", body)
    assert answer.status == 422, answer
    kind, detail = answer.problem()
    assert kind == "invalid-request" and words in detail, detail


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/jobs", 405),
        ("PUT", "/v1/jobs", 405),
        ("GET", "/v1/jobs/a/b", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1/jobs/%ff", 404),
        ("POST", "/healthz", 405),
    ],
)
def test_what_there_is_not(service, method, path, status):
    answer = service.ask(method, path, b"[]" if method != "GET" else None)
    assert answer.status == status, answer
    answer.problem()


def test_a_query_that_is_none(service):
    for query in ("ordered=maybe", "order=true"):
        answer = service.ask("POST", f"/v1/map?{query}", b"", {"content-type": "application/x-ndjson"})
        assert answer.status == 422 and query.split("=")[0] in answer.problem()[1], answer


def test_a_body_that_is_too_large_is_refused_before_it_has_come(service):
    answer = raw(service, post(b"[", b"Content-Length: 1073741824"))
    assert b" 413 " in answer.partition(b"\r\n")[0] and b"1048576 bytes" in answer, answer
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    answer = raw(service, post(b"1\r\n[\r\n" + chunk * 3, b"Transfer-Encoding: chunked"))
    assert b" 413 " in answer.partition(b"\r\n")[0], answer[:200]


def test_a_line_of_a_stream_that_is_too_long_is_refused_and_the_next_is_run(service):
    records = service.map([b'["' + b"x" * (2 << 20) + b'"]\n', ["echo", 1], b'["' + b"y" * (3 << 20)])
    by_line = {record["line"]: record for record in records}
    assert [by_line[n]["outcome"] for n in (1, 2, 3)] == ["invalid_job", "ok", "invalid_job"]
    assert "the line is longer than 1048576 bytes (serve.body)" == by_line[1]["detail"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\0\1\2\3\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        # Two lengths, or a length and chunks: where two readers see two different requests ("request smuggling", RFC 9112, 6.3).
        post(b"[]0123456789", b"Content-Length: 2", b"Content-Length: 12"),
        post(b"[]", b"Content-Length: +2"),
        post(b"[]", b"Content-Length: 0x2"),
        post(b"2\r\n[]\r\n0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
        post(b"2;\n\r\n[]\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
        post(b"zz\r\n[]\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
        post(b"[]", b"Content-Length : 2"),
        post(b"[]", b" Content-Length: 2"),
    ],
)
def test_what_is_no_http_is_refused(service, request_bytes):
    answer = raw(service, request_bytes)
    status = answer.split(b" ")[1] if answer else b""
    assert status in (b"", b"400", b"413", b"414", b"422", b"431", b"505"), answer[:300]
    assert b'"outcome"' not in answer
    assert service.run("echo")["outcome"] == "ok"


def test_a_length_beside_chunks_is_one_request(service):
    body = b'8\r\n["echo"]\r\n0\r\n\r\n'
    answer = raw(service, post(body, b"Transfer-Encoding: chunked", b"Content-Length: 4"))
    assert answer.count(b"HTTP/1.1 ") == 1, answer


def test_a_head_that_does_not_come_ends_the_connection(service):
    begun = time.monotonic()
    assert b" 200 " not in raw(service, b"GET /healthz HTTP/1.1\r\nHost:")
    assert 5 < time.monotonic() - begun < 20


def latency(service, jobs=30):
    times = []
    for _ in range(jobs):
        begun = time.monotonic()
        assert service.run("echo")["outcome"] == "ok"
        times.append(time.monotonic() - begun)
    return sorted(times)[jobs // 2]


def memory(service):
    """Bytes that are resident in the host's processes."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for process in [pid, *children]:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) << 10
    return total


def test_a_thousand_connections_that_say_nothing_do_not_disturb_others(service):
    alone = latency(service)
    before = memory(service)
    with ExitStack() as stack:
        for n in range(1000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.address)))
            # Some have said a part.
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 9\r\n\r\n["[: n % 48])
        among = latency(service)
    assert among < 2 * alone + 0.01, (alone, among)
    assert memory(service) - before < 64 << 20


def test_bodies_that_stop_do_not_disturb_others(service):
    alone = latency(service)
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.address)))
            connection.sendall(post(b"[" + b" " * 50_000, b"Content-Length: 1000000"))
        assert latency(service) < 2 * alone + 0.01


def test_all_bodies_together_are_bounded(service):
    """Without a bound this is a gigabyte."""
    before = memory(service)
    with ExitStack() as stack:
        connections = []
        for _ in range(1000):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.address)))
            connection.settimeout(5)
            connections.append(connection)
            try:
                connection.sendall(post(b"[" + b" " * 1_000_000, b"Content-Length: 1048576"))
            except OSError:
                pass  # it has been refused
        time.sleep(1)
        assert memory(service) - before < 300 << 20
        refused = service.metric('pyspawner_requests_refused_total{reason="no_room"}')
        assert refused > 0
    wait_until(lambda: service.ask("POST", "/v1/jobs", ["echo"]).status == 200)


def test_event_streams_that_nobody_reads(service):
    alone = latency(service)
    before = memory(service)
    body = json.dumps(["write", "stdout", "x" * 1000, 900]).encode()
    with ExitStack() as stack:
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.address)))
            length = b"Content-Length: %d" % len(body)
            connection.sendall(post(body, length, b"Accept: text/event-stream"))
        wait_until(lambda: service.metric("pyspawner_jobs_waiting") == 0, 60)
        assert latency(service) < 2 * alone + 0.01
        assert memory(service) - before < 400 << 20


def test_records_that_nobody_reads_are_bounded(tmp_path):
    config = '[pool]\nconcurrency = 2\n[serve]\nresult_memory = "8M"\n'
    with serving(config=config, tmp_path=tmp_path) as service, ExitStack() as stack:
        before = memory(service)
        body = json.dumps(["write", "stdout", "x" * 1000, 1000]).encode()
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.address)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(post(body, b"Content-Length: %d" % len(body)))
            time.sleep(0.01)
        wait_until(lambda: service.metric("pyspawner_jobs_waiting") == 0, 60)
        wait_until(lambda: service.metric('pyspawner_requests_refused_total{reason="no_room"}') > 0)
        assert memory(service) - before < 100 << 20
        stack.close()
        wait_until(lambda: service.ask("POST", "/v1/jobs", ["echo"]).status == 200)


def test_wrong_tokens_at_speed_do_not_disturb_others(tmp_path):
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(b"alice").hexdigest()
    tokens.write_text(f'[tenant.a]\ntoken_sha256 = ["{digest}"]\n')
    with serving("--tokens", tokens, tmp_path=tmp_path, token="alice") as service:
        alone = latency(service)
        stop = threading.Event()

        def try_tokens():
            while not stop.is_set():
                assert service.ask("POST", "/v1/jobs", [], {"authorization": "Bearer x"}).status == 401

        threads = [threading.Thread(target=try_tokens) for _ in range(2)]
        for thread in threads:
            thread.start()
        among = latency(service)
        stop.set()
        for thread in threads:
            thread.join()
        # Two threads of this process share the interpreter with the one that measures.
        assert among < 2 * alone + 0.05, (alone, among)
