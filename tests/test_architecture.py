"""The laws of the tree: each file says what it runs on, and nothing points up."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
FILES = sorted(SRC.rglob("*.rs"))

# From the ground up. What shares a floor does not know each other, but for what BESIDE has.
FLOORS = [
    {"sys"},
    {"layer", "logging", "stop_signals", "fuzzing"},
    {"failure", "config"},
    {"wire"},
    {"clone", "sandbox"},
    {"interpreter"},
    {"child"},
    {"io"},
    {"main_thread"},
    {"init"},
    {"launcher"},
    {"main"},
]
APART = [("sandbox", "interpreter"), ("interpreter", "sandbox"), ("launcher", "main_thread")]

WORLDS = ["the launcher", "the init", "the main thread", "the I/O thread", "a child"]
OF_FOLDER = {
    "launcher": {"the launcher"},
    "init": {"the init"},
    "main_thread": {"the main thread"},
    "io": {"the I/O thread"},
    "child": {"a child"},
}


def top(path):
    return path.relative_to(SRC).parts[0].removesuffix(".rs")


def header(text):
    """The lines of documentation that a file begins with."""
    return [line for line in text.splitlines()[: len(re.match(r"(//!.*\n)*", text).group().splitlines())]]


def worlds(text):
    """What a file says that it runs on."""
    lines = [line for line in header(text) if line.startswith("//! Runs on: ")]
    if len(lines) != 1:
        return None
    said = lines[0].removeprefix("//! Runs on: ").removesuffix(".")
    if said in ("any process", "tests", "every process, first of all"):
        return {said}
    found = {world for world in WORLDS if world in said}
    rest = said
    for world in found:
        rest = rest.replace(world, "")
    allowed = r"[, ]*(and)?[, ]*(that (it has just cloned|has just been cloned))?"
    return found if found and re.fullmatch(allowed, rest) else None


def used(text):
    """The folders and files at the top of the tree that a file uses."""
    code = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    names = set(re.findall(r"crate::([a-z_]\w*)", code))
    for group in re.findall(r"crate::\{((?:[^{}]|\{[^{}]*\})*)\}", code):
        names |= {part.strip().split("::")[0] for part in re.sub(r"\{[^{}]*\}", "", group).split(",") if part.strip()}
    return names


def floor(name):
    return next(number for number, names in enumerate(FLOORS) if name in names)


def arrows_up(name, text):
    """What a file of ``name`` uses and must not."""
    for other in used(text) - {name}:
        if floor(other) >= floor(name) or (name, other) in APART:
            yield f"{name} -> {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_a_file_says_what_it_runs_on(path):
    said = worlds(path.read_text())
    assert said, 'expected one line "//! Runs on: …" at its top (docs/architecture.md, "Worlds")'
    assert said <= OF_FOLDER.get(top(path), said), "it lies in another world's folder"


def test_nothing_points_up():
    found = {f"{path.relative_to(SRC)}: {arrow}" for path in FILES for arrow in arrows_up(top(path), path.read_text())}
    assert not found


def test_what_is_wrong_is_found():
    assert worlds("//! A file.\n//!\n//! Runs on: the moon.\n") is None
    assert worlds("//! A file.\n\n//! Runs on: a child.\n") is None
    assert worlds("//! A file.\n//!\n//! Runs on: the main thread, a child.\n") == {"the main thread", "a child"}
    assert list(arrows_up("wire", "use crate::{config, io::{self, pool}};\n")) == ["wire -> io"]
    assert list(arrows_up("sandbox", "use crate::interpreter::warm;\n// crate::main_thread\n")) == [
        "sandbox -> interpreter"
    ]


def test_the_page_has_every_folder():
    page = (ROOT / "docs/architecture.md").read_text()
    folders = {str(path.parent.relative_to(ROOT)) + "/" for path in FILES if path.parent != SRC}
    inner = {"src/clone/inherited/", "src/sandbox/root/", "src/launcher/flags/", "src/io/", "src/io/api/protocol/"}
    assert {folder for folder in folders - inner if f"`{folder}`" not in page} == set()
