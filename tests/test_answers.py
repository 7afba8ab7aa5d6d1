"""What a user types, and what is answered: mistakes that are likely in the first hour."""

import subprocess
import sys

import pytest
from driving import PYSPAWNER

MODULES = {
    "jobs": "def main(*args): return list(args)\n",
    "reads": "def main(path): return len(open(path).read())\n",
    "needs": "import not_there\n",
    "raises": "1 / 0\n",
    "leaves": "import sys\nsys.exit(3)\n",
    "ends": "import os\nos._exit(0)\n",
    "exits": "import ctypes\nctypes.CDLL(None).exit(7)\n",
    "crashes": "import ctypes\ndef deep(): ctypes.string_at(0)\ndeep()\n",
    "crashes_late": "import ctypes\ndef warm_up(): ctypes.string_at(0)\ndef main(): pass\n",
    "crashes_in_job": "import faulthandler\ndef main():\n    import ctypes\n    assert not faulthandler.is_enabled()\n"
    "    ctypes.string_at(0)\n",
    "enables": "import faulthandler\nfaulthandler.enable()\ndef main():\n    import ctypes\n    ctypes.string_at(0)\n",
    "own_handler": "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.signal.restype = ctypes.c_void_p\n"
    "libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]\n"
    "pause = ctypes.cast(libc.pause, ctypes.c_void_p).value\nlibc.signal(11, pause)\n"
    "def main(): return libc.signal(11, None) == pause\n",
}


@pytest.fixture
def modules(tmp_path):
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def main(): pass\n")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(0o755)
    return tmp_path


def refused(pyspawner, child_main, *flags, **options):
    done = pyspawner.run(child_main, flags=flags, **options)
    assert (done.status, done.stdout) == (125, ""), done
    assert '"<pyspawner>"' not in done.stderr  # nobody's business
    return done.stderr


# ---- what cannot be imported -------------------------------------------------------------


def test_a_module_that_is_not_there(pyspawner, modules):
    said = refused(pyspawner, "godo.main", path=modules)
    assert said.startswith("pyspawner: error: child_main: there is no module 'godo' in ") and f" {modules}, " in said
    assert "name its folder (--path, or path = " in said and "Traceback" not in said


def test_a_forgotten_path(pyspawner):
    said = refused(pyspawner, "quite_another.main")
    assert "there is no module 'quite_another'" in said and "name its folder (--path, or path = " in said


@pytest.mark.parametrize(
    ("child_main", "words"),
    [
        ("job.main", "there is no module 'job'|did you mean 'jobs'?"),
        ("jobs.mian", "module 'jobs' (|/jobs.py) has no 'mian'; hint: did you mean 'main'?"),
        (
            "package.iner.main",
            "there is no module 'package.iner': 'package' (|has no 'iner'; hint: did you mean 'inner'?",
        ),
        ("package.__name__", "cannot be called: it is a str"),
    ],
)
def test_a_name_with_a_mistake_in_it(pyspawner, modules, child_main, words):
    said = refused(pyspawner, child_main, path=modules)
    assert all(word in said for word in words.split("|")) and "Traceback" not in said


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("needs", "ModuleNotFoundError: No module named 'not_there'"),
        ("raises", "ZeroDivisionError"),
        ("leaves", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("role", ["child_main", "preload", "warm_up"])
def test_an_exception_of_the_module_is_the_modules(pyspawner, modules, module, words, role):
    """And not told as if there were no such module; its own lines only."""
    flags = {"child_main": [], "preload": ["--preload", module], "warm_up": ["--warm-up", f"{module}.f"]}[role]
    child_main = f"{module}.main" if role == "child_main" else "jobs.main"
    said = refused(pyspawner, child_main, *flags, path=modules)
    assert f"{role}: importing '{module}' failed:\n" in said and words in said
    assert "there is no module" not in said
    assert said.count("  File ") == 1 and f'File "{modules}/{module}.py", line' in said


# ---- a host that a module ends -----------------------------------------------------------


def test_a_crash_at_import_names_the_module_and_its_lines(pyspawner, modules):
    done = pyspawner.run("jobs.main", flags=["--preload", "json,crashes"], path=modules)
    assert done.status == 128 + 11
    assert f'File "{modules}/crashes.py", line 2 in deep' in done.stderr
    assert "the host was ended by signal 11 (SIGSEGV) while importing crashes\n" in done.stderr


def test_a_crash_of_the_warm_up_is_told(pyspawner, modules):
    done = pyspawner.run("jobs.main", flags=["--warm-up", "crashes_late.warm_up"], path=modules)
    assert done.status == 128 + 11
    assert "line 2 in warm_up" in done.stderr and "while calling crashes_late:warm_up\n" in done.stderr


@pytest.mark.parametrize(("module", "status"), [("ends", 0), ("exits", 7)])
def test_a_module_that_ends_the_process_is_told(pyspawner, modules, module, status):
    """With status 0 it would look as if all had been done."""
    said = refused(pyspawner, "jobs.main", "--preload", module, path=modules)
    assert f"the host exited with status {status} while importing {module}; hint: " in said


def test_jobs_have_the_signals_that_their_modules_arranged(pyspawner, modules):
    crashed = pyspawner.run("crashes_in_job.main", path=modules)
    assert crashed.status == 128 + 11 and "Fatal Python error" not in crashed.stderr
    told = pyspawner.run("enables.main", path=modules)
    assert told.status == 128 + 11 and "Fatal Python error: Segmentation fault" in told.stderr
    by_variable = pyspawner.run("crashes_late.warm_up", flags=["--env", "PYTHONFAULTHANDLER=1"], path=modules)
    assert "Fatal Python error" in by_variable.stderr
    assert pyspawner.value("own_handler.main", path=modules) is True


def test_a_host_that_is_killed_is_told(pyspawner, modules):
    """With what it did last; by its init, whose child it is."""
    (modules / "waits.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    done = pyspawner.run("waits.main", path=modules)
    assert done.status == 128 + 9 and "(SIGKILL) while importing waits; hint: " in done.stderr


# ---- the command line --------------------------------------------------------------------


def test_arguments_of_run_need_no_dashes(pyspawner, modules):
    base = pyspawner.command("run", "jobs.main", path=modules)
    for more, seen in [(["1", "-2", "--x"], '["1","-2","--x"]'), (["-5"], '["-5"]'), (["--", "--x"], '["--x"]')]:
        assert pyspawner.finish(base + more, "", 60).stdout == seen + "\n"


def test_a_function_by_position_is_understood(pyspawner):
    for verb in ("run", "map"):
        done = pyspawner.finish([PYSPAWNER, verb, "jobs.main", "1"], "", 60)
        assert done.status == 125 and "what should each child call? hint: --child-main jobs.main\n" in done.stderr


def test_files_of_the_shells(pyspawner, modules, tmp_path):
    """Process substitution: a pipe by the name of a descriptor, which is another in each of the host's threads."""
    base = " ".join(map(str, pyspawner.command("map", "jobs.main", path=modules)))
    for arguments in ("-i <(echo '[1]')", "<(echo '[1]') >(cat)", "--config <(echo '[pool]') -i <(echo '[1]')"):
        done = subprocess.run(
            ["bash", "-c", f"{base} {arguments}; sleep 0.2"], capture_output=True, text=True, check=True
        )
        assert done.stdout.count('"ok"') == 1, (arguments, done)


def test_map_takes_its_files_by_position(pyspawner, modules, tmp_path):
    (tmp_path / "jobs.ndjson").write_text("[1]\n[2]\n")
    base = pyspawner.command("map", "jobs.main", path=modules)
    one = pyspawner.finish([*base, tmp_path / "jobs.ndjson"], "", 60)
    assert len(one.lines) == 2
    done = pyspawner.finish([*base, tmp_path / "jobs.ndjson", tmp_path / "results.ndjson"], "", 60)
    assert (done.status, done.stdout) == (0, "")
    assert (tmp_path / "results.ndjson").read_text().count("\n") == 2
    assert len(pyspawner.finish([*base, "-", "-"], "[1]\n", 60).lines) == 1
    twice = pyspawner.finish([*base, tmp_path / "jobs.ndjson", "-i", "other"], "", 60)
    assert twice.status == 125 and "cannot be used with" in twice.stderr


def test_an_interpreter_of_another_build(pyspawner, modules):
    """Debian's has much built in that another's library has not."""
    other = "/usr/bin/python3"
    ask = [other, "-c", "import sys; print(sys.version_info[:2], *sys.builtin_module_names)"]
    its = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
    own = subprocess.run([sys.executable, *ask[1:]], capture_output=True, text=True, check=True).stdout
    if not set(its.split()[2:]) - set(own.split()[2:]) or its.split()[:2] != own.split()[:2]:
        pytest.skip("NOT TESTED: /usr/bin/python3 is no other build of this interpreter's version")
    said = refused(pyspawner, "jobs.main", "--python", other, path=modules)
    assert "is of another build of Python" in said and "-m venv" in said and "PYO3_PYTHON=" in said


def test_a_folder_that_is_not_there(pyspawner, tmp_path):
    said = refused(pyspawner, "jobs.main", path=tmp_path / "nothing")
    assert f"path: {tmp_path}/nothing" in said and "No such file or directory" in said and "ermission" not in said


# ---- limits name their setting -----------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "limits", "outcome", "words"),
    [
        ("print('x' * 5000)", "output = 4096", "output_limit", "standard output: more than 4096 bytes (limits.output)"),
        ("return 'x' * 5000", "output = 4096", "output_limit", "its result: more than 4096 bytes (limits.output)"),
        ("import sys; sys.stderr.write('x' * 5000)", "output = 4096", "output_limit", "standard error: more than 4096"),
        ("import time; time.sleep(60)", "wall = '200ms'", "timed_out", "limit of 200ms (limits.wall, --timeout)"),
    ],
)
def test_the_outcome_of_a_limit_names_it(pyspawner, modules, body, limits, outcome, words):
    (modules / "limited.py").write_text(f"def main(): {body}\n")
    line = pyspawner.job("limited.main", path=modules, config=f"[profile.default.limits]\n{limits}\n")
    assert line["outcome"] == outcome and words in line["detail"]


def test_a_jobs_own_timeout_is_not_the_profiles(pyspawner, modules):
    (modules / "limited.py").write_text("def main(): import time; time.sleep(60)\n")
    done = pyspawner.map("limited.main", [{"timeout": 0.2}], path=modules)
    assert "(the job's timeout)" in done.lines[0]["detail"]


# ---- files that are there for others, and not for jobs ----------------------------------------------


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("{other}/data.csv", "jobs have a /tmp of their own"),
        ("/root/data.csv", "/root is hidden from jobs, as homes are"),
        ("data.csv", "the job's working folder is /"),
    ],
)
def test_a_file_that_a_job_cannot_see_is_explained_above_the_traceback(pyspawner, modules, tmp_path_factory, path, why):
    other = tmp_path_factory.mktemp("data")  # the folder of the modules is shown to jobs
    (other / "data.csv").write_text("a")
    done = pyspawner.run("reads.main", path.format(other=other), path=modules)
    first, *_, last = done.stderr.splitlines()
    assert why in first and "; hint: show the folder with a bind, or pass the content as input" in first
    assert last.startswith("FileNotFoundError: ")


def test_a_missing_file_elsewhere_is_python_s_own_matter(pyspawner, modules):
    done = pyspawner.run("reads.main", "/usr/not-there", path=modules)
    assert done.status == 1 and done.stderr.startswith("Traceback")
