"""Stand-ins for what preloaded objects hold open carry nothing from job to job, nor lead anywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

from attacking import ATTACKS

JOBS = Path(__file__).parents[1] / "jobs"
FLAGS = ["--preload", "held", "--path", str(JOBS), "-j", "1", "--ordered"]


def in_turn(pyspawner, *jobs, config=None):
    done = pyspawner.map("stand_ins.main", [[job] for job in jobs], *FLAGS, path=ATTACKS, config=config)
    lines = done.lines
    assert [line["outcome"] for line in lines] == ["ok"] * len(jobs), done
    return [line["result"] for line in lines]


def in_plain_forks(folder, *jobs):
    """The control: what forked copies of one process do to each other."""
    environment = {**os.environ, "PYTHONPATH": f"{ATTACKS}:{JOBS}"}
    command = [sys.executable, ATTACKS / "stand_ins.py", folder / "found", *jobs]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return json.loads((folder / "found").read_text())


def differences(before, after):
    return {key for one, other in zip(before, after, strict=True) for key in one if one[key] != other.get(key)}


def test_a_later_job_sees_nothing_of_what_an_earlier_one_did(pyspawner):
    before, spoiled, after = in_turn(pyspawner, "look_at_all", "spoil_all", "look_at_all")
    assert differences(before, after) == set()
    # Much of it did work, on what is the job's own.
    assert sum(map(len, spoiled.values())) > 50
    before, spoiled, after = in_plain_forks(pyspawner.folder, "look_at_all", "spoil_all", "look_at_all")
    assert {"content", "flags", "offset", "owner", "times"} <= differences(before, after)


def test_the_same_in_ready_spares(pyspawner):
    jobs = ["look_at_all", "spoil_all", "look_at_all"] * 2
    results = in_turn(pyspawner, *jobs, config="[pool]\nspares = 2\n")
    looks = [result for job, result in zip(jobs, results, strict=True) if job == "look_at_all"]
    assert all(differences(looks[0], look) == set() for look in looks[1:])


def test_no_stand_in_leads_further_than_to_its_own_file(pyspawner):
    [found] = in_turn(pyspawner, "escape_all")
    assert {name: ways for name, ways in found.items() if ways} == {}
    [found] = in_plain_forks(pyspawner.folder, "escape_all")
    assert "its folder" in found["DIRECTORY"] and "a file above it" in found["PATH"]
    assert "its memory" in found["OWN_MEMORY"]


def test_without_other_layers_files_are_read_only_all_the_same(pyspawner):
    """The mount of each is: Landlock and the user's id are not needed for it."""
    config = (
        '[profile.default]\nskip_layers = ["landlock", "setuid", "user_namespace", "seccomp", "drop_capabilities"]\n'
    )
    [spoiled] = in_turn(pyspawner, "spoil_all", config=config)
    [looked] = in_turn(pyspawner, "look_at_all", config=config)
    contents = {seen.get("content") for seen in looked}
    assert b"left behind".hex() not in contents and spoiled
