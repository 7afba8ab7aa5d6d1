"""Modules that a job leaves where the next job, or the next host, would import them."""

import importlib.machinery
import importlib.util
import os
import py_compile
import subprocess
import sys

import pytest

PLANT = """
import os, sys
def main(folder):
    try:
        with open(os.path.join(folder, "colorsys.py"), "w") as file:
            file.write("PLANTED = True\\n")
        planted = "ok"
    except OSError as error:
        planted = type(error).__name__
    import colorsys
    return [planted, hasattr(colorsys, "PLANTED")]
"""


@pytest.fixture
def shared(open_folder):
    """A folder that jobs can write to, and one with the job's own module beside it."""
    folder = open_folder / "shared"
    (folder / "inner").mkdir(parents=True)
    for place in (folder, folder / "inner"):
        place.chmod(0o777)
    (open_folder / "code").mkdir()
    (open_folder / "code/plant.py").write_text(PLANT)
    return folder


def bind(folder, writable=True):
    return f'[profile.default]\nbinds = [{{ source = "{folder}", writable = {str(writable).lower()} }}]\n'


@pytest.mark.parametrize("way", ["", "inner", "link"])
def test_a_host_does_not_start_where_jobs_can_leave_modules(pyspawner, shared, monkeypatch, way):
    (shared.parent / "link").symlink_to(shared)
    monkeypatch.chdir(shared.parent / "link" if way == "link" else shared / way)
    options = {"path": shared.parent / "code"}
    done = pyspawner.map("plant.main", [[str(shared)]], config=bind(shared), **options)
    assert done.status == 125 and "which jobs can write to" in done.stderr, done.stderr
    # The control: where jobs only read, it does.
    done = pyspawner.map("plant.main", [[str(shared)]], config=bind(shared, writable=False), **options)
    assert [line["result"] for line in done.lines] == [["OSError", False]], done.stderr


def test_nor_does_it_import_from_there(pyspawner, shared):
    (shared / "plant.py").write_text(PLANT)
    done = pyspawner.map("plant.main", [[str(shared)]], config=bind(shared), path=shared)
    assert done.status == 125 and "which jobs can write to" in done.stderr, done.stderr
    done = pyspawner.map("plant.main", [[str(shared)]], config=bind(shared, writable=False), path=shared)
    assert [line["result"] for line in done.lines] == [["OSError", False]], done.stderr


def test_the_next_job_imports_nothing_from_the_top_of_a_chroot(pyspawner, open_folder):
    root = open_folder / "root"
    root.mkdir()
    root.chmod(0o777)
    (open_folder / "code").mkdir()
    (open_folder / "code/plant.py").write_text(
        "import os, sys\n"
        "def main(folder):\n"
        "    if not os.path.exists(os.path.join(folder, 'planted.py')):\n"
        "        open(os.path.join(folder, 'planted.py'), 'w').close()\n"
        "    try:\n"
        "        import planted\n"
        "        return [os.getcwd(), True]\n"
        "    except ImportError:\n"
        "        return [os.getcwd(), False]\n"
    )
    config = f'[profile.default]\nroot = {{ chroot = "{root}" }}\n'
    done = pyspawner.map("plant.main", [["/"], ["/"]], "-j", "1", "--ordered", config=config, path=open_folder / "code")
    assert [line["result"] for line in done.lines] == [["/", False]] * 2, done.stderr
    assert os.listdir(root) == ["planted.py"]


def test_a_job_imports_what_it_has_made_itself(pyspawner, shared):
    """The control: in its own folder a module is its own, and the next job does not have it."""
    done = pyspawner.map("plant.main", [["."], ["."]], path=shared.parent / "code")
    assert [line["result"] for line in done.lines] == [["ok", True]] * 2, done.stderr


# ---- what leads the host there otherwise than by sys.path --------------------------------------------


@pytest.fixture
def marked(open_folder):
    """A file that code makes which the host has executed, and that code. Jobs cannot write there."""
    marker = open_folder / "marker"
    return marker, f"open({str(marker)!r}, 'w').close()\n"


def in_user_site(home, code):
    site = home / ".local/lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    (site / "planted.pth").write_text(f"import sys; exec({code!r})\n")


def host_runs(pyspawner, marked, config, path, *flags):
    """Whether the host that runs a job has executed what was left for it; what it said."""
    marker, _ = marked
    marker.unlink(missing_ok=True)
    done = pyspawner.map("honest.main", [[]], *flags, config=config, path=path)
    return marker.exists(), done


def honest(folder, imports=""):
    folder.mkdir(exist_ok=True)
    (folder / "honest.py").write_text(f"{imports}import os\ndef main():\n    return os.environ.get('HOME')\n")
    return folder


def test_a_user_site_where_jobs_can_write(pyspawner, shared, marked):
    """``site`` executes what lies there before anybody could look at ``sys.path``."""
    in_user_site(shared, marked[1])
    code = honest(shared.parent / "code")
    # A virtual environment has no user site.
    outside = ["--python", sys._base_executable]  # type: ignore[attr-defined]
    environment = f'environment = {{ HOME = "{shared}" }}\n'
    ran, done = host_runs(pyspawner, marked, environment + bind(shared), code, *outside)
    assert not ran
    # Jobs have the variable all the same.
    assert [line["result"] for line in done.lines] == [str(shared)], done.stderr
    ran, done = host_runs(pyspawner, marked, environment + bind(shared, writable=False), code, *outside)
    assert ran, "the control"


def test_bytecode_where_jobs_can_write(pyspawner, shared, marked):
    code = honest(shared.parent / "code")
    cache = shared / str(code).lstrip("/")
    cache.mkdir(parents=True)
    source = shared.parent / "planted.py"
    source.write_text(marked[1] + "def main():\n    return 'planted'\n")
    name = importlib.util.cache_from_source("honest.py").rpartition("/")[2]
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(source), str(cache / name), invalidation_mode=mode)
    environment = f'environment = {{ PYTHONPYCACHEPREFIX = "{shared}" }}\n'
    ran, done = host_runs(pyspawner, marked, environment + bind(shared), code)
    assert not ran and done.lines[0]["outcome"] == "ok", done
    ran, done = host_runs(pyspawner, marked, environment + bind(shared, writable=False), code)
    assert ran and done.lines[0]["result"] == "planted", "the control"


def test_a_package_of_which_jobs_can_write_a_part(pyspawner, open_folder, marked):
    code = honest(open_folder / "app", "import data.settings\n")
    (code / "data").mkdir()
    (code / "data/settings.py").write_text(marked[1])
    ran, done = host_runs(pyspawner, marked, bind(code / "data"), code)
    assert not ran and done.status == 125 and "jobs' data" in done.stderr, done.stderr
    ran, done = host_runs(pyspawner, marked, bind(code / "data", writable=False), code)
    assert ran, "the control"


@pytest.mark.parametrize("name", ["data/settings.pyc", "data/__init__.pyc"])
def test_bytecode_without_a_source_where_jobs_can_write(pyspawner, open_folder, marked, name):
    """Its loader opens it as any file. As a package it comes before a module of the same name that is trusted."""
    imports = "try:\n    import data.settings\nexcept ImportError:\n    pass\n"
    code = honest(open_folder / "app", imports)
    (code / "data").mkdir()
    source = open_folder / "planted.py"
    source.write_text(marked[1])
    py_compile.compile(str(source), str(code / name))
    ran, done = host_runs(pyspawner, marked, bind(code / "data"), code)
    assert not ran and done.status == 125 and "jobs' data" in done.stderr, done.stderr
    ran, done = host_runs(pyspawner, marked, bind(code / "data", writable=False), code)
    assert ran, "the control"


def test_a_hook_between_clones_imports_nothing_that_a_job_has_left(pyspawner, open_folder, marked):
    code = open_folder / "app"
    (code / "plugins").mkdir(parents=True)
    (code / "plugins").chmod(0o777)
    planted = code / "plugins" / "extra.py"
    (code / "honest.py").write_text(
        "import os, pyspawner_host\n"
        "def refresh():\n    if os.path.exists(PLANTED):\n        import plugins.extra\n"
        "pyspawner_host.before_clone(refresh)\n"
        f"PLANTED = {str(planted)!r}\n"
        f"def main():\n    open(PLANTED, 'w').write({marked[1]!r})\n"
    )
    config = "[pool]\nspares = 0\n"
    done = pyspawner.map("honest.main", [[], []], "-j", "1", config=config + bind(code / "plugins"), path=code)
    assert not marked[0].exists()
    assert [line["outcome"] for line in done.lines] == ["ok", "setup_failed"]
    assert "may have been left by a job" in done.lines[1]["detail"]
    # The control: the same file where no job can write.
    done = pyspawner.map("honest.main", [[]], config=config, path=code)
    assert f"Read-only file system: '{marked[0]}'" in done.stderr, "it is executed, in the host's view of the files"


def test_an_extension_module_where_jobs_can_write(pyspawner, open_folder, marked):
    code = honest(open_folder / "app", "import data.planted\n")
    (code / "data").mkdir()
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (code / "data" / f"planted{suffix}").write_bytes(b"no library")
    _, done = host_runs(pyspawner, marked, bind(code / "data"), code)
    assert done.status == 125 and "jobs' data" in done.stderr, done.stderr
    _, done = host_runs(pyspawner, marked, bind(code / "data", writable=False), code)
    assert "invalid ELF header" in done.stderr or "file too short" in done.stderr, "the control: it is loaded"


@pytest.mark.parametrize("open_to_all", ["code/honest.py", "code", "."])
def test_a_chroot_in_which_others_can_replace_modules(pyspawner, open_folder, marked, open_to_all):
    root = open_folder / "root"
    for name in ("dev", "proc", "tmp", "usr", "code"):
        (root / name).mkdir(parents=True)
    honest(root / "code", marked[1])
    config = f'[profile.default]\nroot = {{ chroot = "{root}" }}\n'
    ran, done = host_runs(pyspawner, marked, config, root / "code")
    assert ran, "the control: nobody else can write there"
    place = root / open_to_all
    place.chmod(place.stat().st_mode | 0o002)
    honest(root / "code", "# changed since\n" + marked[1])  # what is compiled already is the host's own
    ran, done = host_runs(pyspawner, marked, config, root / "code")
    assert not ran and done.status == 125 and "jobs" in done.stderr, done.stderr


@pytest.mark.parametrize("value", ["{library}", "libnone.so {library}", "{relative}"])
def test_a_library_that_the_loader_would_take_from_where_jobs_can_write(
    pyspawner, shared, marked, tmp_path, monkeypatch, value
):
    """The host begins without the variable, which jobs have."""
    source = tmp_path / "planted.c"
    source.write_text(
        "#include <fcntl.h>\n#include <unistd.h>\n"
        "__attribute__((constructor)) static void run(void) {\n"
        f'    close(open("{marked[0]}", O_CREAT | O_WRONLY, 0600));\n}}\n'
    )
    library = shared / "planted.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    code = honest(shared.parent / "code")
    monkeypatch.chdir(tmp_path)
    value = value.format(library=library, relative=os.path.relpath(library, tmp_path))
    environment = f'environment = {{ LD_PRELOAD = "{value}" }}\n'
    ran, done = host_runs(pyspawner, marked, environment + bind(shared), code)
    assert not ran and done.lines[0]["outcome"] == "ok", done
    ran, done = host_runs(pyspawner, marked, environment + bind(shared, writable=False), code)
    assert ran, "the control"


def test_a_resolv_conf_where_jobs_can_write(pyspawner, shared):
    (shared / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    honest(shared.parent / "code")

    def start(writable):
        network = f'network = {{ egress = {{ resolv_conf = "{shared}/resolv.conf", allow = ["192.0.2.1"] }} }}\n'
        config = bind(shared, writable) + network
        return pyspawner.map("honest.main", [[]], config=config, path=shared.parent / "code")

    refused = start(writable=True)
    assert refused.status == 125 and "resolv_conf" in refused.stderr, refused.stderr
    assert "resolv_conf" not in start(writable=False).stderr, "the control"


def test_an_interpreter_where_jobs_can_write(pyspawner, shared, marked):
    """It is asked for its version, by whoever starts pyspawner."""
    python = shared / "python"
    python.write_text(f"#!/bin/sh\ntouch {marked[0]}\n")
    python.chmod(0o755)
    code = honest(shared.parent / "code")
    ran, done = host_runs(pyspawner, marked, bind(shared), code, "--python", str(python))
    assert not ran and done.status == 125 and "jobs' data" in done.stderr, done.stderr
    ran, done = host_runs(pyspawner, marked, bind(shared, writable=False), code, "--python", str(python))
    assert ran, "the control"
