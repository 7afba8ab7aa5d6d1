"""Each layer alone, and its positive control: the same attack with that layer off."""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import JOBS, children_of, host_of, skipping

INSIDE = 1000


def attack(pyspawner, name, *args, off=()):
    """What the attack got, under the default sandbox or with layers off."""
    line = pyspawner.job(f"attacks.{name}", *args, config=skipping(*off))
    if line["outcome"] == "blocked_syscall":
        return f"blocked {line['detail']}"
    assert line["outcome"] == "ok", line
    return line["result"]


def test_what_a_child_sees(pyspawner):
    done = pyspawner.map("basic.surroundings", [[]], "--env", "A=B", "--env", "C=d e")
    seen = done.lines[0]["result"]
    assert set(seen["descriptors"]) == {"0", "1", "2", "3"}
    assert seen["environ"] == {"A": "B", "C": "d e"}
    assert sorted(seen["environ_file"].rstrip("\0").split("\0")) == ["A=B", "C=d e"]
    assert seen["command_line"] == "pyspawner\0--as-host\0"
    assert seen["processes"] == [1] and seen["pid"] == 1
    assert seen["route"] == ""
    assert (seen["uid"], seen["gid"], seen["groups"]) == (INSIDE, INSIDE, [])
    assert seen["path_start"] == ""
    assert seen["executable"] == sys.executable
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen["status"][capabilities], 16) == 0
    assert seen["status"]["NoNewPrivs"] == "1"
    assert seen["status"]["Seccomp"] == "2"


def test_environment_is_empty_unless_configured(pyspawner):
    seen = pyspawner.value("basic.surroundings")
    assert seen["environ"] == {} and seen["environ_file"].strip("\0") == ""


def test_without_a_result_there_are_three_descriptors(pyspawner, open_folder):
    (open_folder / "look.py").write_text("import os\ndef main(): print(len(os.listdir('/proc/self/fd')))")
    # The listing itself is the fourth.
    assert pyspawner.run("look.main", path=open_folder).stdout == "4\n"


def test_only_harmless_places_are_writable(pyspawner):
    assert attack(pyspawner, "writable_places") == [
        "/dev/full",
        "/dev/null",
        "/dev/random",
        "/dev/shm",
        "/dev/urandom",
        "/dev/zero",
        "/tmp",
    ]


def test_working_directory_does_not_lead_around_the_private_tmp(pyspawner, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o777)
    command = pyspawner.command("map", "attacks.escape_by_working_directory")
    done = subprocess.run(command, input=b"[]\n", capture_output=True, cwd=secret, check=True)
    assert b"secret" not in done.stdout


# ---- one layer at a time ---------------------------------------------------------------


def test_user_namespace_gives_each_child_a_host_uid_of_its_own(pyspawner):
    def host_uids(config):
        command = pyspawner.command("map", "basic.sleep", "-j", "2", config=config)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"[2]\n[2]\n")
        process.stdin.close()
        time.sleep(1.5)
        uids = [os.stat(f"/proc/{child}").st_uid for child in children_of(host_of(process))]
        process.stdout.read()
        assert process.wait() == 0
        return uids

    first, second = host_uids(skipping())
    assert first != second and min(first, second) >= 10_000
    assert host_uids(skipping("user_namespace")) == [INSIDE, INSIDE]


def test_pid_namespace(pyspawner):
    # Without a PID namespace of its own, a child may not mount a /proc.
    def signal_host(*off):
        config = skipping(*off) + 'proc = "none"\n'
        return pyspawner.value("attacks.signal_process", os.getpid(), config=config)

    assert signal_host() == "ESRCH"
    assert signal_host("pid_namespace") == "EPERM"


def test_network_namespace(pyspawner):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            connection, _ = server.accept()
            connection.sendall(b"host's secret")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert attack(pyspawner, "connect", port) == "ENETUNREACH"
        assert attack(pyspawner, "connect", port, off=["network_namespace"]) == "host's secret"


def test_ipc_namespace(pyspawner):
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x5079_0001
    memory = libc.shmget(key, 4096, 0o1666)
    assert memory >= 0
    try:
        assert attack(pyspawner, "attach_shared_memory", key) == "ENOENT"
        assert attack(pyspawner, "attach_shared_memory", key, off=["ipc_namespace"]) == "ok"
    finally:
        libc.shmctl(memory, 0, None)


def test_uts_namespace(pyspawner):
    assert attack(pyspawner, "hostname") == "sandbox" != socket.gethostname()
    assert attack(pyspawner, "hostname", off=["uts_namespace"]) == socket.gethostname()


def test_cgroup_namespace(pyspawner):
    ours = os.readlink("/proc/self/ns/cgroup")
    assert attack(pyspawner, "namespace", "cgroup") != ours
    assert attack(pyspawner, "namespace", "cgroup", off=["cgroup_namespace"]) == ours


def test_root_is_read_only(pyspawner, open_folder):
    target = open_folder / "file"
    assert attack(pyspawner, "write_file", str(target)) == "EROFS"
    assert not target.exists()
    assert attack(pyspawner, "write_file", str(target), off=["root", "landlock"]) == "ok"
    assert target.read_text() == "owned"


def test_tmp_is_private(pyspawner, tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and folder != folder.parent and str(folder) != "/tmp":
            folder.chmod(0o755)
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    assert attack(pyspawner, "read_file", str(secret)) == "ENOENT"
    assert attack(pyspawner, "read_file", str(secret), off=["root"]) == "of the host"


def test_sockets_of_host_services_are_out_of_reach(pyspawner):
    """Neither a read-only mount nor a network namespace keeps a job from them."""
    path = f"/run/pyspawner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            os.chmod(path, 0o777)
            server.listen()
            assert attack(pyspawner, "connect_by_path", path) == "ENOENT"
            assert attack(pyspawner, "connect_by_path", path, off=["root"]) == "ok"
        finally:
            os.unlink(path)


def test_tmp_has_a_size(pyspawner, open_folder):
    (open_folder / "fill.py").write_text(
        "def main(n):\n"
        "    with open('/tmp/x', 'wb') as f:\n"
        "        try: f.write(b'x' * n); f.flush()\n"
        "        except OSError as e: return e.errno\n"
    )

    def fill(size):
        config = f'[profile.default]\ntmp = "{size}"\n'
        return pyspawner.value("fill.main", 2 << 20, path=open_folder, config=config)

    assert fill("1M") == 28  # ENOSPC
    assert fill("4M") is None


def test_setuid(pyspawner):
    assert attack(pyspawner, "ids") == {"uid": [INSIDE] * 3, "gid": [INSIDE] * 3, "groups": []}
    assert attack(pyspawner, "ids", off=["setuid"]) == {"uid": [0] * 3, "gid": [0] * 3, "groups": []}


def test_drop_capabilities(pyspawner):
    assert attack(pyspawner, "mount_tmpfs", off=["seccomp"]) == "EPERM"
    assert attack(pyspawner, "mount_tmpfs", off=["seccomp", "landlock", "drop_capabilities"]) == "ok"


def test_no_new_privs(pyspawner, open_folder):
    """A set-uid program, where neither a user namespace nor "nosuid" is in its way."""
    open_folder.chmod(0o755)
    program = open_folder / "whoami"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 0, 0)
    program.chmod(0o4755)
    others = ["user_namespace", "root", "seccomp", "drop_capabilities"]
    assert "euid=0" not in attack(pyspawner, "run_program", str(program), off=others)
    assert "euid=0(root)" in attack(
        pyspawner, "run_program", str(program), off=[*others, "no_new_privs"]
    )


@pytest.mark.parametrize(
    "name", ["unshare", "io_uring_setup", "bpf", "keyctl", "ptrace", "setns", "setuid", "swapon", "userfaultfd"]
)
def test_seccomp_ends_what_no_honest_program_calls(pyspawner, name):
    assert attack(pyspawner, "call", name) == f"blocked {name}"
    assert not attack(pyspawner, "call", name, off=["seccomp"]).startswith("blocked")


def test_seccomp_against_new_namespaces(pyspawner):
    assert attack(pyspawner, "new_user_namespace") == "blocked unshare"
    assert attack(pyspawner, "new_user_namespace", off=["seccomp"]) == "ok"
    assert attack(pyspawner, "clone_new_user_namespace") == "ENOSYS"
    assert attack(pyspawner, "clone_new_user_namespace", off=["seccomp"]) == "ok"


def test_seccomp_refuses_what_it_does_not_know(pyspawner):
    assert attack(pyspawner, "call", "unknown") == "ENOSYS"
    assert attack(pyspawner, "call", "clone3", 0, 0) == "ENOSYS"
    assert attack(pyspawner, "call", "clone3", 0, 0, off=["seccomp"]) == "EINVAL"


def test_seccomp_handler_cannot_be_replaced(pyspawner):
    assert attack(pyspawner, "call_twice_with_handler", "unshare") == "blocked unshare"
    assert attack(pyspawner, "call_twice_with_handler", "unshare", off=["seccomp"])[0] is True


def test_seccomp_limits_socket_families(pyspawner):
    allowed = {tuple(pair) for pair in attack(pyspawner, "socket_families")}
    assert {family for family, _ in allowed} <= {1, 2, 10, 16}
    assert (16, 0) in allowed and (16, 12) not in allowed
    control = {tuple(pair) for pair in attack(pyspawner, "socket_families", off=["seccomp"])}
    assert (16, 12) in control or {family for family, _ in control} - {1, 2, 10, 16}


THIRTY_TWO_BIT = r"""
#include <stdio.h>
int main(void) {
    long result = 20; /* getpid by the 32-bit table */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
    printf("%ld\n", result);
    return 0;
}
"""
X32 = r"""
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(void) { printf("%ld\n", syscall(0x40000000 + SYS_getpid)); return 0; }
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 has other tables beside its own")
@pytest.mark.parametrize("source", [THIRTY_TWO_BIT, X32], ids=["32-bit", "x32"])
def test_seccomp_refuses_other_call_tables(pyspawner, open_folder, source):
    program = open_folder / "program"
    subprocess.run(["cc", "-x", "c", "-", "-o", program], input=source.encode(), check=True)
    open_folder.chmod(0o755)
    assert attack(pyspawner, "run_program", str(program)) == ""
    assert attack(pyspawner, "run_program", str(program), off=["seccomp"]) != ""


def test_chroot_shows_exactly_that_folder(pyspawner, open_folder):
    (open_folder / "only").write_text("")
    (open_folder / "look.py").write_text(
        "import os\ndef main(): return [os.getcwd(), sorted(os.listdir('/')), os.access('/proc/self', 0)]"
    )
    config = f'[profile.default]\nroot = {{ chroot = "{open_folder}" }}\n'
    result = pyspawner.value("look.main", path=open_folder, config=config)
    assert result == ["/", sorted(os.listdir(open_folder)), False]


def test_skipped_layers_are_named_on_the_log(pyspawner):
    done = pyspawner.map("basic.nothing", [[]], config=skipping("seccomp", "setuid"))
    assert "layer seccomp is skipped" in done.stderr
    assert "layer setuid is skipped" in done.stderr


def test_a_layer_that_cannot_be_applied_stops_everything(pyspawner, open_folder):
    """Without CAP_SYS_ADMIN there is no sandbox, and no job is run without one."""
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = pyspawner.finish(pyspawner.command("map", "basic.nothing", prefix=drop), "[]\n", 60)
    assert (done.status, done.stdout) == (125, "")
    assert "root: unshare(CLONE_NEWNS): EPERM" in done.stderr and "CAP_SYS_ADMIN" in done.stderr


def test_unreachable_files_are_named(pyspawner, open_folder):
    closed = open_folder / "closed"
    shutil.copytree(JOBS, closed)
    closed.chmod(0o700)
    done = pyspawner.map("basic.nothing", [[]], path=closed)
    assert done.status == 125
    assert f"children cannot read {closed}" in done.stderr and "chmod" in done.stderr
