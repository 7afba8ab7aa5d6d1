"""Where jobs start, what they may write, who they are, and what they import from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from driving import skipping
from processes import wait_until
from pyspawner import Client, SandboxConfig

HOME = "/tmp/job"


def profile(text):
    return f"[profile.default]\n{text}\n"


CALLER = profile('cwd = "caller"')
BINDS = ", ".join(f'{{ source = "{folder}" }}' for folder in ("/usr", "/bin", "/lib", "/lib64"))
EMPTY = f"root = {{ empty = true }}\nbinds = [{BINDS}]"


def run_in(folder, command, jobs):
    """The result lines of a ``map`` that is started in a folder, and what it said."""
    lines = "".join(json.dumps(job) + "\n" for job in jobs)
    done = subprocess.run(command, input=lines, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    return [json.loads(line)["result"] for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("config", ["", EMPTY], ids=["read-only", "empty"])
def test_a_job_is_at_home(pyspawner, config):
    seen = pyspawner.value("working_folder.surroundings", config=profile(config))
    assert [seen[name] for name in ("cwd", "home", "expanded", "HOME")] == [HOME] * 4
    assert seen["sh"] == [HOME, HOME]
    assert (seen["user"], seen["group"], seen["shell"]) == ("sandbox", "sandbox", "/bin/sh")
    assert seen["id"].startswith("uid=1000(sandbox) gid=1000(sandbox)")
    assert seen["names"] == ["nobody", "root", "sandbox"] and seen["groups"] == ["nogroup", "root", "sandbox"]
    assert seen["path"][0] == ""
    assert "HOME" not in seen["initial environment"]
    assert (seen["mode"], seen["owner"], seen["listing"]) == ("drwx------", [1000, 1000], [])


def test_work_in_the_folder(pyspawner):
    locks, (names, mode), *others = pyspawner.value("working_folder.work")
    assert locks == "locks" and names == ["link", "renamed", "second name"] and mode == "-rw-r-----"
    assert others == ["through a fifo", "executed", 1, "kept", True]


def test_the_callers_working_directory_is_read_only(pyspawner, open_folder):
    (open_folder / "data").write_text("")
    open_folder.chmod(0o755)
    command = pyspawner.command("map", "working_folder.surroundings", config=CALLER)
    [seen], _ = run_in(open_folder, command, [[]])
    assert (seen["cwd"], seen["listing"]) == (str(open_folder), ["data"])
    # The home is there all the same.
    assert [seen["home"], *seen["sh"]] == [HOME] * 3
    command = pyspawner.command("map", "working_folder.fill", config=CALLER)
    done = pyspawner.finish(command, '[".", 1]\n', 60)
    assert done.lines[0]["outcome"] == "exited" and "Read-only file system" in done.lines[0]["stderr"]


def test_in_a_chroot_nothing_is_added(pyspawner, open_folder):
    (open_folder / "look.py").write_text(
        "import os, pathlib\n"
        "def main(): return [os.getcwd(), sorted(os.listdir('/')), os.environ.get('HOME'), os.path.exists('/etc')]"
    )
    open_folder.chmod(0o755)
    config = profile(f'root = {{ chroot = "{open_folder}" }}')
    cwd, listing, home, etc = pyspawner.value("look.main", path=open_folder, config=config)
    assert (cwd, home, etc) == ("/", None, False)
    assert listing == sorted(os.listdir(open_folder))


# ---- HOME and the environment --------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "config"),
    [(["--env", "HOME=/elsewhere"], ""), ([], '[environment]\nHOME = "/elsewhere"\n'), (["--inherit-env"], "")],
    ids=["flag", "file", "inherited"],
)
def test_a_configured_home_stays(pyspawner, monkeypatch, flags, config):
    monkeypatch.setenv("HOME", "/elsewhere")
    seen = pyspawner.value("working_folder.surroundings", flags=flags, config=config)
    assert seen["HOME"] == seen["home"] == seen["sh"][0] == "/elsewhere" and seen["cwd"] == HOME


def test_a_home_that_a_module_sets_stays(pyspawner, open_folder):
    (open_folder / "sets_home.py").write_text("import os\nos.environ['HOME'] = '/elsewhere'\n")
    flags = ["--path", str(open_folder), "--preload", "sets_home"]
    assert pyspawner.value("working_folder.surroundings", flags=flags)["HOME"] == "/elsewhere"


def test_no_module_is_imported_with_that_home(pyspawner, open_folder):
    """In the host, anybody may have made a folder of its name."""
    (open_folder / "looks.py").write_text(
        "import os, pathlib\nSEEN = [os.environ.get('HOME'), str(pathlib.Path.home())]\n"
        "def warm_up(): SEEN.append(os.environ.get('HOME'))\n"
        "def main(): return SEEN, os.environ['HOME']\n"
    )
    flags = ["--preload", "looks", "--warm-up", "looks.warm_up"]
    seen, home = pyspawner.value("looks.main", path=open_folder, flags=flags)
    assert seen == [None, os.path.expanduser("~"), None] and home == HOME


def test_a_hook_in_the_host_finds_nothing_at_that_home(pyspawner, open_folder):
    """It runs with HOME set; what others have put there on the host is out of its sight."""
    planted = Path(HOME)
    planted.mkdir()
    try:
        (planted / "planted").write_text("")
        (open_folder / "hooked.py").write_text(
            "import os, pyspawner_host\nSEEN = []\n"
            "@pyspawner_host.before_clone\n"
            "def look(): SEEN[:] = [os.environ['HOME'], os.path.exists(os.environ['HOME'])]\n"
            "def main(): return SEEN, os.listdir(os.environ['HOME'])\n"
        )
        assert pyspawner.value("hooked.main", path=open_folder) == [[HOME, False], []]
    finally:
        (planted / "planted").unlink()
        planted.rmdir()


def test_a_clients_environment_is_exact(open_folder):
    code = "import os, pathlib\ndef main(): print(dict(os.environ), pathlib.Path.home(), os.getcwd(), end='')\n"
    (open_folder / "client_job.py").write_text(code)
    root = open_folder / "root"
    root.mkdir()
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("inner:x:1000:1000::/inner:/bin/sh\n")
    for folder in (open_folder, root, root / "etc"):
        folder.chmod(0o755)
    before = os.getcwd()
    os.chdir(open_folder)
    try:
        with Client(child_main="client_job.main", environment={"A": "B"}, executable=sys.executable) as client:
            out, _ = client.spawn_child([]).communicate()
            assert out.decode() == f"{{'A': 'B'}} {HOME} {HOME}"
            config = SandboxConfig(chroot_dir=root)
            out, err = client.spawn_child([], sandbox_config=config).communicate()
            assert out.decode() == "{'A': 'B'} /inner /", err
    finally:
        os.chdir(before)


def test_in_a_clients_chroot_home_is_not_set(pyspawner, open_folder):
    """Of a host for many clients, which sets it otherwise."""
    (open_folder / "client_job.py").write_text("import os\ndef main(): print(os.environ.get('HOME'), end='')\n")
    open_folder.chmod(0o755)
    socket = pyspawner.folder / "socket"
    command = pyspawner.command("serve", "client_job.main", "--socket", str(socket), path=open_folder)
    with subprocess.Popen(command) as process:
        try:
            wait_until(socket.exists)
            with Client(connect=socket) as client:
                assert client.spawn_child([]).communicate()[0] == HOME.encode()
                config = SandboxConfig(chroot_dir=open_folder)
                assert client.spawn_child([], sandbox_config=config).communicate()[0] == b"None"
        finally:
            process.terminate()


# ---- modules -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["", CALLER], ids=["private", "caller"])
def test_modules_of_the_callers_directory_are_imported_late(pyspawner, open_folder, config):
    """And found there before those of a --path, in jobs as in the host."""
    inner = open_folder / "inner"
    inner.mkdir()
    for folder, value in [(open_folder, "caller's"), (inner, "path's")]:
        (folder / "both.py").write_text(f"VALUE = {value!r}\n")
    (open_folder / "callers.py").write_text("VALUE = 1\n")
    open_folder.chmod(0o755)
    command = pyspawner.command("map", "working_folder.import_late", "--path", str(inner), config=config)
    [found], said = run_in(open_folder, command, [["callers", "both", "nowhere"]])
    assert found == [1, "caller's", "ModuleNotFoundError"] and said == ""


def test_a_job_imports_what_it_has_written(pyspawner):
    assert pyspawner.value("working_folder.import_own") == ["own"]


@pytest.mark.parametrize("place", ["closed", "below /tmp"])
def test_where_the_callers_directory_is_out_of_reach(pyspawner, open_folder, tmp_path, place):
    folder = tmp_path if place == "below /tmp" else open_folder / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "callers.py").write_text("VALUE = 1\n")
    folder.chmod({"closed": 0o700, "below /tmp": 0o755}[place])
    # What looks open is a warning; a closed folder is one if jobs were to start there.
    flags = [] if place == "below /tmp" else ["-v"]
    for config in (None, CALLER):
        command = pyspawner.command("map", "working_folder.import_late", *flags, config=config)
        [found], said = run_in(folder, command, [["callers"]])
        assert found == ["ModuleNotFoundError"]
        level = "info" if place == "closed" and config is None else "warn"
        assert f"pyspawner: {level}: children cannot reach the working directory {folder}" in said
    assert f"cannot reach the working directory {folder}" in said and "--path" in said
    # The control: named, it is reached.
    folder.chmod(0o755)
    command = pyspawner.command("map", "working_folder.import_late", "--path", ".")
    assert run_in(folder, command, [["callers"]]) == ([[1]], "")


# ---- whom the host knows by these ids --------------------------------------------------------


@pytest.fixture
def with_accounts(tmp_path):
    """A command prefix: a machine whose /etc this test may change, with somebody of the id 1000."""
    script = tmp_path / "accounts"
    script.write_text(
        "set -e\nmkdir /tmp/etc-$$\ncp -a /etc/. /tmp/etc-$$\nmount --bind /tmp/etc-$$ /etc\n"
        "grep -v :1000: /tmp/etc-$$/passwd > /etc/passwd-new || true\n"
        "echo 'somebody:x:1000:1000:Some Body:/home/somebody:/bin/bash' >> /etc/passwd-new\n"
        "mv /etc/passwd-new /etc/passwd\n"
        "echo 'staff:x:1000:' >> /etc/group\n"
        'trap "umount -l /etc; rm -rf /tmp/etc-$$" EXIT\n"$@"\n'
    )
    return ["unshare", "-m", "sh", script]


@pytest.mark.root
def test_the_hosts_user_of_that_id_is_another(pyspawner, with_accounts):
    done = pyspawner.map("working_folder.surroundings", [[]], prefix=with_accounts)
    seen = done.lines[0]["result"]
    assert seen["id"].startswith("uid=1000(sandbox) gid=1000(sandbox)") and seen["home"] == HOME
    # The control: with the host's own file it would be that user.
    config = skipping("root", "landlock")
    done = pyspawner.map("working_folder.look_up", [["somebody"]], prefix=with_accounts, config=config)
    assert done.lines[0]["result"] == [1000], done.stderr
    done = pyspawner.map("working_folder.look_up", [["somebody", "root"]], prefix=with_accounts)
    assert done.lines[0]["result"] == [None, 0]


@pytest.mark.root
@pytest.mark.parametrize("spares", [0, 2])
def test_a_file_of_accounts_that_is_replaced_stays_covered(pyspawner, with_accounts, tmp_path, spares):
    """passwd(1) and useradd(8) write a new file and rename it."""
    command = pyspawner.command(
        "map", "working_folder.look_up", "-j", "1", prefix=with_accounts, spares=spares, config="[pool]\n"
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask():
            process.stdin.write('["somebody", "newcomer", "sandbox"]\n')
            process.stdin.flush()
            return json.loads(process.stdout.readline())["result"]

        assert ask() == [None, None, 1000]
        shell = process.pid
        enter = ["nsenter", f"--mount=/proc/{shell}/ns/mnt", "sh", "-c"]
        for number in range(3):
            change = f"echo newcomer:x:{2000 + number}:1::/:/bin/sh > /etc/new; cat /etc/passwd >> /etc/new;"
            subprocess.run([*enter, change + "mv /etc/new /etc/passwd; grep -q newcomer /etc/passwd"], check=True)
            assert ask() == [None, None, 1000]
        process.stdin.close()
        assert process.wait() == 0


def test_a_bind_shows_other_accounts(pyspawner, open_folder):
    (open_folder / "passwd").write_text("bound:x:1000:1000::/nowhere:/bin/sh\n")
    config = profile(f'binds = [{{ source = "{open_folder}/passwd", target = "/etc/passwd" }}]')
    assert pyspawner.value("working_folder.look_up", "bound", "sandbox", config=config) == [1000, None]


def test_hidden_accounts_stay_hidden(pyspawner):
    config = profile('hide = ["/etc/passwd"]')
    assert pyspawner.value("working_folder.look_up", "sandbox", "daemon", config=config) == [None, None]


def test_a_home_does_not_take_the_place_of_what_is_shown(pyspawner, open_folder):
    """Its name is another where a path or a bind has that one."""
    folder = Path(HOME)
    folder.mkdir()
    try:
        folder.chmod(0o755)
        (folder / "there.py").write_text("VALUE = 'there'\n")
        assert pyspawner.value("working_folder.import_late", "there", flags=["--path", HOME]) == ["there"]
        assert pyspawner.value("working_folder.surroundings", flags=["--path", HOME])["home"] == "/tmp/job-2"
    finally:
        (folder / "there.py").unlink()
        folder.rmdir()
    config = profile(f'binds = [{{ source = "{open_folder}", target = "/tmp/job/data" }}]')
    assert pyspawner.value("working_folder.surroundings", config=config)["cwd"] == "/tmp/job-2"


def test_a_client_that_leaves_layers_out_has_no_names(pyspawner):
    """Version 1 named nobody, and its users' tests read the numbers that `id` prints."""
    said = []
    with Client(child_main="subprocess.call", environment={}, executable=sys.executable) as client:
        for left_out in (frozenset(), frozenset(["setuid", "no_new_privs"])):
            child = client.spawn_child([["/usr/bin/id"]], sandbox_config=SandboxConfig(skip_sandbox_except=left_out))
            said.append(child.communicate()[0].decode())
    assert said == [
        "uid=1000(sandbox) gid=1000(sandbox) groups=1000(sandbox)\n",
        "uid=1000 gid=1000 groups=1000\n",
    ]
