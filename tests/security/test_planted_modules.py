"""Modules that a job leaves where the next job, or the next host, would import them."""

import os

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
