"""The files that pyspawner opens itself, or was given: jobs must not read them by name, nor lead it elsewhere by them."""

import json
import os
import stat
import subprocess

import pytest
from attacking import without
from driving import JOBS
from processes import wait_until

JOB = """
import json
def main(*paths):
    found = []
    for path in paths:
        try:
            found.append(open(path).read())
        except OSError as error:
            found.append(type(error).__name__)
    return found
"""
SECRET = "a-secret-of-another-job"


@pytest.fixture
def folder(open_folder):
    (open_folder / "reader.py").write_text(JOB)
    (open_folder / "neighbour").write_text(SECRET)
    (open_folder / "neighbour").chmod(0o644)
    return open_folder


def secrets_in(lines):
    return [SECRET in text for line in lines for text in line["result"]]


@pytest.mark.parametrize("spares", [0, 2])
def test_no_job_reads_them_by_name(pyspawner, folder, spares):
    """Input, output, configuration and all that the standard streams are redirected to, in a folder that all may read."""
    names = ["input", "output", "stdin", "stdout", "stderr"]
    files = {name: folder / name for name in names}
    paths = [str(folder / name) for name in [*names, "pyspawner.toml", "neighbour"]]
    job = json.dumps({"args": paths, "kwargs": {}, "stdin": SECRET, "id": SECRET}) + "\n"
    for name in names:
        files[name].write_text(job * 3 if name == "input" else SECRET)
        files[name].chmod(0o644)
    config = folder / "pyspawner.toml"

    def results(*off):
        config.write_text(f"# {SECRET}\n[pool]\nspares = {spares}\n" + without(off))
        command = pyspawner.command("map", "reader.main", path=folder)
        command += ["--config", config, "--input", files["input"], "--output", files["output"]]
        with open(files["stdin"]) as stdin, open(files["stdout"], "a") as stdout, open(files["stderr"], "a") as stderr:
            subprocess.run(command, stdin=stdin, stdout=stdout, stderr=stderr, check=True, timeout=60)
        lines = [json.loads(line) for line in files["output"].read_text().splitlines()]
        assert len(lines) == 3
        return [secrets_in([line]) for line in lines]

    for found in results():
        assert found == [False] * 6 + [True]
    # The control: without the root layer all but the output, which is being written, are read.
    for found in results("root", "setuid", "user_namespace"):
        assert found[0] and found[2:] == [True] * 5


def test_an_input_that_is_named_by_its_descriptor_is_hidden_by_its_name(pyspawner, folder):
    file = folder / "input"
    file.write_text(json.dumps({"args": [str(file)], "id": SECRET}) + "\n")
    file.chmod(0o644)

    def result(*off):
        with open(file) as source:
            command = pyspawner.command("map", "reader.main", path=folder, config=without(off))
            command += ["-i", f"/dev/fd/{source.fileno()}"]
            done = subprocess.run(command, capture_output=True, pass_fds=[source.fileno()], check=True, timeout=60)
        return secrets_in([json.loads(done.stdout)])

    assert result() == [False]
    assert result("root", "setuid", "user_namespace") == [True]  # the control


def test_the_output_is_the_callers_alone(pyspawner, open_folder):
    output = open_folder / "output"
    umask = os.umask(0)
    try:
        done = pyspawner.map("basic.nothing", [[]], "--output", output)
    finally:
        os.umask(umask)
    assert done.status == 0 and stat.S_IMODE(output.stat().st_mode) == 0o600
    output.chmod(0o640)
    assert pyspawner.map("basic.nothing", [[]], "--output", output).status == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o640  # one that is there stays as it is


@pytest.mark.parametrize("flag", ["--input", "--output", "--config"])
@pytest.mark.parametrize("way", ["by its name", "by a link to the folder", "by a folder in it"])
def test_they_do_not_lie_where_jobs_can_write(pyspawner, open_folder, flag, way):
    """A job would leave a link there, and the host, as root, write where it leads."""
    shared = open_folder / "shared"
    (shared / "inner").mkdir(parents=True)
    (open_folder / "link").symlink_to(shared)
    place = {
        "by its name": shared,
        "by a link to the folder": open_folder / "link",
        "by a folder in it": shared / "inner",
    }[way]
    config = f'[profile.default]\nbinds = [{{ source = "{shared}", writable = true }}]\n'
    file = place / "file"
    file.write_text(config if flag == "--config" else "[]\n")
    command = pyspawner.command("map", "basic.nothing", config=None if flag == "--config" else config)
    done = subprocess.run([*command, flag, file], input="[]\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 125 and "which jobs can write to" in done.stderr, done.stderr
    elsewhere = open_folder / "elsewhere"
    elsewhere.write_text(file.read_text())
    done = subprocess.run([*command, flag, elsewhere], input="[]\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_neither_does_the_socket_of_serve(pyspawner, open_folder):
    """A job would put its own there, and have the host's clients."""
    shared = open_folder / "shared"
    shared.mkdir()
    config = f'[profile.default]\nbinds = [{{ source = "{shared}", writable = true }}]\n'
    command = pyspawner.command("serve", "basic.nothing", "--socket", shared / "socket", config=config)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125 and "the socket" in done.stderr and "which jobs can write to" in done.stderr, done
    command[command.index(str(shared / "socket"))] = str(open_folder / "socket")
    with subprocess.Popen(command) as host:
        wait_until((open_folder / "socket").exists)
        host.terminate()


def test_a_bind_whose_source_jobs_can_replace_is_refused(pyspawner, open_folder):
    """By a link, it would show whatever the host sees."""
    inner = open_folder / "shared/inner"
    inner.mkdir(parents=True)
    (open_folder / "link").symlink_to(inner)
    for source in (inner, open_folder / "link"):
        config = (
            f'[profile.default]\nbinds = [{{ source = "{open_folder}/shared", target = "/one", writable = true }},'
            f' {{ source = "{source}", target = "/two" }}]\n'
        )
        done = pyspawner.map("basic.nothing", [[]], config=config)
        assert done.status == 125 and "which jobs can write to" in done.stderr, done.stderr


def test_an_environment_file_where_the_host_starts_is_hidden(pyspawner, folder, monkeypatch):
    (folder / ".env").write_text(SECRET)
    monkeypatch.chdir(folder)
    done = pyspawner.map("reader.main", [[str(folder / ".env"), str(folder / "neighbour")]], path=folder)
    assert secrets_in(done.lines) == [False, True]


@pytest.mark.parametrize("folder", ["/dev/std", "/dev/fd/", "/proc/self/fd/"])
def test_streams_can_be_named(pyspawner, folder):
    names = ("in", "out") if folder == "/dev/std" else ("0", "1")
    flags = ["--input", folder + names[0], "--output", folder + names[1]]
    command = pyspawner.command("map", "basic.nothing", *flags, path=JOBS)
    done = subprocess.run(command, input="[]\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout)["outcome"] == "ok", done
