"""Who may ask, and how much each gets."""

import hashlib
import subprocess
import threading
import time

import pytest
from driving import PYSPAWNER
from processes import wait_until
from service import JOBS, Service, serving


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(
        f"""
        [operator]
        token_sha256 = ["{digest("operator")}"]
        [tenant.a]
        token_sha256 = ["{digest("alpha")}", "{digest("alpha-old")}"]
        concurrency = 1
        queue = 2
        [tenant.b]
        token_sha256 = ["{digest("beta")}"]
        """
    )
    return path


@pytest.fixture
def service(tmp_path, tokens):
    config = f'[pool]\nconcurrency = 2\nspares = 0\n[serve]\ntokens = "{tokens}"\n'
    with serving(config=config, tmp_path=tmp_path, token="alpha") as service:
        yield service


def of(service, token):
    return Service(service.process, service.address, service.log, token)


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer gamma", "Basic alpha", "alpha", f"Bearer {digest('alpha')}", "Bearer operator"]
)
def test_without_a_valid_token_there_is_nothing(service, header):
    for method, path, body in (("POST", "/v1/jobs", ["echo"]), ("GET", "/v1/jobs/x", None), ("POST", "/v1/map", b"")):
        answer = service.ask(method, path, body, {"authorization": header})
        assert answer.status == 401 and answer.problem()[0] == "unauthorized", answer
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert service.ask("GET", "/healthz", headers={"authorization": None}).status == 200


def test_each_of_a_tenants_tokens_is_valid(service):
    for token in ("alpha", "alpha-old", "beta"):
        assert of(service, token).run("echo", token)["result"] == [[token], {}]


def test_a_job_is_its_tenants_alone(service):
    path = service.begin("sleep", 5)
    other = of(service, "beta")
    assert other.ask("GET", path).status == other.ask("DELETE", path).status == 404
    assert other.ask("GET", f"{path}/events").status == 404
    key = {"idempotency-key": "same"}
    mine = service.ask("POST", "/v1/jobs", ["echo", 1], {**key, "prefer": "respond-async"}).json["job"]
    theirs = other.ask("POST", "/v1/jobs", ["echo", 2], key).json
    assert theirs["result"] == [[2], {}] and theirs["id"] != mine
    service.ask("DELETE", path)


def test_metrics_are_the_operators(service):
    assert service.ask("GET", "/metrics").status == 403
    assert service.ask("GET", "/metrics", headers={"authorization": None}).status == 401
    text = of(service, "operator").ask("GET", "/metrics").body.decode()
    assert "pyspawner_jobs_total" in text
    # Its token is no tenant's.
    assert of(service, "operator").ask("POST", "/v1/jobs", ["echo"]).status == 401


def test_a_tenant_has_its_share_of_places_and_of_the_queue(service):
    paths = [service.begin("sleep", 20) for _ in range(3)]
    states = [service.ask("GET", path).json["state"] for path in paths]
    wait_until(lambda: service.ask("GET", paths[0]).json["state"] == "running")
    assert states[1:] == ["queued", "queued"]  # though two may run
    full = service.ask("POST", "/v1/jobs", ["echo"])
    assert full.status == 429 and full.problem()[0] == "queue-full"
    assert 1 <= int(full.headers["retry-after"]) <= 60
    # Another tenant does not notice.
    begun = time.monotonic()
    assert of(service, "beta").run("echo")["outcome"] == "ok"
    assert time.monotonic() - begun < 5
    for path in paths:
        service.ask("DELETE", path)


def test_turns_go_round_between_tenants(tmp_path, tokens):
    config = f'[pool]\nconcurrency = 1\n[serve]\ntokens = "{tokens}"\n'
    with serving(config=config, tmp_path=tmp_path, token="beta") as service:
        running = service.begin("sleep", 1)
        wait_until(lambda: service.ask("GET", running).json["state"] == "running")
        many = [service.begin("sleep", 0.2) for _ in range(5)]
        one = of(service, "alpha").begin("echo")
        record = of(service, "alpha").ended(one)
        assert record["outcome"] == "ok"
        ended = [service.ask("GET", path).json["state"] == "ended" for path in many]
        assert sum(ended) <= 2, ended  # those of the other tenant that came before still wait
        for path in many:
            service.ended(path)


def test_a_turn_that_does_not_come_in_time(tmp_path):
    config = '[pool]\nconcurrency = 1\nqueue_timeout = "300ms"\n'
    with serving(config=config, tmp_path=tmp_path) as service:
        running = service.begin("sleep", 30)
        waited = service.ask("POST", "/v1/jobs", ["echo"])
        assert waited.status == 503 and waited.problem()[0] == "queue-timeout"
        assert "pool.queue_timeout" in waited.problem()[1]
        path = service.begin("echo")
        record = service.ended(path)
        assert record["outcome"] == "cancelled" and record["queued_ms"] >= 300
        service.ask("DELETE", running)


def test_time_in_the_queue_is_not_the_jobs(tmp_path):
    with serving(config="[pool]\nconcurrency = 1\n", tmp_path=tmp_path) as service:
        first = service.begin("sleep", 1)
        record = service.run("time_left", timeout=3)
        assert record["queued_ms"] > 300 and 2 < record["result"] <= 3
        service.ended(first)


def test_more_than_the_queue_holds_is_refused_and_all_that_was_taken_is_run(tmp_path):
    with serving(config="[pool]\nconcurrency = 2\nqueue = 4\n", tmp_path=tmp_path) as service:
        answers = []

        def ask():
            answers.append(service.ask("POST", "/v1/jobs", ["sleep", 0.5]))

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = [answer for answer in answers if answer.status == 200]
        assert {answer.status for answer in answers} == {200, 429}
        assert len(taken) >= 6 and all(answer.json["outcome"] == "ok" for answer in taken)
        refused = service.metric('pyspawner_requests_refused_total{reason="queue_full"}')
        assert refused == 20 - len(taken)


# ---- where the service listens ------------------------------------------------------------------------


def test_an_address_that_others_reach_needs_tokens(pyspawner_serve):
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:80"):
        said = pyspawner_serve("--http", address)
        assert "whoever reaches this address could run jobs; hint: --tokens FILE" in said, said


@pytest.fixture
def pyspawner_serve():
    """What ``pyspawner serve`` says that does not start."""

    def serve(*flags):
        command = [PYSPAWNER, "serve", "--child-main", "web.main", "--path", JOBS, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 125, done
        return done.stderr

    return serve


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "where to listen? hint: --socket PATH for the Python package, --http"),
        (["--http", "127.0.0.1"], "expected ADDRESS:PORT"),
        (["--http", "unix:"], "expected a path after unix:"),
        (["--http", "127.0.0.1:0", "--socket-mode", "0666"], "are of a Unix socket"),
        (["--http", "127.0.0.1:0", "--tokens", "/not-there.toml"], "the token file /not-there.toml: No such file"),
    ],
)
def test_what_cannot_be_served_is_told(flags, words):
    command = [PYSPAWNER, "serve", "--child-main", "web.main", "--path", JOBS, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and words in done.stderr, done


def test_two_services_at_one_port(tmp_path):
    with serving(tmp_path=tmp_path) as service:
        command = [
            PYSPAWNER,
            "serve",
            "--child-main",
            "web.main",
            "--path",
            JOBS,
            "--http",
            f"127.0.0.1:{service.address}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 125 and "listening at http://127.0.0.1" in done.stderr and "in use" in done.stderr


def test_a_unix_socket_is_its_users_alone_and_goes_with_the_service(tmp_path):
    path = tmp_path / "http.sock"
    with serving(address=f"unix:{path}") as service:
        assert path.stat().st_mode & 0o777 == 0o600
        assert service.run("echo", 1)["result"] == [[1], {}]
    assert not path.exists()


def test_a_web_page_cannot_ask_in_a_users_name(tmp_path):
    with serving(tmp_path=tmp_path) as service:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            answer = service.ask("POST", "/v1/jobs", ["echo"], {"host": host})
            assert answer.status in (400, 403), (host, answer)
        assert service.ask("POST", "/v1/jobs", ["echo"], {"host": "localhost:1"}).status == 200
        # What a page can send to another site without asking that first.
        for simple in ("text/plain", "application/x-www-form-urlencoded", None):
            answer = service.ask("POST", "/v1/jobs", ["echo"], {"content-type": simple})
            assert answer.status == 415, (simple, answer)
        assert service.ask("OPTIONS", "/v1/jobs", headers={"origin": "http://evil.example"}).status == 405
