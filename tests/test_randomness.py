"""No two children draw the same, nor their own children, whatever the host drew before."""

import subprocess

import pytest

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
