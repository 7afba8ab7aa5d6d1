"""What the documentation names must be there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyspawner
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def missing_tests(text):
    """References such as ``security/test_root.py::test_name`` that lead to no test."""
    for path, name in re.findall(r"`(?:tests/)?((?:[\w-]+/)*test_\w+\.py)(?:::(test_\w+))?`", text):
        file = ROOT / "tests" / path
        if not file.exists() or (name and f"def {name}(" not in file.read_text()):
            yield f"{path}::{name}"


def missing_code(text):
    """References to code below ``src`` that lead to no file or folder."""
    for path in re.findall(r"`((?:[\w]+/)+(?:[\w]+\.(?:rs|py|toml))?|[\w]+\.rs)`", text):
        is_there = any((ROOT / top / path).exists() for top in ("src", "tests", "."))
        if not is_there and ("/" in path or not any((ROOT / "src").rglob(path))):
            yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_are_there(page):
    assert not list(missing_tests(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_that_a_page_names_is_there(page):
    assert not list(missing_code(page.read_text()))


def test_a_name_that_leads_nowhere_is_found():
    assert list(missing_tests("`security/test_root.py::test_nothing`, `test_none.py`, `test_docs.py`")) == [
        "security/test_root.py::test_nothing",
        "test_none.py::",
    ]
    assert list(missing_code("`io/none.rs`, `io/`, `nowhere/`, `none.rs`, `enter.rs`")) == [
        "io/none.rs",
        "nowhere/",
        "none.rs",
    ]


# ---- the site -----------------------------------------------------------------------------


def build(folder, out):
    command = [folder / "scripts/docs.sh", out]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "VENV": sys.prefix}, check=False)


def test_the_site_is_built_with_every_page_and_a_search(tmp_path):
    """By ``make docs``, which takes a link that leads nowhere for an error."""
    done = build(ROOT, tmp_path / "site")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    index = (tmp_path / "site/search/search_index.json").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert f'"title":"{title}"' in index, page
    api = (tmp_path / "site/api/index.html").read_text()
    for name in pyspawner.__all__:
        assert f'id="pyspawner.{name}"' in api, name


def test_a_link_that_leads_nowhere_breaks_it(tmp_path):
    """The control, for a page and for a heading."""
    for name in ("docs", "scripts", "python", "python-stubs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    tools = tmp_path / "target/tools"
    tools.mkdir(parents=True)
    (tools / "docs").symlink_to(ROOT / "target/tools/docs")
    page = tmp_path / "docs/index.md"
    text = page.read_text()
    for link in ("nowhere.md", "sandbox.md#nothing-of-the-kind"):
        page.write_text(f"{text}\n[there]({link})\n")
        done = build(tmp_path, tmp_path / "site")
        assert done.returncode != 0 and link in done.stderr, done


def test_the_links_of_the_pages_that_are_not_in_the_site_lead_somewhere():
    for page in ROOT.glob("*.md"):
        for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
            target = ROOT / link
            assert target.exists(), (page.name, link)
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert not anchor or anchor in {
                re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings
            }, anchor
