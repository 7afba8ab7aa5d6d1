"""Paths as users write them: with dots, by links, of what is not there."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

JOB = """
import os, sys
def main(): import late; return [late.VALUE, sys.path[1]]
def again(path): return os.path.exists(path)
"""


@pytest.fixture(params=["/var/tmp", "/tmp"])
def folder(request):
    """One with the job in it and a link beside it, in a place of either kind."""
    above = Path(request.param, f"pyspawner-test-{os.getpid()}")
    code = above / "code"
    code.mkdir(parents=True)
    (code / "job.py").write_text(JOB)
    (code / "late.py").write_text("VALUE = 1\n")
    (above / "link").symlink_to("code")
    (above / "other").mkdir()
    for each in (above, code, above / "other"):
        each.chmod(0o755)
    yield above
    subprocess.run(["rm", "-r", above], check=True)


def run(pyspawner, path, name="job.main", *args, cwd="/", **options):
    command = pyspawner.command("map", name, path=path, **options)
    lines = f'["{args[0]}"]\n' if args else "[]\n"
    done = subprocess.run(command, input=lines, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("{folder}/code/../code", "{folder}/code"),
        ("{folder}/other/../code", "{folder}/code"),
        ("{folder}/./other/.././code/.", "{folder}/code"),
        ("{folder}/other/../link", "{folder}/link"),
        ("{folder}/link", "{folder}/link"),
        ("{folder}/link/../link", "{folder}/link"),
        ("../code", "{folder}/code"),
        ("../other/../link", "{folder}/link"),
    ],
)
def test_a_path_means_the_same_in_jobs(pyspawner, folder, written, cleaned):
    path = written.format(folder=folder)
    out, said = run(pyspawner, path, cwd=folder / "other")
    # After the caller's working directory, if that is in reach.
    assert '"result":[1,' in out, said
    out, said = run(pyspawner, path, "job.again", cleaned.format(folder=folder), cwd=folder / "other")
    assert '"result":true' in out, said


def test_dots_after_a_link_are_followed_as_the_kernel_does(pyspawner, folder):
    """Not by the text: `link/..` is the folder above what the link leads to."""
    (folder / "other" / "inner").mkdir()
    (folder / "into").symlink_to("other/inner")
    (folder / "other" / "code").symlink_to("../code")
    out, said = run(pyspawner, f"{folder}/into/../code", "job.again", f"{folder}/other/code")
    assert '"result":true' in out, said


def test_both_a_link_and_what_it_leads_to_are_there(pyspawner, folder):
    for path in (folder / "link", folder / "code"):
        out, said = run(pyspawner, folder / "link", "job.again", path / "late.py")
        assert '"result":true' in out, said
    # No more than that.
    out, said = run(pyspawner, folder / "link", "job.again", folder / "other")
    assert f'"result":{"true" if folder.is_relative_to("/var") else "false"}' in out, said


def test_a_link_from_tmp_to_elsewhere(pyspawner, folder, open_folder):
    (open_folder / "job.py").write_text(JOB)
    (open_folder / "late.py").write_text("VALUE = 2\n")
    open_folder.chmod(0o755)
    link = folder / "deep" / "elsewhere"
    link.parent.mkdir()
    link.symlink_to(open_folder)
    out, said = run(pyspawner, link)
    assert '"result":[2,' in out, said
    out, said = run(pyspawner, link, "job.again", link / "late.py")
    assert '"result":true' in out, said


def test_an_interpreter_by_a_path_with_dots(pyspawner, folder):
    venv.create(folder / "venv", symlinks=True)
    for python in (f"{folder}/other/../venv/bin/python", "../venv/bin/python", "../venv/bin/../bin/python"):
        command = [pyspawner.command("map", "job.main", path=folder / "code")[0], "map", "--child-main", "job.prefix"]
        (folder / "code/job.py").write_text("import sys\ndef prefix(): return [sys.prefix, sys.executable]\n")
        command += ["--path", str(folder / "code"), "--python", python]
        done = subprocess.run(command, input="[]\n", cwd=folder / "other", capture_output=True, text=True, check=False)
        expected = f'["{folder}/venv","{folder}/venv/bin/python"]'
        assert f'"result":{expected}' in done.stdout, (done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["none", "none/deep", "none/../code", "code/job.py/x"])
def test_a_path_that_is_not_there_is_an_error(pyspawner, folder, name):
    out, said = run(pyspawner, f"{folder}/{name}")
    assert out == "" and said.startswith(f"pyspawner: error: path: {folder}/{name}: "), said
    assert "No such file" in said or "Not a directory" in said


@pytest.mark.parametrize("name", ["code/job.py", "file"])
def test_a_path_to_a_file_is_an_error(pyspawner, folder, name):
    (folder / "file").write_text("")
    out, said = run(pyspawner, folder / name)
    assert out == "" and f"path: {folder}/{name} is no folder, nor an archive" in said


@pytest.mark.parametrize("ending", ["zip", "whl", "egg"])
def test_modules_in_an_archive(pyspawner, folder, ending):
    archive = folder / f"modules.{ending}"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("job.py", JOB)
        file.writestr("late.py", "VALUE = 3\n")
    archive.chmod(0o644)
    out, said = run(pyspawner, archive)
    assert '"result":[3,' in out, said


def test_a_path_that_only_jobs_have(pyspawner, folder):
    """A bind's target below /tmp is nothing on the host."""
    config = f'[profile.default]\nbinds = [{{ source = "{folder}/code", target = "/tmp/bound" }}]\n'
    flags = ["--path", "/tmp/bound", "--python", sys.executable]
    command = pyspawner.command("map", "job.main", *flags, path=folder / "other", config=config)
    # What was not there when the host looked is looked for again.
    job = JOB.replace("import late", "import importlib; importlib.invalidate_caches(); import late")
    (folder / "other/job.py").write_text(job)
    done = subprocess.run(command, input="[]\n", cwd="/", capture_output=True, text=True, check=False)
    assert '"result":[1,' in done.stdout, done


def test_the_working_directory_below_tmp_as_a_path(pyspawner, folder):
    """Which is out of reach unless it is named."""
    out, said = run(pyspawner, ".", cwd=folder / "code")
    assert '"result":[1,' in out, said
