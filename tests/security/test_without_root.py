"""The same sandbox for an ordinary user, with and without subordinate ids."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driving import PLACE, PYSPAWNER, ROOT
from processes import children_of, host_of, wait_until

sys.path.insert(0, str(Path(__file__).parent.parent / "api"))
from clients import NO_SPARES, serving

pytestmark = pytest.mark.root
JOBS = Path(__file__).parent / "jobs"
BASIC = Path(__file__).parent.parent / "jobs"
USER = 54321
RANGE = (700_000, 65_536)

# In a mount namespace of its own, so that nothing of the machine changes: the way to the
# interpreter is opened for the user, and the user gets subordinate ids, or none.
BECOME = """
set -e
open_the_way() { # to an interpreter below a closed folder
    [ -e "$1" ] || return 0
    home=/$(echo "$1" | cut -d/ -f2)
    [ "$(stat -c %a "$home" | tail -c 2)" = 0 ] || return 0
    inside=/$(echo "$1" | cut -d/ -f2,3)
    keep=$(mktemp -d)
    mount --rbind "$inside" "$keep"
    mount -t tmpfs -o mode=755 tmpfs "$home"
    mkdir "$inside"
    mount --rbind "$keep" "$inside"
    umount -l "$keep"
}
open_the_way "@PREFIX@"
ids=$(mktemp)
printf '@RANGE@' > "$ids"
chmod 644 "$ids"
for file in /etc/subuid /etc/subgid; do
    [ -e $file ] || touch $file
    mount --bind "$ids" $file
done
names=$(mktemp) # newuidmap asks for the user's
{ cat /etc/passwd; echo "ordinary:x:@USER@:@USER@::/:/bin/sh"; } > "$names"
chmod 644 "$names"
mount --bind "$names" /etc/passwd
exec setpriv --reuid=@USER@ --regid=@USER@ --groups=@USER@,54322 "$@"
"""


@pytest.fixture(params=["subordinate", "single"])
def user(request, tmp_path):
    """The words before a command that make it an ordinary user's."""
    ids = f"{USER}:{RANGE[0]}:{RANGE[1]}\\n" if request.param == "subordinate" else ""
    script = tmp_path / "become"
    text = BECOME.replace("@PREFIX@", sys.base_prefix).replace("@RANGE@", ids)
    script.write_text(text.replace("@USER@", str(USER)))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(0o755)
    prefix = ["unshare", "-m", "sh", str(script)]
    return request.param, prefix


def test_what_a_child_sees(pyspawner, user):
    kind, prefix = user
    done = pyspawner.map("basic.surroundings", [[]], prefix=prefix)
    assert done.status == 0, done.stderr
    seen = done.lines[0]["result"]
    assert seen["processes"] == [1] and seen["route"] == ""
    assert (seen["uid"], seen["gid"]) == (1000, 1000)
    # The fourth is the result's.
    assert {"0", "1", "2"} < set(seen["descriptors"]) and len(seen["descriptors"]) == 4
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen["status"][capabilities], 16) == 0
    assert seen["status"]["NoNewPrivs"] == "1" and seen["status"]["Seccomp"] == "2"
    if kind == "subordinate":
        assert seen["groups"] == [] and "warn" not in done.stderr
    else:
        # Denied by the kernel, and said.
        assert "supplementary groups" in done.stderr and "no user of their own" in done.stderr


def test_kernel_mounts_on_files_are_covered(pyspawner, user, open_folder):
    """As `ip netns` makes them. They are locked for a user's mount namespace, and cannot be unmounted."""
    _, prefix = user
    file = open_folder / "namespace"
    file.touch()
    mounted = ["unshare", "-m", "-n", "sh", "-c", f'mount --bind /proc/self/ns/net {file}; exec "$@"', "-"]
    shown = pyspawner.value("files.read", str(file), path=JOBS, prefix=[*mounted, *prefix])
    assert shown == ""


def test_the_uid_outside(pyspawner, user):
    kind, prefix = user
    command = pyspawner.command("map", "basic.sleep", "-j", "2", prefix=prefix, spares=0)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b"[5]\n[5]\n")
    process.stdin.close()
    wait_until(lambda: (host := host_of(process)) and len(children_of(host)) == 2)
    time.sleep(0.5)  # until their maps are written
    uids = [os.stat(f"/proc/{child}").st_uid for child in children_of(host_of(process))]
    process.stdout.read()
    assert process.wait() == 0
    if kind == "subordinate":
        assert len(set(uids)) == 2 and all(RANGE[0] <= uid < sum(RANGE) for uid in uids)
    else:
        assert uids == [USER, USER]


def test_the_users_own_files(pyspawner, user, open_folder):
    """A private file is closed to a child that has a user of its own; else it must be hidden."""
    kind, prefix = user
    secret = open_folder / "secret"
    secret.write_text("private")
    secret.chmod(0o600)
    os.chown(secret, USER, USER)

    def read(config=""):
        done = pyspawner.map("files.read", [[str(secret)]], path=JOBS, prefix=prefix, config=config)
        return done.lines[0]["result"]

    assert read() == ("EACCES" if kind == "subordinate" else "private")
    assert read(f'[profile.default]\nhide = ["{secret}"]\n') == ""


def test_nothing_can_be_written_outside(pyspawner, user, open_folder):
    _, prefix = user
    os.chown(open_folder, USER, USER)
    changes = pyspawner.map("files.all_of", [[str(open_folder)]], path=JOBS, prefix=prefix).lines[0]["result"]
    assert "ok" not in changes.values()
    assert list(open_folder.iterdir()) == []
    # The control: bound as writable, the folder is, where the child is the same user outside.
    config = f'[profile.default]\nbinds = [{{ source = "{open_folder}", writable = true }}]\n'
    done = pyspawner.map("files.all_of", [[str(open_folder)]], path=JOBS, prefix=prefix, config=config)
    assert "ok" in done.lines[0]["result"].values(), done


@pytest.mark.parametrize(
    ("root", "etc", "home"), [("{ empty = true }", {"etc"}, ["job"]), ('{ chroot = "FOLDER" }', set(), [])]
)
def test_other_roots(pyspawner, user, open_folder, root, etc, home):
    _, prefix = user
    for name in ("proc", "tmp"):
        (open_folder / name).mkdir()
    root = root.replace("FOLDER", str(open_folder))
    config = f'[profile.default]\nroot = {root}\nproc = "private"\ntmp = "1M"\n'
    jobs = [["/"], ["/proc"], ["/tmp"]]
    done = pyspawner.map("files.listing", jobs, "--ordered", path=JOBS, prefix=prefix, config=config)
    seen = [line["result"] for line in done.lines]
    assert set(seen[0]) - {"dev"} == {"proc", "tmp"} | etc, done
    assert [name for name in seen[1] if name.isdigit()] == ["1"] and seen[2] == home


def test_a_loopback_interface(pyspawner, user):
    _, prefix = user
    config = '[profile.default]\nnetwork = "loopback"\n'
    jobs = [["127.0.0.1"], ["::1"]]
    done = pyspawner.map("loopback.serve_http", jobs, path=BASIC, prefix=prefix, config=config)
    assert [line["result"] for line in done.lines] == ["served /page"] * 2, done


def test_a_home(pyspawner, user):
    _, prefix = user
    done = pyspawner.map("working_folder.surroundings", [[]], path=BASIC, prefix=prefix)
    seen = done.lines[0]["result"]
    assert (seen["user"], seen["cwd"], seen["HOME"]) == ("sandbox", "/tmp/job", "/tmp/job"), done


def test_limits_and_honest_work(pyspawner, user):
    _, prefix = user
    config = "[profile.default.limits]\npids = 8\n"
    done = pyspawner.map("limits.fork_bomb", [[40]], path=JOBS, prefix=prefix, config=config)
    assert done.lines[0]["result"] == [7, "EAGAIN"], done
    done = pyspawner.map("files.ordinary_work", [[]], path=JOBS, prefix=prefix)
    assert done.lines[0]["result"] == [[1, 2], "sub\n"], done


def test_a_hundred_jobs_leave_nothing(pyspawner, user):
    _, prefix = user
    done = pyspawner.map("basic.nothing", [[]] * 100, "-j", "4", prefix=prefix, path=BASIC)
    assert [line["outcome"] for line in done.lines] == ["ok"] * 100, done.stderr


def test_root_without_cap_sys_admin_makes_a_namespace_too(pyspawner):
    """As in a container that keeps most of its root's capabilities."""
    prefix = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = pyspawner.map("files.whoami", [[]], path=JOBS, prefix=prefix)
    assert done.lines[0]["result"]["groups"] == [] and "warn" not in done.stderr, done


def test_where_namespaces_are_refused_nothing_runs(pyspawner):
    refuse = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", refuse, "sh"]
    done = pyspawner.map("files.whoami", [[]], path=JOBS, prefix=prefix)
    assert (done.status, done.stdout) == (125, "")
    assert "ENOSPC" in done.stderr and "namespaces" in done.stderr, done.stderr


def test_what_preloaded_objects_hold_and_share_is_each_jobs_own(pyspawner, user):
    """Here the host may not open what lies behind a mapping, and makes mounts in a namespace of its own alone."""
    from test_held_descriptors import USED
    from test_shared_memory import AS_IT_WAS

    _, prefix = user
    lines = pyspawner.map("held.use", [[], []], "--preload", "held", "-j", "1", path=BASIC, prefix=prefix).lines
    assert [line["result"] for line in lines] == [USED, USED], lines
    lines = pyspawner.map("shares.main", [[], []], "--preload", "shares", "-j", "1", path=BASIC, prefix=prefix).lines
    assert [line["result"][0] for line in lines] == [AS_IT_WAS, AS_IT_WAS], lines


# A client: it says what its job says, and what to it.
CLIENT = """
import sys, pyspawner
with pyspawner.Client(connect=sys.argv[1]) as client:
    child = client.spawn_child(sys.argv[2:])
    print(child.stdout.readline().decode(), end="", flush=True)
    print(*[part.decode() for part in child.communicate()])
"""


@pytest.mark.parametrize("which", ["another", "own"])
def test_a_job_does_not_pass_for_a_client(user, open_folder, which):
    """Of its own host, with a name of the socket that is not hidden: by a process that has ended when the host looks. (The
    control is the client, who is served.)"""
    _, prefix = user
    os.chown(open_folder, USER, USER)
    paths = [open_folder / name for name in ("socket", "another")]
    python = [*prefix, "env", f"PYTHONPATH={ROOT / 'python'}", sys.executable, "-c", CLIENT]
    flags = ["--config", NO_SPARES]
    with (
        serving(paths[0], "connects.main", JOBS, *flags, prefix=prefix) as host,
        serving(paths[1], "connects.main", JOBS, *flags, prefix=prefix),
    ):
        os.link(paths[0], open_folder / "own")
        command = [*python, paths[0], open_folder / which, "ended" if which == "own" else ""]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout.readline() == "begun\n"
            if which == "own":
                pid = host_of(host)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(2)
                for stopped in (host.pid, pid):  # the init in front of the host stops as it does
                    os.kill(stopped, signal.SIGCONT)
            answer = client.stdout.read().strip()
    refused = answer == "sent away" or '"kind":"refused"' in answer
    assert answer == "Permission denied" if user[0] == "subordinate" else refused, answer


def test_a_job_does_not_pass_for_its_operator_at_anothers_host(pyspawner, user, open_folder):
    """At root's, which serves that user by --allow-uid: the job may be the user. (The control is the user, who is served.)"""
    _, prefix = user
    socket, flags = open_folder / "socket", ["--socket-mode", "0666", "--allow-uid", str(USER), "--config", NO_SPARES]
    open_folder.chmod(0o755)
    with serving(socket, "connects.main", JOBS, *flags):
        line = pyspawner.map("connects.main", [[str(socket), ""]], path=JOBS, prefix=prefix).lines[0]
        answer = line["stdout"].splitlines()[-1]
        assert answer == "sent away" or '"kind":"refused"' in answer, line
        connect = 'import socket, sys; s = socket.socket(1, 5); s.connect(sys.argv[1]); s.send(b\'{"type":"hello","version":1}\')'
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-c"]
        done = subprocess.run(
            [*command, f"{connect}; print(s.recv(1000))", socket], capture_output=True, text=True, check=True
        )
        assert "ready" in done.stdout


FORGER = """
import os, socket
def main(path):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, 0o777)
    listener.listen()
    print("listens", flush=True)
    connection, _ = listener.accept()
    connection.recv(1000)
    connection.send(b'{"type": "ready", "version": 1, "pid": 1}')
    connection.recv(1000)
"""


@pytest.mark.parametrize("user", ["single"], indirect=True)
def test_a_job_does_not_pass_for_a_host(pyspawner, user, open_folder):
    """Where it can write, it listens as the very user who connects. (The control: the credentials alone are the user's.)"""
    _, prefix = user
    os.chown(open_folder, USER, USER)
    open_folder.chmod(0o755)
    (open_folder / "code").mkdir()
    (open_folder / "code/forger.py").write_text(FORGER)
    shared = open_folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    config = f'[profile.default]\nbinds = [{{ source = "{shared}", writable = true }}]\n'
    command = pyspawner.command("run", "forger.main", path=open_folder / "code", config=config, prefix=prefix)
    client = (
        "import os, socket, struct, sys\n"
        "s = socket.socket(1, 5); s.connect(sys.argv[1])\n"
        "print(struct.unpack('3i', s.getsockopt(1, 17, 12))[1] == os.getuid())\n"
        "import pyspawner\n"
        "try: pyspawner.Client(connect=sys.argv[1])\n"
        "except PermissionError as error: print(error.strerror)\n"
    )
    with subprocess.Popen([*command, "--", shared / "socket"], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout.readline() == "listens\n"
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-c", client]
        environment = {"PYTHONPATH": str(ROOT / "python")}
        done = subprocess.run(
            [*as_user, shared / "socket"], env=environment, capture_output=True, text=True, timeout=30, check=False
        )
        job.terminate()
    assert done.stdout == "True\na job or a container listens there, and no host of this user\n", done


def test_an_ordinary_users_host_serves_that_user_alone(pyspawner, user, open_folder):
    """Others have no ids there: all of them look like one, and it like nobody."""
    _, prefix = user
    os.chown(open_folder, USER, USER)
    for flags in (["--allow-uid", "65534"], ["--allow-uid", "0"], ["--socket-group", "54322"]):
        command = pyspawner.command(
            "serve", "connects.main", "--socket", open_folder / "no", *flags, path=JOBS, prefix=prefix
        )
        done = pyspawner.finish(command, "", 60)
        assert done.status == 125 and "need CAP_SYS_ADMIN" in done.stderr
    socket = open_folder / "socket"
    with serving(socket, "connects.main", JOBS, "--socket-mode", "0666", "--config", NO_SPARES, prefix=prefix):
        for number in (0, 65534, 54399):
            command = ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", "/usr/bin/python3", "-c"]
            code = "import socket, sys; s = socket.socket(1, 5); s.connect(sys.argv[1]); print(s.recv(1000))"
            done = subprocess.run([*command, code, socket], capture_output=True, text=True, check=True)
            assert "refused" in done.stdout and "serves that user alone" in done.stdout, done


@pytest.mark.parametrize("user", ["single"], indirect=True)
def test_a_job_that_takes_every_epoll_watch_costs_no_sibling_its_result(pyspawner, user):
    """The kernel counts them for the user, who is the host's own here."""
    _, prefix = user
    command = pyspawner.command("map", "quotas.main", "-j", "3", path=JOBS, prefix=prefix, spares=0)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as host:

        def ask(**job):
            host.stdin.write(json.dumps(job) + "\n")
            host.stdin.flush()

        ask(id="sibling", args=["sleep", 30])
        ask(id="taker", args=["take_epoll_watches"], timeout=25)
        seen = {}
        refused = 0
        while len(seen) < 2:
            ask(id="probe", args=["sleep", 0.2])
            line = json.loads(host.stdout.readline())
            if line["id"] != "probe":
                seen[line["id"]] = line
            elif line["outcome"] != "ok":
                assert line["outcome"] == "setup_failed" and "ENOSPC" in line["detail"].replace(
                    "os error 28", "ENOSPC"
                ), line
                refused += 1
        assert refused, "the control: the watches were all taken"
        assert seen["taker"]["outcome"] == "timed_out" and seen["sibling"]["outcome"] == "ok", seen
        ask(id="last", args=["sleep", 0])
        assert [json.loads(line)["outcome"] for line in host.communicate(timeout=60)[0].splitlines()][-1] == "ok"


# Becomes root of a user namespace with so many ids, as a container has, and executes the rest.
CONTAIN = """
import ctypes, os, sys
told, tell = os.pipe()
own = os.getpid()
writer = os.fork()
if writer == 0:
    os.read(told, 1)
    for file in ("uid_map", "gid_map"):
        with open(f"/proc/{own}/{file}", "w") as maps:
            maps.write("0 100000 65536")
    os._exit(0)
assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
os.write(tell, b"x")
assert os.waitpid(writer, 0)[1] == 0
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
FREE = {60_000, 61_000, 65_533}


def test_in_a_container_no_child_has_an_accounts_id(pyspawner, tmp_path):
    """Root of 65,536 ids, of which the upper ones but four have names."""
    names = tmp_path / "names"
    named = sorted(set(range(65_534 - (1 << 14), 65_534)) - FREE - {50_000})
    names.write_text("root:x:0:0::/:/bin/sh\n" + "".join(f"app{n}:x:{n}:{n}::/:/bin/false\n" for n in named))
    script = tmp_path / "become"
    text = BECOME.replace("@PREFIX@", sys.base_prefix).replace("@RANGE@", "").replace("@USER@", "0")
    (tmp_path / "contain").write_text(CONTAIN)
    contained = f'mount --bind {names} /etc/passwd\nexec /usr/bin/python3 {tmp_path}/contain "$@"\n'
    script.write_text(text[: text.rindex("exec setpriv")] + contained)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(0o755)
    prefix = ["unshare", "-m", "sh", script]
    command = pyspawner.command("map", "basic.sleep", "-j", "3", path=BASIC, prefix=prefix, spares=0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("[3]\n[3]\n[3]\n")
        process.stdin.flush()
        wait_until(lambda: (host := host_of(process)) and len(children_of(host)) == 3)
        time.sleep(0.5)  # until their maps are written
        uids = {os.stat(f"/proc/{child}").st_uid - 100_000 for child in children_of(host_of(process))}
        out, _ = process.communicate()
    assert [json.loads(line)["outcome"] for line in out.splitlines()] == ["ok"] * 3
    assert uids == FREE


def test_the_program_is_not_changed_by_way_of_what_runs_it(pyspawner, user, open_folder):
    """Its owner may be the job's user, and `/proc/self/exe` leads to the file whatever the root has in its place."""
    kind, prefix = user
    program = open_folder / "pyspawner"
    shutil.copy(PYSPAWNER, program)
    os.chown(program, USER, USER)
    os.chown(open_folder, USER, USER)
    # The control: shown as writable, it is changed by a job that is its owner.
    config = f'[profile.default]\nbinds = [{{ source = "{open_folder}", target = "{PLACE}", writable = true }}]\n'
    command = pyspawner.command("map", "root.main", path=JOBS, prefix=prefix, config=config)
    command[command.index(str(PYSPAWNER))] = str(program)
    jobs = [["change_attributes", "/proc/self/exe"], ["change_attributes", f"{PLACE}/pyspawner"]]
    # Not when it was read, which the kernel may note at each start.
    attributes = lambda: [
        getattr(program.stat(), f"st_{name}") for name in ("mode", "uid", "size", "mtime_ns", "ctime_ns")
    ]
    before = attributes()
    done = pyspawner.finish([*command, "-j", "1", "--ordered"], "".join(json.dumps(job) + "\n" for job in jobs[:1]), 60)
    assert done.lines[0]["result"] == ["EROFS"] * 4, done
    assert attributes() == before
    done = pyspawner.finish([*command, "-j", "1", "--ordered"], "".join(json.dumps(job) + "\n" for job in jobs), 60)
    assert done.lines[1]["result"][:2] == ["ok" if kind == "single" else "EPERM"] * 2, done
    assert pyspawner.value("files.starts_with", "/proc/self/exe", 4, path=JOBS, prefix=prefix) == "\x7fELF"
