"""What the documentation names must be there."""

import re
from pathlib import Path

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
        if not any((ROOT / top / path).exists() for top in ("src", "tests", ".")):
            yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_are_there(page):
    assert not list(missing_tests(page.read_text()))


def test_the_code_that_a_reviewer_is_led_to_is_there():
    assert not list(missing_code((ROOT / "docs/security-review.md").read_text()))


def test_a_name_that_leads_nowhere_is_found():
    assert list(missing_tests("`security/test_root.py::test_nothing`, `test_none.py`, `test_docs.py`")) == [
        "security/test_root.py::test_nothing",
        "test_none.py::",
    ]
    assert list(missing_code("`pool/none.rs`, `pool/`, `nowhere/`")) == ["pool/none.rs", "nowhere/"]
