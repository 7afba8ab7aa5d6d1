"""Files that jobs bring along, and files that come back."""

import base64
import json
import time

import pytest
from service import JOBS, serving

CONFIG = '[pool]\nconcurrency = 2\n[profile.default]\ntmp = "8M"\n[profile.default.limits]\ncollect = "1M"\n'


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(config=CONFIG, tmp_path=tmp_path_factory.mktemp("service")) as service:
        yield service


def test_a_job_finds_its_files_in_its_working_folder(service):
    encoded = {"base64": base64.b64encode(b"\0\xff").decode()}
    files = {"a.txt": "wörds", "data/b.txt": {"text": "x"}, "c.bin": encoded}
    assert service.run("read", "a.txt", "data/b.txt", files=files)["result"] == ["wörds", "x"]
    assert service.run("listing", files=files)["result"] == ["a.txt", "c.bin", "data/b.txt"]
    record = service.run("listing", files=files, collect=["c.bin"])
    assert record["files"] == {"c.bin": encoded}


def test_files_are_one_jobs_alone(service):
    service.run("listing", files={"a.txt": "x"})
    assert service.run("listing")["result"] == []


def test_files_come_back_by_name_and_by_pattern(service):
    contents = {"a.csv": "1", "b.csv": "2", "c.txt": "3", "out/d.csv": "4", "e.png": "\xff\xd8"}
    record = service.run("make", contents, collect=["*.csv", "out/d.csv", "e.png"])
    assert record["files"] == {
        "a.csv": {"text": "1"},
        "b.csv": {"text": "2"},
        "out/d.csv": {"text": "4"},
        "e.png": {"base64": "/9g="},
    }
    assert "files_left" not in record
    assert service.run("make", contents)["outcome"] == "ok"
    assert "files" not in service.run("make", contents)


def test_what_does_not_come_back_is_said(service):
    record = service.run("make", {"a": "1", "big": "x" * (2 << 20)}, collect=["a", "big", "none", "*.png"])
    assert record["files"] == {"a": {"text": "1"}}
    assert record["files_left"] == {
        "big": "more than 1048575 bytes are left (limits.collect)",
        "none": "there is no such file",
    }


@pytest.mark.parametrize("end", [{"timeout": 0.5}, {}])
def test_files_of_a_job_that_is_ended_come_back_too(service, end):
    if end:
        record = service.run("make", {"part.csv": "so far"}, 60, collect=["*.csv"], **end)
        assert record["outcome"] == "timed_out"
    else:
        path = service.begin("make", {"part.csv": "so far"}, 60, collect=["*.csv"])
        while service.ask("GET", path).json["state"] != "running":
            pass
        time.sleep(0.5)
        service.ask("DELETE", path)
        record = service.ended(path)
        assert record["outcome"] == "cancelled"
    assert record["files"] == {"part.csv": {"text": "so far"}}


def test_nothing_leads_out_of_the_folder(service):
    wanted = ["link", "folder/passwd", "magic", "up", "fifo", "socket", "sparse", "closed/x", "*", "**/*", "**/passwd"]
    record = service.run("lead_out", collect=wanted)
    assert record["outcome"] == "ok", record
    # What is the job's own comes back, whatever its mode.
    assert record["files"] == {"secret": {"text": "mine"}, "hard": {"text": "mine"}}
    assert "root:" not in json.dumps(record)
    left = record["files_left"]
    assert left["link"] == left["magic"] == left["folder/passwd"] == left["up"] == "a link is not followed"
    assert left["fifo"] == left["socket"] == "it is no regular file"


def test_names_that_change_while_they_are_read_give_nothing_of_others(service):
    for _ in range(20):
        record = service.run("exchange", 0.02, collect=["file", "link", "*"])
        assert record["outcome"] == "ok"
        assert all(content == {"text": "fine"} for content in record["files"].values()), record
    assert service.run("replace_folder", collect=["passwd", "*"]).get("files") == {}


def test_a_link_would_lead_out_if_it_were_followed(service):
    """The control: what the links lead to can be read by whoever follows them."""
    with open("/etc/passwd") as file:
        assert "root:" in file.read()
    assert "root:" in service.run("read", "/etc/passwd")["result"][0]  # by the job: its own user's file


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"files": {"../x": ""}}, "files: "),
        ({"files": {"/x": ""}}, "files: "),
        ({"files": {"": ""}}, "files: "),
        ({"files": {"a/": ""}}, "files: "),
        ({"files": {"a\0": ""}}, "files: "),
        ({"files": []}, "files: "),
        ({"files": {f"f{n}": "" for n in range(300)}}, "files: 300 files, at most 256 may be"),
        ({"collect": ["../x"]}, "collect: "),
        ({"collect": ["/etc/passwd"]}, "collect: "),
        ({"collect": ["[a"]}, "collect: "),
        ({"collect": ["x"] * 300}, "collect: 300 names"),
        ({"collect": "x"}, "the body: "),
    ],
)
def test_names_that_cannot_be_are_refused(service, request_, words):
    answer = service.ask("POST", "/v1/jobs", {"args": ["listing"], **request_})
    assert answer.status == 422 and words in answer.problem()[1], answer


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": {"base64": "?"}}, "files: 'a': "),
        ({"a": {"text": "x", "base64": ""}}, "files: 'a': expected text"),
        ({"a": {}}, "files: 'a': expected text"),
        ({"a": {"data": "x"}}, "files: 'a': "),
        ({"a": 5}, "files: 'a': "),
        ({"a": "x", "a/b": "y"}, "files: 'a/b': "),
        ({"a": "x" * (9 << 20)}, "No space left on device"),
    ],
)
def test_files_that_cannot_be_written_make_no_job(service, files, words):
    record = service.run("listing", files=files)
    assert record["outcome"] == "invalid_job" and words in record["detail"], record


def test_lines_of_a_stream_and_of_map_have_files_too(service, pyspawner, tmp_path):
    line = {"args": ["read", "a"], "files": {"a": "x"}, "collect": ["a"]}
    (record,) = service.map([line])
    assert (record["result"], record["files"]) == (["x"], {"a": {"text": "x"}})
    (record,) = pyspawner.map("web.main", [line], path=JOBS).lines
    assert (record["result"], record["files"]) == (["x"], {"a": {"text": "x"}})


def test_where_there_is_no_folder_of_the_jobs_own_there_are_no_files(tmp_path):
    config = '[profile.default]\ncwd = "caller"\n'
    with serving(config=config, tmp_path=tmp_path) as service:
        for more in ({"files": {"a": ""}}, {"collect": ["a"]}):
            answer = service.ask("POST", "/v1/jobs", {"args": ["listing"], **more})
            assert answer.status == 422 and "do not start in a folder of their own" in answer.problem()[1]
