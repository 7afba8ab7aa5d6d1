"""Which interpreter, which modules, from where; and the hooks' module."""

import inspect
import re
import subprocess
import sys
import venv

import pytest
from driving import ROOT

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_another_version_is_a_clear_error(pyspawner, open_folder):
    impostor = open_folder / "python"
    impostor.write_text('#!/bin/sh\necho 3.7\necho "$0"\n')
    impostor.chmod(0o755)
    done = pyspawner.run("basic.greet", flags=["--python", str(impostor)])
    assert done.status == 125
    assert f"is Python 3.7, but this pyspawner is linked to Python {VERSION}" in done.stderr


def test_a_free_threaded_interpreter_is_a_clear_error(pyspawner, open_folder):
    impostor = open_folder / "python"
    said = [VERSION, str(impostor), f"{VERSION}.0", ".cpython-t.so", "_io sys", "t"]
    impostor.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in said))
    impostor.chmod(0o755)
    done = pyspawner.run("basic.greet", flags=["--python", str(impostor)])
    assert done.status == 125
    assert f"{impostor} is a free-threaded build of Python {VERSION}" in done.stderr


def with_changed_interpreter(pyspawner, folder, change, *flags):
    """Run a job in a host in which a preloaded module has changed the interpreter's insides."""
    (folder / "changes.py").write_text(f"import atexit, random, threading\n{change}\n")
    return pyspawner.run("basic.greet", "you", flags=["--preload", "changes", "--path", str(folder), *flags])


@pytest.mark.parametrize(
    "change, words",
    [
        ("del threading._shutdown", ["threading._shutdown", "no attribute"]),
        ("atexit._run_exitfuncs = lambda wanted: None", ["atexit._run_exitfuncs", "takes arguments"]),
        ("random.getstate = lambda: ()", ["`random` was not seeded anew"]),
        ("threading.get_native_id = lambda: 0", ["the thread calls itself 0"]),
    ],
)
def test_an_interpreter_that_jobs_could_not_run_in_is_refused(pyspawner, open_folder, change, words):
    done = with_changed_interpreter(pyspawner, open_folder, change)
    assert (done.status, done.stdout) == (125, "")
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(
    "change, flags, words",
    [
        ("del threading._dangling", [], "there is no threading._dangling"),
        ("threading._after_fork = lambda wanted: None", [], "threading._after_fork: it takes arguments"),
        ("threading._after_fork = lambda: 1 / 0", [], 'threading._after_fork: it comes from module "changes"'),
        ("", ["--env", "PYTHONMALLOC=malloc"], "no arenas of"),
    ],
)
def test_what_only_makes_children_faster_is_done_without_and_said_once(pyspawner, open_folder, change, flags, words):
    done = with_changed_interpreter(pyspawner, open_folder, change, *flags)
    assert (done.status, done.stdout) == (0, "hello you\n"), done
    assert done.stderr.count("children start slower") == 1 and words in done.stderr


def test_an_interpreter_as_it_is_known_needs_no_word(pyspawner, open_folder):
    done = with_changed_interpreter(pyspawner, open_folder, "")
    assert (done.status, done.stderr) == (0, "warning\n")


@pytest.mark.parametrize("path", ["/no/such/python", "/bin/true", "/etc/passwd"])
def test_what_is_no_interpreter_is_a_clear_error(pyspawner, path):
    done = pyspawner.run("basic.greet", flags=["--python", path])
    assert done.status == 125 and path in done.stderr


def test_a_virtual_environments_packages_are_found(pyspawner):
    assert pyspawner.value("paths.prefixes")["prefix"] == sys.prefix != sys.base_prefix


def test_interpreter_and_modules_below_a_closed_folder(pyspawner, open_folder):
    """They are reachable in a child, lazily too; the rest of the folder is not."""
    home = open_folder / "home"
    home.mkdir()
    (home / "secret").write_text("of the host")
    (home / "other").mkdir()
    code = home / "code" / "deep"
    code.mkdir(parents=True)
    (code / "lazy.py").write_text("import decimal\nVALUE = str(decimal.Decimal(1))\n")
    (code / "job.py").write_text(
        "import os\n"
        "def main(home):\n"
        "    import lazy, xmlrpc.client, subprocess, sys\n"
        "    output = subprocess.run([sys.executable, '-c', 'print(7)'], capture_output=True, text=True)\n"
        "    return [lazy.VALUE, output.stdout, output.stderr, sorted(os.listdir(home)),\n"
        "            sorted(os.listdir(home + '/code')), os.path.exists(home + '/secret')]\n"
    )
    venv.create(home / "venv", symlinks=True)
    home.chmod(0o700)
    line = pyspawner.job("job.main", str(home), path=code, flags=["--python", str(home / "venv/bin/python")])
    assert line["outcome"] == "ok", line
    assert line["result"] == ["1", "7\n", "", ["code", "venv"], ["deep"], False]


def test_too_deep_a_recursion_is_an_exception(pyspawner):
    """Since 3.14 CPython compares the stack with limits that it has found in the host."""
    assert pyspawner.value("basic.recurse") == ["RecursionError"] * 3


if sys.version_info >= (3, 15):  # PEP 810

    @pytest.mark.parametrize("flags", [[], ["--warm-up", "puts_off.touch"]])
    def test_lazy_imports_are_made_in_the_warm_up_or_in_each_child(pyspawner, open_folder, flags):
        (open_folder / "puts_off.py").write_text(
            "import sys\n"
            "lazy import colorsys\n"
            "def touch(): return colorsys.rgb_to_hsv(0, 0, 0)\n"
            "def main(): return ['colorsys' in sys.modules, touch() == (0, 0, 0), 'colorsys' in sys.modules]\n"
        )
        result = pyspawner.value("puts_off.main", path=open_folder, flags=["--preload", "puts_off", *flags])
        assert result == [bool(flags), True, True]


def test_output_is_unbuffered(pyspawner):
    command = pyspawner.command("run", "paths.print_and_wait")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.read(6) == b"before"
    process.communicate(b"go\n", timeout=20)
    assert process.returncode == 0


def test_modules_of_the_working_directory(pyspawner, open_folder):
    """``sys.path`` starts as for ``python -c``."""
    (open_folder / "here.py").write_text("def main():\n import also\n return also.VALUE")
    (open_folder / "also.py").write_text("VALUE = 5")
    open_folder.chmod(0o755)
    command = pyspawner.command("map", "here.main", path=None)
    done = subprocess.run(command, input=b"[]\n", capture_output=True, cwd=open_folder, check=True)
    assert b'"result":5' in done.stdout


def test_preload_report(pyspawner):
    done = pyspawner.map("paths.prefixes", [[]], "-v", "--preload", "json,leaves_open")
    assert "imported json in" in done.stderr
    assert "warm in" in done.stderr and "MiB resident" in done.stderr
    assert re.search(r"holds /etc/hostname \(descriptor \d+, leaves_open.FILE\) open", done.stderr)
    assert 'left thread "Thread-1 (_wait)" of module leaves_open running' in done.stderr


def test_strict_refuses_threads(pyspawner):
    done = pyspawner.run("paths.prefixes", flags=["--strict", "--preload", "leaves_open"])
    assert done.status == 125
    assert 'thread "Thread-1 (_wait)" of module leaves_open' in done.stderr


def test_hooks_run_in_order_where_they_should(pyspawner):
    done = pyspawner.map("hooks.main", [[], []], "--ordered", "-j", "1", spares=0)
    first, second = (line["result"] for line in done.lines)
    # The first clone of all is the one that checks the sandbox.
    assert first == {"before": 2, "after": ["first", "second"], "job_in_hook": [None, None]}
    assert second["before"] == 3


@pytest.mark.parametrize("hook", ["before_clone", "after_clone"])
def test_a_failing_hook_fails_the_job_with_its_traceback(pyspawner, open_folder, hook):
    (open_folder / "failing.py").write_text(
        "import pyspawner_host\n"
        f"@pyspawner_host.{hook}\n"
        "def fail(): raise RuntimeError('on purpose')\n"
        "def main(): print('ran')\n"
    )
    done = pyspawner.run("failing.main", path=open_folder)
    assert done.status == 125
    assert f"{hook}:" in done.stderr and "RuntimeError: on purpose" in done.stderr
    assert "ran" not in done.stdout


def test_stand_ins_match_the_live_module(pyspawner):
    sys.path.insert(0, str(ROOT / "python-stubs"))
    try:
        import pyspawner_host as stand_in
    finally:
        sys.path.pop(0)
    live = pyspawner.value("hooks.signatures")
    public = {name: getattr(stand_in, name) for name in stand_in.__all__}
    assert sorted(live) == sorted(public)
    for name, function in public.items():
        parameters = [(p.name, p.kind.name, repr(p.default)) for p in inspect.signature(function).parameters.values()]
        assert [tuple(p) for p in live[name]] == parameters, name


def test_stand_ins_behave_outside_a_host():
    code = (
        "import pyspawner_host as h\n"
        "assert h.before_clone(print) is print and h.after_clone(print) is print\n"
        "assert h.job_id() is None and h.deadline() is None and h.progress(0.5, 'x') is None\n"
        "for wrong in (lambda: h.progress(2), lambda: h.before_clone(1)):\n"
        "    try: wrong()\n"
        "    except (ValueError, TypeError): pass\n"
        "    else: raise AssertionError\n"
    )
    environment = {"PYTHONPATH": str(ROOT / "python-stubs")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_stand_ins_type_check():
    subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", ROOT / "python-stubs/pyspawner_host"], check=True
    )


def test_hosts_module_refuses_wrong_use(pyspawner):
    assert pyspawner.value("hooks.wrong_use") == ["TypeError", "TypeError", "ValueError", "ValueError"]
