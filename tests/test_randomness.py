"""No two children draw the same, nor their own children, whatever the host drew before."""

import ast
import contextlib
import random
import subprocess
import sys

import numpy
import pyspawner as pyspawner_client
import pytest
from driving import JOBS, ROOT

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.mark.parametrize("prefix", [[], CONTAINER], ids=["plain", "as PID 1"])
@pytest.mark.parametrize("child_draws", [True, False])
def test_all_draws_differ(pyspawner, prefix, child_draws):
    command = pyspawner.command("map", "draws.main", "-j", "4", prefix=prefix)
    jobs = f"[{str(child_draws).lower()}]\n" * 50
    done = pyspawner.finish(command, jobs, 300)
    assert done.status == 0, done
    draws = [draw for line in done.lines for draw in line["result"]["draws"]]
    assert len(draws) == (100 if child_draws else 50)
    for source in draws[0]:
        values = [draw[source] for draw in draws]
        assert len(set(values)) == len(values), f"{source} repeats"


def test_init_in_front_passes_the_status_on(pyspawner):
    for status in (0, 7):
        assert pyspawner.run("basic.leave", str(status), prefix=CONTAINER).status == status


def test_init_in_front_passes_signals_on(pyspawner):
    """A container's runtime stops it by SIGTERM to PID 1."""
    command = pyspawner.command("run", "basic.sleep", prefix=[*CONTAINER, "--kill-child"]) + ["--", "60"]
    process = subprocess.Popen(command)
    try:
        process.wait(timeout=2)
        pytest.fail("it ended by itself")
    except subprocess.TimeoutExpired:
        pass
    init = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.strip()
    subprocess.run(["kill", "-TERM", init], check=True)
    assert process.wait(timeout=10) == 128 + 15


def test_init_in_front_reaps_orphans(pyspawner, open_folder):
    """A preloaded module that leaves orphans behind leaves no zombies."""
    (open_folder / "orphans.py").write_text(
        "import os, time\n"
        "for _ in range(20):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0: os._exit(0)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "time.sleep(0.5)\n"
        "states = [open(f'/proc/{p}/stat').read().split()[2] for p in os.listdir('/proc') if p.isdigit()]\n"
        "def main(): print(states.count('Z'))\n"
    )
    done = pyspawner.run("orphans.main", path=open_folder, prefix=CONTAINER)
    assert done.stdout == "0\n", done


# ---- generators that seed themselves ------------------------------------------------------------


def all_differ(draws):
    assert len(draws) > 1
    for source in draws[0]:
        values = [draw[source] for draw in draws]
        assert len(set(values)) == len(values), f"{source} repeats: {values[0]}"


@pytest.mark.parametrize("module", ["seeded", "seeded_by_hook", "seeded_by_thread"])
def test_what_seeds_itself_does_so_in_each_child(pyspawner, module):
    done = pyspawner.map(f"{module}.main", [[]] * 12, "-j", "2", spares=0)
    assert [line["outcome"] for line in done.lines] == ["ok"] * 12, done
    all_differ([line["result"] for line in done.lines])


def test_the_same_without_a_device_for_random_numbers(open_folder):
    """In a chroot SQLite would take the time and the process id for a seed."""
    open_folder.chmod(0o755)
    with contextlib.chdir(JOBS):
        client = pyspawner_client.Client(child_main="seeded.in_a_chroot")
    config = pyspawner_client.SandboxConfig(chroot_dir=open_folder)
    with client:
        children = [client.spawn_child(sandbox_config=config) for _ in range(6)]
        said = [child.communicate(timeout=30) for child in children]
    assert [err for _, err in said] == [b""] * 6
    all_differ([ast.literal_eval(out.decode()) for out, _ in said])


def test_a_job_does_not_learn_the_hardware_address(pyspawner):
    """Though a module has asked for it, and kept it where the interpreter keeps it."""
    node = pyspawner.value("seeded.main")["uuid node"]
    assert node >> 40 & 1, "it is not marked as made up"


# ---- generators that modules make ---------------------------------------------------------------

WARNING = "give every job the same numbers"


def test_generators_of_modules_are_named(pyspawner):
    done = pyspawner.map("generators.shared", [[], []], "-j", "1")
    assert done.lines[0]["result"] == done.lines[1]["result"]
    [warning] = [line for line in done.stderr.splitlines() if WARNING in line]
    for name in [
        "generators.OURS (random.Random)",
        "generators.GENERATOR (numpy.random._generator.Generator)",
        "generators.LEGACY (numpy.random.mtrand.RandomState)",
        "generators.BITS (numpy.random._philox.Philox)",
        "generators.LISTED[1] (",
        "generators.BY_NAME['mine'] (",
        "generators.Holder.SHARED (",
        "generators.HOLDER.generator (",
        "generators.PCG64 (",
        ", and 1 that no module names",
        "pyspawner_host.reseed(generator)",
    ]:
        assert name in warning, (name, warning)
    for name in ("SYSTEM", "SECRET", "_inst", "mtrand._rand", "UNWILLING"):
        assert name not in warning, (name, warning)


@pytest.mark.parametrize("child_main", ["basic.leave", "draws.main", "costs.faults"])
def test_nothing_is_said_without(pyspawner, child_main):
    done = pyspawner.map(child_main, [[0]], "--preload", "numpy,pandas,pyarrow,random,tempfile,secrets")
    assert WARNING not in done.stderr


def test_generators_are_renewed_by_a_hook(pyspawner):
    done = pyspawner.map("generators_renewed.renewing", [[]] * 4, "-j", "1")
    all_differ([line["result"] for line in done.lines])
    shared = pyspawner.map("generators.renewing", [[]] * 2, "-j", "1").lines
    assert shared[0]["result"] == shared[1]["result"]


def test_reseed_says_what_it_takes(pyspawner):
    said = pyspawner.value("generators.refusals")
    assert len(said) == 7
    for text in said:
        for kind in ("random.Random", "numpy.random.Generator", "RandomState", "BitGenerator", "torch.Generator"):
            assert kind in text


def test_the_stand_in_reseeds(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "python-stubs"))
    monkeypatch.delitem(sys.modules, "pyspawner_host", raising=False)
    import pyspawner_host as stand_in

    ours, state = random.Random(1), numpy.random.default_rng(1).bit_generator.state
    stand_in.reseed(ours)
    assert ours.random() != random.Random(1).random()
    generator = numpy.random.default_rng(1)
    stand_in.reseed(generator)
    assert generator.bit_generator.state != state
    with pytest.raises(TypeError, match=r"torch\.Generator, got a builtins\.str"):
        stand_in.reseed("text")
    sys.modules.pop("pyspawner_host")
