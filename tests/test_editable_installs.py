"""Editable installs: what lies in a home, or below /tmp, can be imported in jobs, and nothing else is shown.

They are made by pip, with the backends that people use, in a virtual environment of the test's own.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from driving import skipping

pytestmark = pytest.mark.root

JOB = """
import importlib, os, sys
def main(names, folders):
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
            found[name] = "ok"
        except Exception as error:
            found[name] = repr(error)
    return [found, [sorted(os.listdir(folder)) for folder in folders]]
def is_loaded(name): return name in sys.modules
"""


def project(backend, requires, extra="", name="thing"):
    return f"""
[build-system]
requires = {json.dumps(requires)}
build-backend = "{backend}"
[project]
name = "{name}"
version = "0.1"
description = "for a test"
{extra}
"""


PACKAGE = {"__init__.py": "", "lazy.py": "VALUE = 1\n", "inner/__init__.py": "", "inner/deep.py": "VALUE = 2\n"}
LAZY = ["thing.lazy", "thing.inner.deep"]


def at(folder, files):
    return {f"{folder}/{name}": text for name, text in files.items()}


SETUPTOOLS = ["setuptools"]
SRC = {"pyproject.toml": project("setuptools.build_meta", SETUPTOOLS), **at("src/thing", PACKAGE)}
FLAT = {
    "pyproject.toml": project(
        "setuptools.build_meta",
        SETUPTOOLS,
        '[tool.setuptools]\npackages = ["thing", "thing.inner"]\npy-modules = ["single"]',
    ),
    **at("thing", PACKAGE),
    "single.py": "VALUE = 3\n",
}
MAPPED = {
    "pyproject.toml": project(
        "setuptools.build_meta", SETUPTOOLS,
        '[tool.setuptools]\npackages = ["thing", "thing.inner"]\npackage-dir = {"thing" = "elsewhere"}',
    ),
    **at("elsewhere", PACKAGE),
}  # fmt: skip
NAMESPACE = {
    "pyproject.toml": project(
        "setuptools.build_meta", SETUPTOOLS,
        '[tool.setuptools]\npackages = ["space.thing"]\npackage-dir = {"" = "lib"}',
    ),
    **at("lib/space/thing", {"__init__.py": "", "lazy.py": ""}),
    "setup.py": "import setuptools; setuptools.setup()\n",
}  # fmt: skip
HATCH = {
    "pyproject.toml": project(
        "hatchling.build", ["hatchling"], '[tool.hatch.build.targets.wheel]\npackages = ["src/thing"]'
    ),
    **at("src/thing", PACKAGE),
}
HATCH_EXACT = {**HATCH, "pyproject.toml": HATCH["pyproject.toml"] + "[tool.hatch.build]\ndev-mode-exact = true\n"}
POETRY = {
    "pyproject.toml": project(
        "poetry.core.masonry.api", ["poetry-core"], '[tool.poetry]\npackages = [{include = "thing"}]'
    ),
    **at("thing", PACKAGE),
}
FLIT = {"pyproject.toml": project("flit_core.buildapi", ["flit_core"]), **at("src/thing", PACKAGE)}
MESON = {
    "pyproject.toml": project("mesonpy", ["meson-python"]),
    "meson.build": "project('thing', 'c', version: '0.1')\n"
    "python = import('python').find_installation(pure: false)\n"
    "python.install_sources('thing/__init__.py', 'thing/lazy.py', subdir: 'thing')\n"
    "python.install_sources('thing/inner/__init__.py', 'thing/inner/deep.py', subdir: 'thing/inner')\n"
    "python.extension_module('built', 'built.c', subdir: 'thing', install: true)\n",
    "built.c": '#include <Python.h>\nstatic struct PyModuleDef built = {PyModuleDef_HEAD_INIT, "built", 0, -1, 0};\n'
    "PyMODINIT_FUNC PyInit_built(void) { return PyModule_Create(&built); }\n",
    **at("thing", PACKAGE),
}
SCIKIT = {
    "pyproject.toml": project("scikit_build_core.build", ["scikit-build-core"]),
    "CMakeLists.txt": "cmake_minimum_required(VERSION 3.15)\nproject(thing LANGUAGES NONE)\n"
    'file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/generated.py "VALUE = 4\\n")\n'
    "install(FILES ${CMAKE_CURRENT_BINARY_DIR}/generated.py DESTINATION thing)\n",
    **at("src/thing", PACKAGE),
}
STRICT = ["--config-settings", "editable_mode=strict"]

# Files, needed backends, pip's flags, what is imported late, whether it must be preloaded, and what of the
# project is in sight.
INSTALLS = {
    "setuptools src": (SRC, SETUPTOOLS, [], LAZY, False, ["src"]),
    "setuptools flat": (FLAT, SETUPTOOLS, [], [*LAZY, "single"], False, ["single.py", "thing"]),
    "setuptools mapped": (MAPPED, SETUPTOOLS, [], LAZY, False, ["elsewhere"]),
    "setuptools namespace": (NAMESPACE, SETUPTOOLS, [], ["space.thing.lazy"], False, ["lib"]),
    "setuptools strict": (SRC, SETUPTOOLS, STRICT, LAZY, False, ["build", "src"]),
    "setuptools strict flat": (FLAT, SETUPTOOLS, STRICT, [*LAZY, "single"], False, ["build", "single.py", "thing"]),
    "hatchling": (HATCH, ["hatchling"], [], LAZY, False, ["src"]),
    "hatchling exact": (HATCH_EXACT, ["hatchling", "editables"], [], LAZY, False, ["src"]),
    "poetry": (POETRY, ["poetry.core"], [], LAZY, False, None),
    "flit": (FLIT, ["flit_core"], [], LAZY, False, ["src"]),
    "meson-python": (MESON, ["mesonpy", "ninja"], [], [*LAZY, "thing.built"], True, ["build", "thing"]),
    "scikit-build-core": (
        SCIKIT, ["scikit_build_core", "cmake"], [], [*LAZY, "thing.generated"], False, ["src"],
    ),
}  # fmt: skip


class Place:
    """A project in a folder that jobs do not see, installed into an environment that they see."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self.project = folder / "projects" / "thing"
        self.python = environment / "bin/python"

    def write(self, files):
        for name, text in files.items():
            path = self.project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (self.project / ".env").write_text("of the developer")

    def install(self, *flags):
        # The backends are this environment's: nothing is fetched.
        environment = {
            **os.environ,
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
        }
        pip = [self.python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps"]
        command = [*map(str, pip), *flags, "-e", str(self.project)]
        done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def make_place(open_folder):
    """Makes one in a folder for this test alone: like a home, or below /tmp."""
    made = []

    def make(above="/home"):
        folder = Path(above, f"pyspawner-test-{os.getpid()}-{len(made)}")
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        made.append(folder)
        (folder / "secret").write_text("of the developer")
        environment = open_folder / f"venv-{len(made)}"
        venv.create(environment, symlinks=True)
        for late in [open_folder, environment]:
            late.chmod(0o755)
        (open_folder / "job.py").write_text(JOB)
        return Place(folder, environment)

    yield make
    for folder in made:
        shutil.rmtree(folder)


def installed(place, files, backends, flags):
    for backend in backends:
        pytest.importorskip(backend)
    place.write(files)
    place.install(*flags)
    if "editables" in backends:  # what it has pip install besides
        target = subprocess.check_output(
            [place.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        shutil.copytree(Path(sysconfig.get_path("purelib"), "editables"), Path(target.strip(), "editables"))


def run(pyspawner, place, open_folder, *args, flags=(), name="job.main", **options):
    flags = ["--python", str(place.python), *flags]
    return pyspawner.map(name, [list(args)], *flags, path=open_folder, **options)


ELSEWHERE = ["setuptools flat", "setuptools strict", "hatchling exact", "meson-python"]


@pytest.mark.parametrize(
    ("kind", "above"),
    [*((kind, "/home") for kind in INSTALLS), *((kind, above) for kind in ELSEWHERE for above in ("/root", "/tmp"))],
)
def test_an_editable_install_can_be_imported_late(pyspawner, open_folder, make_place, kind, above):
    files, backends, pips, names, is_preloaded, in_sight = INSTALLS[kind]
    place = make_place(above)
    installed(place, files, backends, pips)
    flags = ["--preload", names[0].partition(".")[0]] if is_preloaded else []
    done = run(pyspawner, place, open_folder, names, [str(place.folder), str(place.project)], flags=flags)
    assert done.lines, done.stderr
    assert done.lines[0]["outcome"] == "ok", done
    found, (beside, within) = done.lines[0]["result"]
    assert found == dict.fromkeys(names, "ok")
    assert beside == ["projects"]
    if in_sight is not None:  # else its project is an entry of sys.path
        assert [name for name in within if name != "__pycache__"] == in_sight


def test_a_package_that_is_built_at_its_first_import_is_named(pyspawner, open_folder, make_place):
    place = make_place()
    installed(place, MESON, ["mesonpy", "ninja"], [])
    said = run(pyspawner, place, open_folder, [], []).stderr
    assert "jobs cannot import thing" in said and "--preload" in said
    said = run(pyspawner, place, open_folder, [], [], flags=["--preload", "thing"]).stderr
    assert "jobs cannot import" not in said


# ---- what is no editable install, but imports from elsewhere -------------------------------

FINDERS = {
    "class": "class Finder:\n    {mapping}\n    find_spec = classmethod(lambda cls, name, path=None, target=None:"
    " find(cls.KNOWN, name))\nsys.meta_path.append(Finder)\n",
    "object": "class Finder:\n    def __init__(self): self.known = {{'all': {known}}}\n"
    "    def find_spec(self, name, path=None, target=None): return find(self.known['all'], name)\n"
    "sys.meta_path.append(Finder())\n",
    "module": "{mapping}\nclass Finder:\n    find_spec = staticmethod(lambda name, path=None, target=None:"
    " find(KNOWN, name))\nsys.meta_path.append(Finder)\n",
}
FIND = """
import importlib.util, os, sys
def find(known, name):
    if name in known:
        folder = str(known[name])
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
"""


@pytest.mark.parametrize("kind", FINDERS)
def test_a_finder_of_ones_own(pyspawner, open_folder, make_place, kind):
    place = make_place()
    place.write(at("thing", PACKAGE))
    known = repr({"thing": str(place.project / "thing")})
    finder = FIND + FINDERS[kind].format(mapping=f"KNOWN = {known}", known=known)
    (open_folder / "finder.py").write_text(finder)
    done = run(pyspawner, place, open_folder, LAZY, [str(place.project)], flags=["--preload", "finder"])
    assert done.lines[0]["result"] == [dict.fromkeys(LAZY, "ok"), [["thing"]]], done


@pytest.mark.parametrize("kind", FINDERS)
def test_settings_of_a_finder_are_not_shown(pyspawner, open_folder, make_place, kind):
    """A path that modules cannot be imported from is none of its mappings, whatever its name."""
    place = make_place()
    place.write({**at("thing", PACKAGE), "config/token": "secret", "scripts/run.py": ""})
    known = {"thing": str(place.project / "thing"), "config": str(place.project / "config")}
    finder = FIND + FINDERS[kind].format(mapping=f"KNOWN = {known!r}", known=repr(known))
    finder += f"SCRIPTS = {str(place.project / 'scripts')!r}\nHOME = {str(place.folder)!r}\n"
    (open_folder / "finder.py").write_text(finder)
    done = run(pyspawner, place, open_folder, LAZY, [str(place.project)], flags=["--preload", "finder"])
    assert done.lines[0]["result"] == [dict.fromkeys(LAZY, "ok"), [["thing"]]], done


def test_a_package_whose_folder_is_on_sys_path_no_more(pyspawner, open_folder, make_place):
    place = make_place()
    place.write(at("thing", PACKAGE))
    (open_folder / "finder.py").write_text(
        f"import sys\nsys.path.insert(0, {str(place.project)!r})\nimport thing\ndel sys.path[0]\n"
    )
    done = run(pyspawner, place, open_folder, LAZY, [str(place.project)], flags=["--preload", "finder"])
    assert done.lines[0]["result"] == [dict.fromkeys(LAZY, "ok"), [["thing"]]], done


def test_a_package_that_is_a_link_in_a_folder_of_packages(pyspawner, open_folder, make_place):
    """As `flit install --symlink` makes them. Not where others could have made the link."""
    place = make_place()
    place.write(at("thing", PACKAGE))
    packages = open_folder / "packages"
    packages.mkdir()
    (packages / "thing").symlink_to(place.project / "thing")

    def found():
        done = run(pyspawner, place, open_folder, LAZY, [], flags=["--path", str(packages)])
        return set(done.lines[0]["result"][0].values())

    assert found() == {"ok"}
    packages.chmod(0o777)
    assert "ok" not in found()
    packages.chmod(0o755)
    os.chown(packages / "thing", 12345, 12345, follow_symlinks=False)
    assert "ok" not in found()


# ---- what is not shown ---------------------------------------------------------------------


def test_a_home_is_not_shown_for_a_module_that_lies_in_it(pyspawner, open_folder, make_place):
    """It is refused by name, unless the operator names the home."""
    place = make_place()
    (place.folder / "single.py").write_text("VALUE = 1\n")
    packages = subprocess.check_output(
        [place.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(packages.strip()) / "thing.pth").write_text(f"{place.folder}\n")
    done = run(pyspawner, place, open_folder, ["single"], [])
    assert done.status == 125 and str(place.folder) in done.stderr and "--path" in done.stderr
    place.folder.chmod(0o755)
    done = run(pyspawner, place, open_folder, ["single"], [], flags=["--path", str(place.folder)])
    assert done.lines[0]["result"][0] == {"single": "ok"}, done.stderr


def test_a_home_that_is_a_package_is_refused(pyspawner, open_folder, make_place):
    place = make_place()
    (place.folder / "__init__.py").write_text("")
    mapping = f"KNOWN = {{'thing': {str(place.folder)!r}}}"
    (open_folder / "finder.py").write_text(FIND + FINDERS["module"].format(mapping=mapping, known=""))
    done = run(pyspawner, place, open_folder, [], [], flags=["--preload", "finder"])
    assert done.status == 125 and str(place.folder) in done.stderr and "thing" in done.stderr


def test_a_hidden_working_directory_shows_no_package(pyspawner, open_folder, make_place):
    """It is where the host imports from, but not named: `--path .` is for that."""
    place = make_place()
    for name, text in at("thing", PACKAGE).items():
        path = place.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    flags = ["--python", str(place.python), "--preload", "thing.inner"]
    command = pyspawner.command("map", "job.main", *flags, path=open_folder)
    jobs = json.dumps([["thing.lazy"], []])

    def found(command):
        done = subprocess.run(command, input=jobs, cwd=place.folder, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)["result"][0]["thing.lazy"]

    assert found(command) != "ok"
    place.folder.chmod(0o755)
    assert found(command) != "ok"
    assert found([*command, "--path", "."]) == "ok"


def test_what_the_operator_hides_stays_hidden(pyspawner, open_folder, make_place):
    """And nothing of a home's credentials is shown for a module among them."""
    place = make_place()
    place.write(at("thing", PACKAGE))
    secret = open_folder / "hidden" / "thing"
    keys = place.folder / ".ssh" / "thing"
    for folder in (secret, keys):
        shutil.copytree(place.project / "thing", folder)
    for folder, config in [(secret, f'[profile.default]\nhide = ["{secret.parent}"]\n'), (keys, "")]:
        mapping = f"KNOWN = {{'thing': {str(folder)!r}}}"
        (open_folder / "finder.py").write_text(FIND + FINDERS["module"].format(mapping=mapping, known=""))
        done = run(pyspawner, place, open_folder, LAZY, [], flags=["--preload", "finder"], config=config)
        assert "ok" not in done.lines[0]["result"][0].values(), done
        assert str(folder) in done.stderr and "is hidden" in done.stderr
        # The control: with nothing hidden it is imported.
        config = skipping("root", "setuid", "user_namespace", "landlock")
        done = run(pyspawner, place, open_folder, LAZY, [], flags=["--preload", "finder"], config=config)
        assert set(done.lines[0]["result"][0].values()) == {"ok"}, done


def test_nothing_is_looked_for_where_jobs_write(pyspawner, open_folder, make_place):
    """A job leaves a link in a folder of packages; the next host does not show what it leads to."""
    place = make_place()
    place.write(at("thing", PACKAGE))
    shared = open_folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (open_folder / "job.py").write_text(
        JOB + f"def plant(): os.symlink({str(place.project / 'thing')!r}, {str(shared / 'thing')!r})\n"
    )
    config = f'[profile.default]\nbinds = [{{ source = "{shared}", writable = true }}]\n'
    flags = ["--path", str(shared)]
    planted = run(pyspawner, place, open_folder, name="job.plant", config=config)
    assert planted.lines[0]["outcome"] == "ok", planted
    shared.chmod(0o755)
    os.chown(shared / "thing", 0, 0, follow_symlinks=False)
    done = run(pyspawner, place, open_folder, LAZY, [], flags=flags, config=config)
    assert done.status == 125 and "which jobs can write to" in done.stderr, done
    # The control: where jobs cannot write, the same link is followed.
    done = run(pyspawner, place, open_folder, LAZY, [], flags=flags)
    assert set(done.lines[0]["result"][0].values()) == {"ok"}, done
