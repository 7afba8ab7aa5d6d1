"""Jobs over HTTP: one at a time, asynchronously, followed live, and as a stream."""

import json
import signal
import threading
import time

import pytest
from processes import wait_until
from service import events, serving

CONFIG = "[pool]\nconcurrency = 2\nspares = 1\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(config=CONFIG, tmp_path=tmp_path_factory.mktemp("service")) as service:
        yield service


# ---- a job and its record ----------------------------------------------------------------------


def test_the_answer_is_the_record_that_map_writes(service):
    answer = service.ask("POST", "/v1/jobs", {"id": "mine", "args": ["echo", 1, "ä"], "kwargs": {"k": [None]}})
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    record = answer.json
    assert (record["id"], record["outcome"], record["exit_code"]) == ("mine", "ok", 0)
    assert record["result"] == [[1, "ä"], {"k": [None]}]
    assert record["wall_ms"] > 0 and record["queued_ms"] >= 0
    assert "line" not in record


def test_a_body_may_be_an_array_of_arguments(service):
    record = service.ask("POST", "/v1/jobs", ["echo", 5]).json
    assert record["result"] == [[5], {}]


def test_what_a_job_gets_besides_its_arguments(service):
    assert service.run("stdin", stdin="wörds\n")["result"] == "wörds\n"
    assert service.run("variables", "A", "B", env={"A": "1=2"})["result"] == ["1=2", None]
    assert service.run("job_id", id="x-1")["result"] == "x-1"
    assert 3 < service.run("time_left", timeout="5s")["result"] <= 5


def test_an_environment_of_one_job_is_no_other_jobs(service):
    service.run("variables", "A", env={"A": "1"})
    assert service.run("variables", "A")["result"] == [None]


def test_a_job_that_fails_is_an_answer_and_no_error(service):
    record = service.run("fail")
    assert (record["outcome"], record["exit_code"]) == ("exited", 1)
    assert record["stderr"].endswith("ValueError: no\n")
    assert service.run("sleep", 60, timeout=0.2)["outcome"] == "timed_out"
    assert service.run("flood", 2)["outcome"] == "output_limit"


def test_output_that_is_no_text_comes_as_base64(service):
    assert service.run("write", "stdout", "\xffa")["stdout_base64"] == "/2E="


# ---- jobs that nobody waits for ----------------------------------------------------------------


def test_an_asynchronous_job_is_asked_for_by_its_path(service):
    path = service.begin("steps", 2, 0.2)
    wait_until(lambda: service.ask("GET", path).json["state"] == "running")
    wait_until(lambda: service.ask("GET", path).json["progress"] is not None)
    assert service.ask("GET", path).json["progress"]["text"].startswith("step ")
    record = service.ended(path)
    assert record["result"] == 2 and path.endswith(record["id"])


def test_a_job_is_cancelled_and_cancelling_again_changes_nothing(service):
    path = service.begin("sleep", 60)
    wait_until(lambda: service.ask("GET", path).json["state"] == "running")
    begun = time.monotonic()
    for _ in range(2):
        answer = service.ask("DELETE", path)
        assert (answer.status, answer.body) == (204, b"")
    assert service.ended(path)["outcome"] == "cancelled"
    assert time.monotonic() - begun < 5
    assert service.ask("DELETE", path).status == 204


def test_a_job_that_waits_for_its_turn_is_cancelled_at_once(service):
    running = [service.begin("sleep", 60) for _ in range(2)]
    waiting = service.begin("echo")
    assert service.ask("GET", waiting).json["state"] == "queued"
    service.ask("DELETE", waiting)
    record = service.ended(waiting)
    assert record["outcome"] == "cancelled" and "waited for its turn" in record["detail"]
    for path in running:
        service.ask("DELETE", path)
        service.ended(path)


def test_there_is_no_job_of_another_name(service):
    for method in ("GET", "DELETE"):
        answer = service.ask(method, "/v1/jobs/0123456789abcdef")
        assert answer.status == 404 and answer.problem()[0] == "no-such-job"
    assert service.ask("GET", "/v1/jobs/0123456789abcdef/events").problem()[0] == "no-such-job"


def test_the_same_key_is_the_same_job(service):
    body = {"args": ["echo", 1]}
    first = service.ask("POST", "/v1/jobs", body, {"idempotency-key": "k-1"})
    again = service.ask("POST", "/v1/jobs", body, {"idempotency-key": "k-1"})
    assert first.body == again.body and first.headers["content-location"] == again.headers["content-location"]
    other = service.ask("POST", "/v1/jobs", {"args": ["echo"]}, {"idempotency-key": "k-1"})
    assert other.status == 422 and other.problem()[0] == "key-reused"


def test_two_requests_with_one_key_at_once_run_one_job(service):
    answers = []

    def ask():
        answers.append(service.ask("POST", "/v1/jobs", {"args": ["sleep", 0.5]}, {"idempotency-key": "k-2"}))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.headers["content-location"] for answer in answers}) == 1
    assert all(answer.json["result"] == 0.5 for answer in answers)


# ---- live ---------------------------------------------------------------------------------------


def test_events_come_as_they_happen(service):
    accept = {"accept": "text/event-stream"}
    connection, response = service.open("POST", "/v1/jobs", {"args": ["steps", 3, 0.3]}, accept)
    assert response.headers["content-type"] == "text/event-stream"
    begun, times, names = time.monotonic(), {}, []
    for event in events(response):
        names.append(event.name)
        # Python may write a line's end by itself.
        times.setdefault((event.data.get("text") or "").strip(), time.monotonic() - begun)
        if event.name == "result":
            record = event.data
    connection.close()
    assert names[:2] == ["queued", "started"] and names[-1] == "result"
    assert record["result"] == 3 and record["stdout"] == "step 0\nstep 1\nstep 2\n"
    assert times["step 2"] - times["step 0"] > 0.4  # not all at the end
    assert "progress" in names


def test_a_reader_goes_on_after_the_last_event_that_it_read(service):
    path = service.begin("steps", 3, 0.2)
    connection, response = service.open("GET", f"{path}/events")
    stream = events(response)
    read = [next(stream) for _ in range(4)]
    connection.close()
    service.ended(path)
    connection, response = service.open("GET", f"{path}/events", headers={"last-event-id": read[-1].id})
    rest = list(events(response))
    connection.close()
    both = [*read, *rest]
    assert "".join(event.data["text"] for event in both if event.name == "stdout") == "step 0\nstep 1\nstep 2\n"
    assert [event.name for event in both].count("started") == 1 and rest[-1].name == "result"


def test_both_streams_and_bytes_that_are_no_text_are_told(service):
    accept = {"accept": "text/event-stream"}
    connection, response = service.open("POST", "/v1/jobs", {"args": ["write", "stderr", "\xff"]}, accept)
    told = [event.data for event in events(response) if event.name == "stderr"]
    connection.close()
    assert told == [{"base64": "/w=="}]


def test_an_event_id_that_is_none_is_refused(service):
    path = service.begin("echo")
    answer = service.ask("GET", f"{path}/events", headers={"last-event-id": "7"})
    assert answer.status == 422 and answer.problem()[1].startswith("Last-Event-ID: ")


# ---- clients that go away ------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"accept": "text/event-stream"}])
def test_a_client_that_goes_away_ends_its_job(service, headers):
    ended = service.metric('pyspawner_jobs_total{outcome="cancelled"}')
    connection = service.connection()
    body = json.dumps({"args": ["sleep", 60]})
    connection.request("POST", "/v1/jobs", body, {"content-type": "application/json", **headers})
    wait_until(lambda: service.metric("pyspawner_jobs_running") == 1)
    connection.close()
    wait_until(lambda: service.metric("pyspawner_jobs_running") == 0, 10)
    assert service.metric('pyspawner_jobs_total{outcome="cancelled"}') == ended + 1


def test_a_job_with_a_key_goes_on_without_its_client(service):
    connection = service.connection()
    body = json.dumps({"args": ["sleep", 1]})
    headers = {"content-type": "application/json", "idempotency-key": "goes-on"}
    connection.request("POST", "/v1/jobs", body, headers)
    wait_until(lambda: service.metric("pyspawner_jobs_running") == 1)
    connection.close()
    answer = service.ask("POST", "/v1/jobs", {"args": ["sleep", 1]}, {"idempotency-key": "goes-on"})
    assert answer.json["result"] == 1


# ---- a stream of jobs ----------------------------------------------------------------------------


def test_every_line_has_one_record(service):
    lines = [["echo", n] for n in range(50)]
    records = service.map([*lines, b"\n", b"no job\n", {"id": "x", "args": ["fail"]}, {"arg": []}])
    assert len(records) == 53
    by_line = {record["line"]: record for record in records}
    # An empty line is none, and has no number.
    assert [by_line[n + 1]["result"] for n in range(50)] == [[[n], {}] for n in range(50)]
    assert by_line[51]["outcome"] == "invalid_job" and "expected a JSON array" in by_line[51]["detail"]
    assert (by_line[52]["id"], by_line[52]["outcome"]) == ("x", "exited")
    assert by_line[53]["outcome"] == "invalid_job" and "unknown field `arg`" in by_line[53]["detail"]


def test_records_come_in_order_if_that_is_wanted(service):
    lines = [["sleep", 0.3], ["echo"], ["sleep", 0.1], ["echo"]]
    assert [record["line"] for record in service.map(lines, ordered=True)] == [1, 2, 3, 4]
    assert [record["line"] for record in service.map(lines)][0] != 1


def test_records_come_while_lines_are_still_sent(service):
    go_on = threading.Event()

    def lines():
        yield b'["echo", 1]\n'
        assert go_on.wait(20)
        yield b'["echo", 2]\n'

    headers = {"content-type": "application/x-ndjson", "transfer-encoding": "chunked"}
    connection = service.connection()
    sent = threading.Thread(target=lambda: connection.request("POST", "/v1/map", lines(), headers, encode_chunked=True))
    sent.start()
    # The standard library reads a response only after the request: the socket is read as it is.
    wait_until(lambda: connection.sock is not None)
    received = b""
    while b'"line":1' not in received:
        received += connection.sock.recv(65536)
    go_on.set()
    sent.join()
    while b'"line":2' not in received:
        received += connection.sock.recv(65536)
    connection.close()


def test_a_slow_reader_slows_its_jobs(service):
    before = service.metric('pyspawner_jobs_total{outcome="ok"}')
    line = json.dumps(["write", "stdout", "x" * 100_000]).encode() + b"\n"
    connection, response = _slow_map(service, line, 300)
    time.sleep(3)
    ran = service.metric('pyspawner_jobs_total{outcome="ok"}') - before
    assert ran < 200, ran
    records = sum(1 for _ in response)
    connection.close()
    assert records == 300
    assert service.metric('pyspawner_jobs_total{outcome="ok"}') - before == 300


def _slow_map(service, line, count):
    """A stream whose lines are all sent, from a thread, and whose records nobody reads yet."""
    connection = service.connection()
    headers = {"content-type": "application/x-ndjson", "content-length": str(len(line) * count)}
    connection.putrequest("POST", "/v1/map")
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    threading.Thread(target=lambda: [connection.sock.sendall(line) for _ in range(count)], daemon=True).start()
    time.sleep(0.2)
    response = connection.response_class(connection.sock, method="POST")
    response.begin()
    return connection, response


def test_a_stream_that_breaks_off_ends_its_jobs(service):
    connection = service.connection()
    connection.putrequest("POST", "/v1/map")
    connection.putheader("content-type", "application/x-ndjson")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    line = b'["sleep", 60]\n'
    connection.send(b"%x\r\n%s\r\n" % (len(line), line))
    wait_until(lambda: service.metric("pyspawner_jobs_running") == 1)
    connection.close()
    wait_until(lambda: service.metric("pyspawner_jobs_running") == 0)


# ---- the end --------------------------------------------------------------------------------------


def test_what_was_taken_is_answered_before_the_end(tmp_path):
    with serving(config=CONFIG, tmp_path=tmp_path) as service:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(service.ask("POST", "/v1/jobs", {"args": ["sleep", 0.7]})))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: service.metric("pyspawner_jobs_waiting") == 4)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.ask("GET", "/readyz").status == 503)
        refused = service.ask("POST", "/v1/jobs", ["echo"])
        assert (refused.status, refused.problem()[0]) == (503, "draining") and int(refused.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join()
        assert [answer.json["result"] for answer in answers] == [0.7] * 6
        service.process.wait(timeout=20)


def test_what_does_not_end_in_time_is_cancelled_and_answered(tmp_path):
    with serving("--drain", "1s", config=CONFIG, tmp_path=tmp_path, status=128 + signal.SIGTERM) as service:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(service.ask("POST", "/v1/jobs", ["sleep", 60])))
        asking.start()
        wait_until(lambda: service.metric("pyspawner_jobs_running") == 1)
        service.process.send_signal(signal.SIGTERM)
        asking.join()
        assert answers[0].json["outcome"] == "cancelled"


def test_a_second_signal_ends_it_at_once(tmp_path):
    with serving(config=CONFIG, tmp_path=tmp_path, status=128 + signal.SIGTERM) as service:
        path = service.begin("sleep", 60)
        wait_until(lambda: service.ask("GET", path).json["state"] == "running")
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.ask("GET", "/readyz").status == 503)
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(timeout=20)
        assert time.monotonic() - begun < 6
