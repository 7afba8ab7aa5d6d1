"""The service's description and its metrics, read as the ecosystem's tools read them."""

import importlib
import subprocess
import sys

import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families
from service import serving


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path=tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module")
def generated(service, tmp_path_factory):
    """A client that a generator has made from the description."""
    folder = tmp_path_factory.mktemp("client")
    description = folder / "openapi.json"
    description.write_bytes(service.ask("GET", "/openapi.json").body)
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", description, "--meta", "none"]
    subprocess.run([*command, "--output-path", folder / "generated"], check=True, capture_output=True)
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"generated.{name}")
    sys.path.remove(str(folder))


def test_the_description_is_valid_and_has_every_path(service):
    answer = service.ask("GET", "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    validate(answer.json)
    paths = {path: sorted(methods) for path, methods in answer.json["paths"].items()}
    assert paths == {
        "/healthz": ["get"],
        "/metrics": ["get"],
        "/readyz": ["get"],
        "/v1/jobs": ["post"],
        "/v1/jobs/{job}": ["delete", "get"],
        "/v1/jobs/{job}/events": ["get"],
        "/v1/map": ["post"],
    }
    for methods in answer.json["paths"].values():
        for operation in methods.values():
            assert operation["operationId"] and operation["summary"], operation


def test_a_generated_client_runs_follows_and_cancels_jobs(service, generated):
    client = generated("client").Client(base_url=f"http://127.0.0.1:{service.address}")
    request = generated("models.job_request").JobRequest
    run, get, cancel = (generated(f"api.jobs.{name}") for name in ("run_job", "get_job", "cancel_job"))

    record = run.sync(client=client, body=request(args=["echo", 1], timeout="5s", stdin="x"))
    assert (record.outcome, record.result, record.exit_code) == ("ok", [[1], {}], 0)

    files = generated("models.job_request_files_type_0").JobRequestFilesType0.from_dict({"a": "x"})
    record = run.sync(client=client, body=request(args=["read", "a"], files=files, collect=["a"]))
    assert record.result == ["x"] and record.files.to_dict() == {"a": {"text": "x"}}

    state = run.sync(client=client, body=request(args=["sleep", 60]), prefer="respond-async")
    assert state.state in ("queued", "running")
    assert cancel.sync_detailed(state.job, client=client).status_code == 204
    service.ended(f"/v1/jobs/{state.job}")
    assert get.sync(state.job, client=client).record.outcome == "cancelled"

    problem = run.sync(client=client, body=request(timeout="soon"))
    assert problem.status == 422 and "timeout: " in problem.detail


def test_metrics_are_read_by_prometheus_own_parser(service):
    service.run("echo")
    answer = service.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert families["pyspawner_jobs"].type == "counter"
    outcomes = {sample.labels["outcome"]: sample.value for sample in families["pyspawner_jobs"].samples}
    assert outcomes["ok"] >= 1 and len(outcomes) == 11
    assert families["pyspawner_run_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())


def test_what_requests_say_makes_no_series(service):
    before = service.ask("GET", "/metrics").body.count(b"\n")
    for n in range(20):
        service.run("echo", id=f"job-{n}")
        service.ask("GET", f"/nowhere-{n}")
    assert service.ask("GET", "/metrics").body.count(b"\n") == before
