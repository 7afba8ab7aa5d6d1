"""The client package beyond the old one's."""

import asyncio
import errno
import gc
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyspawner
import pytest
from clients import JOBS, NO_SPARES, client, open_client, said, server  # noqa: F401
from driving import PYSPAWNER, ROOT
from processes import children_of, host_of, is_alive, unslotted, wait_until
from pyspawner import SandboxConfig

# ---- beyond the old package ---------------------------------------------------------------


def test_communicate(client):
    child = client.spawn_child(["shout"])
    text = "some text " * 50_000
    out, err = child.communicate(text.encode())
    assert (out.decode(), len(err)) == (text.upper(), 200_000)
    assert child.poll() == 0 and child.outcome().name == "ok"


def test_communicate_in_time(client):
    child = client.spawn_child(["sleep", 60])
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        child.communicate(timeout=0.5)
    assert caught.value.output == b"here\n"
    assert child.poll() is None
    child.kill()
    assert child.wait() == (child.pid, signal.SIGKILL)


def test_outcomes(client):
    cases = [
        (["leave", 3], SandboxConfig(), ("exited", 3 << 8)),
        (["blocked"], SandboxConfig(), ("blocked_syscall", signal.SIGSYS)),
        (["sleep", 60], SandboxConfig(timeout=0.5), ("timed_out", signal.SIGKILL)),
    ]
    for args, config, expected in cases:
        with client.spawn_child(args, sandbox_config=config) as child:
            outcome = child.outcome()
            assert (outcome.name, outcome.status) == expected, outcome
            assert outcome.wall_ms > 0 and outcome.cpu_ms > 0
    assert outcome.detail.startswith("ran for its limit")


def test_poll_and_waiting_for_an_outcome(client):
    child = client.spawn_child(["sleep", 60])
    assert child.poll() is None
    with pytest.raises(TimeoutError):
        child.outcome(timeout=0.1)
    child.kill()
    assert child.outcome(timeout=10).name == "signaled" and child.poll() == -9
    child.kill()  # not an error


def test_many_threads_may_wait_for_one_child(client):
    child = client.spawn_child(["sleep", 1])
    results = []
    threads = [threading.Thread(target=lambda: results.append(child.wait())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(child.pid, 0)] * 8


def test_limits_of_one_child(client):
    assert said(client.spawn_child(["open_many"], sandbox_config=SandboxConfig(open_files=64))) == "True"
    small = SandboxConfig(memory="64M")
    with client.spawn_child(["allocate", 200], sandbox_config=small) as child:
        text = child.stdout.read().decode().strip()
        assert text == "MemoryError" or child.outcome().name == "out_of_memory"
    assert said(client.spawn_child(["allocate", 200])) == "200"
    for wrong in (SandboxConfig(pids=0), SandboxConfig(memory="much"), SandboxConfig(timeout=-1)):
        with pytest.raises(pyspawner.ProtocolError):
            client.spawn_child(["echo"], sandbox_config=wrong)


def test_facts_and_name(client):
    assert said(client.spawn_child(["facts"], sandbox_config=SandboxConfig(timeout=10))) == "True"
    assert said(client.spawn_child(["facts"])) == "False"
    assert said(client.spawn_child(["name"], process_name="child-1")) == "child-1"


def test_a_profile_of_a_configuration(tmp_path):
    config = tmp_path / "pyspawner.toml"
    config.write_text('[profile.short]\n[profile.short.limits]\nwall = "500ms"\n')
    with open_client(config=config, profile="short") as client:
        assert client.spawn_child(["sleep", 60]).outcome().name == "timed_out"
        # A child's own limit may only be shorter.
        child = client.spawn_child(["sleep", 60], sandbox_config=SandboxConfig(timeout=30))
        assert child.outcome().name == "timed_out"


# ---- errors ---------------------------------------------------------------------------------


def test_a_failed_import_has_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise RuntimeError('on purpose')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pyspawner.PreloadError, match="(?s)Traceback.*on purpose"):
        pyspawner.Client(child_main="client_jobs.main", preload_imports=["broken"])
    with pytest.raises(pyspawner.PreloadError, match="no_such_module"):
        pyspawner.Client(child_main="no_such_module.main")


def test_a_host_that_cannot_start(tmp_path):
    with pytest.raises(pyspawner.ConfigurationError, match="no-such-profile"):
        open_client(profile="no-such-profile")
    with pytest.raises(FileNotFoundError):
        pyspawner.Client(connect=tmp_path / "nothing")
    with pytest.raises(TypeError):
        pyspawner.Client()


def test_a_missing_chroot(client):
    with pytest.raises(pyspawner.SandboxSetupError) as caught:
        client.spawn_child(["echo"], sandbox_config=SandboxConfig(chroot_dir=Path("/no/such/folder")))
    error = caught.value
    assert (error.layer, error.errno, error.outcome) == ("root", 2, "setup_failed")
    assert "/no/such/folder" in error.step and error.hint
    # What has to be said about a long name does not fit into a message: its middle is left out.
    name = "\1" * 9_000 + "end"
    with pytest.raises(pyspawner.SandboxSetupError) as caught:
        client.spawn_child(["echo"], sandbox_config=SandboxConfig(chroot_dir=Path("/", name)))
    error = caught.value
    assert (error.layer, error.errno) == ("root", errno.ENAMETOOLONG)
    assert error.step.startswith("open /\1\1") and "[...]" in error.step and error.step.endswith("\1end")


class Unpickled:
    def __reduce__(self):
        return (int, ("not a number",))


def test_arguments_that_cannot_be_unpickled(client):
    """To unpickle is to run code, so it is the job that fails."""
    child = client.spawn_child([Unpickled()])
    assert re.search(rb"(?s)ValueError.*not a number.*were unpickled", child.communicate()[1])
    assert (child.outcome().name, child.outcome().status) == ("exited", 1 << 8)
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        client.spawn_child([threading.Lock()])
    assert said(client.spawn_child(["echo", "still", "here"])) == "still here"


def test_a_host_that_is_killed():
    client = open_client()
    child = client.spawn_child(["sleep", 60])
    os.kill(host_of(client._process), signal.SIGKILL)
    with pytest.raises(pyspawner.HostDied):
        child.wait()
    with pytest.raises(pyspawner.HostDied):
        client.spawn_child(["echo"])
    child.kill()
    client.close()


# ---- a chroot of one's own --------------------------------------------------------------------


@pytest.fixture
def root(open_folder):
    (open_folder / "inner").mkdir()
    (open_folder / "inner").chmod(0o777)
    return open_folder


def test_each_chroot_is_as_it_is_at_the_time(client, root):
    def listing(folder):
        return said(client.spawn_child(["listing", "/"], sandbox_config=SandboxConfig(chroot_dir=folder)))

    assert listing(root) == "['inner']"
    (root / "new").write_text("")
    assert listing(root) == "['inner', 'new']"
    assert listing(root / "inner") == "[]"
    assert "usr" in said(client.spawn_child(["listing", "/"]))


def test_a_chroot_is_writable_where_its_modes_say_and_leads_nowhere_else(client, root, open_folder):
    def touch(path, **options):
        config = SandboxConfig(chroot_dir=root, **options)
        return said(client.spawn_child(["touch", path], sandbox_config=config))

    assert touch("/inner/file") == "written" and (root / "inner/file").exists()
    assert touch("/../../../../var/tmp/out") == "FileNotFoundError"
    (root / "link").symlink_to("/etc/passwd")
    with pytest.raises(pyspawner.SandboxSetupError):
        client.spawn_child(["echo"], sandbox_config=SandboxConfig(chroot_dir=root / "link"))


def test_kernel_file_systems_in_a_chroot_are_covered(root):
    """Where somebody has mounted them there: in a mount namespace of a host's own."""
    script = root / "program.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(ROOT / "python")!r})
        import pyspawner
        from pathlib import Path
        config = pyspawner.SandboxConfig(chroot_dir=Path({str(root)!r}))
        with pyspawner.Client(child_main="client_jobs.main") as client:
            print(client.spawn_child(["listing", "/inner"], sandbox_config=config).communicate()[0].decode())
        """)
    )

    def run(before):
        command = ["unshare", "-m", "sh", "-c", before + 'exec "$@"', "sh", sys.executable, script]
        return subprocess.run(command, capture_output=True, cwd=JOBS, check=True).stdout.decode().strip()

    assert run(f"mount -t proc p {root}/inner;") == "[]"
    assert run(f"mount -t tmpfs t {root}/inner; mkdir {root}/inner/wanted;") == "['wanted']"  # the control


# ---- many at once -------------------------------------------------------------------------------


def test_eight_threads(client):
    """8 threads × 500 children: 4,000 correct results."""
    wrong = []

    def work(thread):
        for number in range(500):
            child = client.spawn_child(["echo", thread, number])
            if said(child) != f"{thread} {number}" or child.wait()[1] != 0:
                wrong.append((thread, number))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_is_left_open():
    def open_descriptors():
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # what earlier tests have dropped
    client = open_client(config=NO_SPARES)
    host = host_of(client._process)
    said(client.spawn_child(["echo"]))
    time.sleep(0.3)  # its end is told before everything of it is closed
    before = open_descriptors(), unslotted(host)
    for _ in range(50):
        said(client.spawn_child(["echo"]))
        client.spawn_child(["sleep", 0])  # dropped at once
        with pytest.raises(pyspawner.ProtocolError):
            client.spawn_child(["echo"], sandbox_config=SandboxConfig(pids=0))
        with pytest.raises(pyspawner.SandboxSetupError):
            client.spawn_child(["echo"], sandbox_config=SandboxConfig(chroot_dir=Path("/none")))
    gc.collect()
    wait_until(lambda: children_of(host) == [])
    wait_until(lambda: (open_descriptors(), unslotted(host)) == before, 5)
    client.close()


def test_asyncio_and_its_own_subprocesses():
    """Neither disturbs the other: no signal handling, no child of this process."""

    async def own(number):
        process = await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.01; exit {number % 200}")
        return await process.wait() == number % 200

    async def child(client, number):
        child = await client.spawn_child(["echo", number])
        out, _ = await child.communicate()
        return out == b"%d\n" % number and await child.wait() == (child.pid, 0) and child.poll() == 0

    async def main():
        os.chdir(JOBS)
        async with pyspawner.AsyncClient(child_main="client_jobs.main") as client:
            for _ in range(10):
                work = [own(n) for n in range(20)] + [child(client, n) for n in range(20)]
                assert all(await asyncio.gather(*work))
            running = await client.spawn_child(["sleep", 60])
            assert await running.stdout.readline() == b"here\n"
            assert running.poll() is None
            running.kill()
            assert (await running.outcome()).name == "signaled"
            with pytest.raises(pyspawner.SandboxSetupError):
                await client.spawn_child(["echo"], sandbox_config=SandboxConfig(chroot_dir=Path("/none")))

    before = os.getcwd()
    try:
        asyncio.run(main())
    finally:
        os.chdir(before)


# ---- a client's end -------------------------------------------------------------------------------

PROGRAM = """
import os, sys, time
sys.path.insert(0, {python!r})
import pyspawner
client = pyspawner.Client(child_main="client_jobs.main")
children = [client.spawn_child(["sleep", {seconds}]) for _ in range(4)]
print(client._process.pid, *(child.pid for child in children), flush=True)
{then}
"""


def start_program(then, seconds=60):
    program = PROGRAM.format(python=str(ROOT / "python"), then=then, seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=JOBS, stdout=subprocess.PIPE, text=True)
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_a_killed_client_leaves_nothing():
    process, pids = start_program("time.sleep(60)")
    assert all(map(is_alive, pids))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, pids)), 2)
    process.stdout.close()


def test_close_leaves_children_to_finish():
    then = "client.close(); print('closed', [c.poll() for c in children]); print([c.wait()[1] for c in children])"
    process, pids = start_program(then, seconds=2)
    assert process.stdout.readline() == "closed [None, None, None, None]\n"
    assert process.stdout.readline() == "[0, 0, 0, 0]\n"
    assert process.wait() == 0
    wait_until(lambda: not any(map(is_alive, pids)), 2)  # the host, too
    process.stdout.close()


def test_children_outlive_a_client_that_has_parted(open_folder):
    process, pids = start_program("client.close(); os._exit(0)", seconds=6)
    assert process.wait() == 0
    time.sleep(0.5)
    assert all(map(is_alive, pids))
    wait_until(lambda: not any(map(is_alive, pids)), 20)
    process.stdout.close()


def test_no_zombie_is_left_in_the_caller():
    before = children_of(os.getpid())
    client = open_client()
    for _ in range(20):
        client.spawn_child(["echo"])  # nobody waits
    client.close()
    wait_until(lambda: all(is_alive(pid) or pid in before for pid in children_of(os.getpid())), 5)


# ---- a host that serves several ---------------------------------------------------------------------


def test_clients_connect(server):
    _, path = server
    with pyspawner.Client(connect=path) as first, pyspawner.Client(connect=path) as second:
        assert said(first.spawn_child(["echo", 1])) == "1"
        child = second.spawn_child(["sleep", 1])
        first.close()
        assert said(second.spawn_child(["echo", 2])) == "2"
    assert child.wait()[1] == 0
    with pyspawner.Client(connect=path) as third:
        assert said(third.spawn_child(["echo", 3])) == "3"


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(server, tmp_path):
    _, path = server
    command = [PYSPAWNER, "serve", "--child-main", "client_jobs.main", "--path", JOBS, "--python", sys.executable]
    done = subprocess.run([*command, "--socket", path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 125 and "listens at" in done.stderr
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [*command, "--socket", tmp_path / "file"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 125 and "no socket" in done.stderr
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stale.bind(str(tmp_path / "stale"))
    stale.close()
    process = subprocess.Popen([*command, "--socket", tmp_path / "stale"])
    wait_until(lambda: _can_connect(tmp_path / "stale"))
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def _can_connect(path):
    try:
        pyspawner.Client(connect=path).close()
    except OSError:
        return False
    return True


def test_the_socket_is_its_users_alone(server):
    _, path = server
    assert os.stat(path).st_mode & 0o777 == 0o600
    os.chmod(path, 0o666)
    os.chmod(path.parent, 0o755)
    for folder in path.parents:
        if folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(0o755)
    code = (
        f"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect({str(path)!r}); "
        's.send(b\'{"type": "hello", "version": 1}\'); print(s.recv(100))'
    )
    plain = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    python = shutil.which("python3", path="/usr/bin")
    done = subprocess.run([*plain, python, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert "ready" not in done.stdout, done
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert "ready" in done.stdout  # the control


# ---- other interpreters, and the old package ------------------------------------------------------------


def interpreters():
    """Those of this machine, from 3.9 up, by version."""
    candidates = [*Path("/usr/bin").glob("python3.?*"), *Path.home().glob(".pyenv/versions/3.*/bin/python3")]
    found = {sys.version_info[:2]: sys.executable}
    for path in candidates:
        done = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            found.setdefault(tuple(map(int, done.stdout.split())), str(path))
    return [path for version, path in sorted(found.items()) if version >= (3, 9)]


@pytest.mark.parametrize("python", interpreters())
def test_a_caller_of_another_version(python):
    """The caller's Python need not be the host's."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'python')!r}); import pyspawner\n"
        "with pyspawner.Client(child_main='client_jobs.main') as client:\n"
        "    print(client.spawn_child(['echo', sys.argv[0]]).communicate())\n"
    )
    done = subprocess.run([python, "-c", program], cwd=JOBS, capture_output=True, text=True, check=False)
    assert done.stdout == "(b'-c\\n', b'')\n", done


def run_contract(python, path):
    """test_contract.py in a network namespace of its own."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    command += [python, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "test_contract.py"]
    environment = {**os.environ, "CONTRACT_NETWORK": "1", "PYTHONPATH": str(path)}
    done = subprocess.run(command, cwd=JOBS.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "28 passed" in done.stdout, done.stdout


def test_the_contract_with_its_network():
    run_contract(sys.executable, ROOT / "python")


@pytest.mark.soak
def test_the_same_program_under_the_old_package(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "old"], check=True)
    python = tmp_path / "old/bin/python"
    packages = ["pyspawner==1.0.0", "setuptools<80", "pytest"]
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    run_contract(python, "")


# ---- nothing of one job is another's ------------------------------------------------------------------------


def test_arguments_and_names_are_not_in_a_later_childs_memory(client, open_folder):
    library = open_folder / "scanner.so"
    source = ROOT / "tests/security/jobs/scanner.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    open_folder.chmod(0o755)
    text = "c4nary-" + os.urandom(6).hex()
    root = open_folder / text
    root.mkdir()
    for _ in range(30):
        said(client.spawn_child(["echo", text * 50], process_name=text[:15]))
        said(client.spawn_child(["listing", "/"], sandbox_config=SandboxConfig(chroot_dir=root)))
    key = [byte ^ 0x55 for byte in text.encode()]
    assert said(client.spawn_child(["scan", key, str(library)])) == "0"
    # The control: its own argument is found.
    assert int(said(client.spawn_child(["scan", key, str(library), text]))) > 0
