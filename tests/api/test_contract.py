"""A program written for pyspawner 1.0.0. It passes there, and here, unchanged.

`test_the_same_program_under_the_old_package` in test_client.py runs this file under 1.0.0.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pyspawner
import pytest

JOBS = Path(__file__).parent / "jobs"
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "ANSWER": "42"}


# Without a C library, whose start-up makes calls that the old package's filter does not know. It
# exits with 3 if it runs as the user 1000 in all respects.
PROGRAM = """
static long call(long number, long a, long b, long c)
{
#if defined(__x86_64__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
#else
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
#endif
}
#if defined(__x86_64__)
enum { WRITE = 1, EXIT = 60, GETUID = 102, GETEUID = 107 };
#else
enum { WRITE = 64, EXIT = 93, GETUID = 174, GETEUID = 175 };
#endif
void _start(void)
{
    int right = call(GETUID, 0, 0, 0) == 1000 && call(GETEUID, 0, 0, 0) == 1000;
    call(WRITE, 1, (long)"executed\\n", 9);
    call(EXIT, right ? 3 : 4, 0, 0);
}
"""


# Set where the network namespace is the tests' own.
if "CONTRACT_NETWORK" in os.environ:

    def test_a_network(client):
        network(client)


@pytest.fixture(scope="module")
def client():
    before = os.getcwd()
    os.chdir(JOBS)
    try:
        with pyspawner.Client(
            child_main="contract_jobs.main",
            environment=ENVIRONMENT,
            preload_imports=["json", "decimal"],
        ) as client:
            os.chdir(before)
            yield client
    finally:
        os.chdir(before)


@pytest.fixture
def root():
    """A chroot: world-readable, with a static program, set-uid root."""
    folder = Path("/var/tmp") / f"contract-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    source = folder / "program.c"
    source.write_text(PROGRAM)
    flags = ["-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1"]
    subprocess.run(["cc", *flags, "-o", folder / "program", source], check=True)
    source.unlink()
    (folder / "program").chmod(0o6755)
    yield folder
    shutil.rmtree(folder)


def run(client, *args, config=None, data=b"", process_name="contract"):
    """A child's output, error and wait status."""
    child = client.spawn_child(
        args=list(args), process_name=process_name, sandbox_config=config or pyspawner.SandboxConfig()
    )
    try:
        child.stdin.write(data)
        child.stdin.close()
    except BrokenPipeError:
        pass
    out, err = child.stdout.read(), child.stderr.read()
    pid, status = child.wait(0)
    assert pid == child.pid
    child.stdout.close()
    child.stderr.close()
    return out.decode(), err.decode(), status


def test_output_and_error(client):
    assert run(client, "talk") == ("to stdout\n", "to stderr\n", 0)


def test_output_by_every_way(client):
    out, err, status = run(client, "write_everywhere")
    assert (out, err, status) == ("print\n__stdout__\ndescriptor\n", "print\n__stderr__\ndescriptor\n", 0)


def test_a_missing_module_is_an_exception(client):
    out, err, status = run(client, "import_missing")
    assert (out, status) == ("", 1 << 8)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in err


def test_input(client):
    assert run(client, "echo", data=b"some text") == ("SOME TEXT", "", 0)


def test_arguments_are_python_objects(client):
    args = ([1, None], {"k": (2.5, b"bytes")}, "ü")
    assert run(client, "arguments", *args)[0] == f"{args}\n"


def test_an_exception_is_printed_and_exits_with_1(client):
    out, err, status = run(client, "fail", "on purpose")
    assert (out, status) == ("", 1 << 8)
    assert "Traceback (most recent call last)" in err and "ValueError: on purpose" in err


def test_environment(client):
    assert run(client, "environment") == (f"{sorted(ENVIRONMENT.items())}\n", "", 0)


def test_descriptors(client):
    assert run(client, "descriptors") == ("[0, 1, 2]\n", "", 0)


def test_identity(client):
    assert run(client, "identity") == ("1 1000 1000\n", "", 0)


def test_import_path(client):
    assert run(client, "path") == ("''\n", "", 0)


def test_setting_the_user_id_kills(client):
    out, _, status = run(client, "set_uid")
    assert (out, status) == ("", signal.SIGSYS)


def test_each_layer_alone(client):
    only = {
        name: pyspawner.SandboxConfig(skip_sandbox_except=frozenset([name]))
        for name in ("drop_capabilities", "setuid", "no_new_privs", "seccomp")
    }
    assert run(client, "set_uid", config=only["seccomp"])[2] == signal.SIGSYS
    assert run(client, "set_uid", config=only["setuid"])[0] == "still here\n"
    assert run(client, "identity", config=only["setuid"])[0] == "1 1000 1000\n"
    assert run(client, "no_new_privs", config=only["no_new_privs"])[0] == "1\n"
    assert run(client, "no_new_privs", config=only["drop_capabilities"])[0] == "0\n"
    assert run(client, "chroot", config=only["drop_capabilities"])[0] == "PermissionError\n"
    assert run(client, "chroot", config=only["no_new_privs"])[0] == ""


def only(*names, **others):
    return pyspawner.SandboxConfig(skip_sandbox_except=frozenset(names), **others)


@pytest.mark.filterwarnings("ignore:skip_sandbox_except:UserWarning")
def test_a_name_that_is_no_layers_leaves_all_out(client):
    assert run(client, "identity", config=only("nothing"))[0] != "1 1000 1000\n"
    assert run(client, "set_uid", config=only("nothing"))[0] == "still here\n"
    assert run(client, "no_new_privs", config=only("none", "nothing"))[0] == "0\n"
    # Beside a layer's name it changes nothing.
    assert run(client, "set_uid", config=only("seccomp", "nothing"))[2] == signal.SIGSYS


@pytest.mark.filterwarnings("ignore:skip_sandbox_except:UserWarning")
def test_what_cannot_be_left_out(client, root):
    refused = "uid_map PermissionError\ngid_map PermissionError\nsetgroups PermissionError\n"
    assert run(client, "write_id_maps", config=only("nothing")) == (refused, "", 0)
    in_root = only("nothing", chroot_dir=root)
    assert run(client, "kernel_folders", config=in_root) == ("[] /\n", "", 0)
    # As user 0 it is not the one that the program expects.
    assert run(client, "run_program", "/program", config=in_root) == ("4 b'executed\\n' b''\n", "", 0)


def test_the_user_without_the_filter(client, root):
    config = only("setuid", "drop_capabilities", chroot_dir=root)
    expected = "1000 1000\nPermissionError\nPermissionError\n"
    assert run(client, "become_root", config=config) == (expected, "", 0)


def test_the_filter_in_a_chroot(client, root):
    config = only("seccomp", "no_new_privs", chroot_dir=root)
    assert run(client, "set_uid", config=config)[2] == signal.SIGSYS


def test_no_capability_is_ambient(client):
    assert run(client, "ambient_capability", config=only("drop_capabilities"))[0] == "0\n"


def test_a_set_uid_program_outside_of_a_chroot(client, root):
    """Its owner is nobody in the child's namespace."""
    shown = run(client, "run_program", str(root / "program"), config=only("setuid", "no_new_privs"))
    assert shown == ("3 b'executed\\n' b''\n", "", 0)


def test_names_that_are_no_modules():
    for name in ("a b", "a,b", 'a"b'):
        with pytest.raises(ValueError):
            pyspawner.Client(child_main="contract_jobs.main", preload_imports=["json", name])


def test_an_empty_process_name_is_none(client):
    assert run(client, "own_name", process_name="contract")[0] == "contract\n"
    assert run(client, "own_name", process_name="")[0] not in ("contract\n", "\n")


def test_kill(client):
    child = client.spawn_child(["sleep", 60], sandbox_config=pyspawner.SandboxConfig())
    assert child.stdout.readline() == b"here\n"
    child.kill()
    assert child.wait(0) == (child.pid, signal.SIGKILL)


def test_wait_without_hanging(client):
    child = client.spawn_child(["sleep", 60], sandbox_config=pyspawner.SandboxConfig())
    assert child.wait(os.WNOHANG) == (0, 0)
    child.kill()
    assert child.wait(0)[1] == signal.SIGKILL


def test_chroot(client, root):
    config = pyspawner.SandboxConfig(chroot_dir=root)
    assert run(client, "surroundings", config=config) == ("['program'] /\n", "", 0)


def test_a_set_uid_program_in_a_chroot(client, root):
    config = pyspawner.SandboxConfig(chroot_dir=root)
    assert run(client, "execute", "/program", config=config) == ("executed\n", "", 3 << 8)


def test_id_maps_cannot_be_written(client):
    assert run(client, "write_uid_map")[0] == "done\n"


def test_without_a_network(client):
    assert run(client, "connect", "127.0.0.1", 80)[0] == "OSError\n"
    assert run(client, "connect", "192.0.2.1", 80)[0] == "OSError\n"
    assert run(client, "connection_error", "192.0.2.1", 80)[0] == "ENETUNREACH\n"


def test_children_at_once(client):
    children = [client.spawn_child(["echo"], sandbox_config=pyspawner.SandboxConfig()) for _ in range(10)]
    for number, child in enumerate(children):
        child.stdin.write(b"child %d" % number)
        child.stdin.close()
    for number, child in enumerate(children):
        assert child.stdout.read() == b"CHILD %d" % number
        assert child.wait(0) == (child.pid, 0)


def network(client):
    """Not by itself a test: it needs a network namespace of its own. See test_client.py."""

    server = socket.create_server(("0.0.0.0", 8080))
    threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())
    assert run(client, "connect", "192.168.123.1", 8080, config=config)[0] == "hello\n"
    with socket.create_server(("0.0.0.0", 8081)) as other:
        threading.Thread(target=lambda: other.accept()[0].sendall(b"by name"), daemon=True).start()
        named = pyspawner.NetworkConfig("veth-a", "veth-b", "192.168.7.1", "192.168.7.2")
        config = pyspawner.SandboxConfig(network=named)
        assert run(client, "connect", "192.168.7.1", 8081, config=config)[0] == "by name\n"
    # A stale interface of that name is in nobody's way.
    subprocess.run(["ip", "link", "add", "veth-pyspawn", "type", "veth", "peer", "name", "left"], check=True)
    threading.Thread(target=lambda: server.accept()[0].sendall(b"again"), daemon=True).start()
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())
    assert run(client, "connect", "192.168.123.1", 8080, config=config)[0] == "again\n"
    # The operator's rules about the interface's name are in force.
    nft = "table ip contract { chain input { type filter hook input priority 0; iifname veth-pyspawn reject\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=nft, text=True, check=True)
    config = pyspawner.SandboxConfig(network=pyspawner.NetworkConfig())
    assert run(client, "connection_error", "192.168.123.1", 8080, config=config)[0] == "ECONNREFUSED\n"
    server.close()
