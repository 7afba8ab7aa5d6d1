"""The log as objects, for those who collect it."""

import hashlib
import json

from service import serving


def lines(service):
    return [json.loads(line) for line in service.log]


def test_each_job_is_an_object_without_what_it_was_given_or_gave(tmp_path):
    secret = "pay-load"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tenant.research]\ntoken_sha256 = ["{digest}"]\n')
    with serving("--log-format", "json", "--tokens", tokens, "-vv", tmp_path=tmp_path, token=secret) as service:
        job = {
            "id": "night-1",
            "args": ["echo", secret],
            "stdin": secret,
            "files": {secret: secret},
            "env": {"S": secret},
        }
        service.ask("POST", "/v1/jobs", job)
        service.ask("POST", "/v1/jobs", {"args": ["write", "stderr", secret]})
        service.ask("POST", "/v1/jobs", f'{{"{secret}": 1}}')
    assert all({"time", "level", "message"} <= line.keys() for line in lines(service))
    (ended,) = [line for line in lines(service) if line.get("id") == "night-1"]
    assert (ended["tenant"], ended["outcome"], ended["level"]) == ("research", "ok", "info")
    assert ended["wall_ms"] > 0 and ended["queued_ms"] >= 0 and len(ended["job"]) == 32
    assert secret not in "".join(service.log)


def test_text_has_the_same_by_name(tmp_path):
    with serving(tmp_path=tmp_path) as service:
        service.run("echo", id="night-1")
    (ended,) = [line for line in service.log if "a job has ended" in line]
    assert ' id="night-1" ' in ended and ' outcome="ok" ' in ended


def test_an_id_cannot_make_a_line_of_its_own(tmp_path):
    with serving("--log-format", "json", tmp_path=tmp_path) as service:
        service.run("echo", id='x\n{"level":"error"}')
    assert [line["id"] for line in lines(service) if "id" in line] == ['x\n{"level":"error"}']


def test_the_error_with_which_a_command_ends_is_an_object(pyspawner):
    done = pyspawner.run("not_there.main", flags=["--log-format", "json"])
    assert done.status == 125
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["level"] == "error" and "there is no module 'not_there'" in line["message"]
