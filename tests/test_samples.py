"""Everything that the documentation shows is typed here, and what it prints is compared.

A page's section is a sequence of code blocks. One with a title that is a path is that file; one of ``sh`` is typed; the one after it
with the title "prints" is what that must print, where ``…`` stands for anything. All of it happens with a ``/srv`` of its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from driving import PYSPAWNER, ROOT
from test_network import Namespaces

DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
#: Separates what the commands print.
MARK = "---8<---"


@dataclass
class Section:
    page: Path
    title: str
    text: str

    @property
    def blocks(self):
        return BLOCK.findall(self.text)

    @property
    def files(self):
        """Those of the whole page, by path: a section may use an earlier one's."""
        return {title: text for _, title, text in BLOCK.findall(self.page.read_text()) if title.startswith("/")}

    @property
    def commands(self):
        """What is typed, and the pattern of what that prints."""
        blocks = [block for block in self.blocks if not block[1].startswith("/")]
        for (language, _, text), following in zip(blocks, [*blocks[1:], ("", "", "")], strict=True):
            if language == "sh":
                yield text, (following[2] if following[1] == "prints" else None)


def sections(page):
    for part in re.split(r"^(?=## )", page.read_text(), flags=re.MULTILINE):
        section = Section(page, part.splitlines()[0].lstrip("# ") if part.strip() else "", part)
        if any(language == "sh" for language, _, _ in section.blocks):
            yield section


SECTIONS = [section for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))] for section in sections(page)]


def type_in(section, folder, prefix=()):
    """Type a section's commands; return what each printed."""
    files = folder / "files"
    files.mkdir()
    for name, text in section.files.items():
        path = files / name.removeprefix("/srv/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "pyspawner").write_text(f'#!/bin/sh\nexec {PYSPAWNER} "$@"\n')
    (programs / "pyspawner").chmod(0o755)
    script = folder / "script"
    lines = [*an_empty_srv(folder), f"cp -r {files}/. /srv", "chmod -R a+rX /srv", "cd /srv"]
    for command, _ in section.commands:
        lines += [command, f"echo '{MARK}'"]
    script.write_text("\n".join(lines))
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": str(ROOT / "python"),
        "PYSPAWNER": PYSPAWNER,
        "LC_ALL": "C.UTF-8",
    }
    command = [*prefix, "unshare", "--mount", "bash", script]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    return done.stdout.split(MARK + "\n")[:-1]


def an_empty_srv(folder):
    """Commands. What these tests need themselves, if it lies there, stays."""
    needed = {
        path
        for path in (ROOT, Path(sys.prefix), Path(sys.base_prefix), PYSPAWNER.parent)
        if path.is_relative_to("/srv")
    }
    yield "set -e"
    for number, path in enumerate(sorted(needed)):
        yield f"mkdir {folder}/{number}; mount --bind {path} {folder}/{number}"
    yield "mount -t tmpfs -o mode=755 srv /srv"
    for number, path in enumerate(sorted(needed)):
        yield f"mkdir -p {path}; mount --move {folder}/{number} {path}"
    yield "set +e"


def matches(pattern, text):
    """Whether a text is as the page has it, but for what ``…`` stands for."""
    parts = [re.escape(part) for part in pattern.strip().split("…")]
    return re.fullmatch(".*?".join(parts), text.strip(), re.DOTALL) is not None


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def internet():
    """What the addresses of the documentation lead to, and the prefix of a command on a machine that they lead from."""
    namespaces = Namespaces()
    namespaces.build()
    server = (
        "import socket\nlistener = socket.create_server(('', 7000))\nprint(flush=True)\n"
        "while True:\n    listener.accept()[0].sendall(b'welcome')\n"
    )
    command = ["ip", "netns", "exec", namespaces.world, sys.executable, "-c", server]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield ["ip", "netns", "exec", namespaces.machine]
        finally:
            process.kill()
            namespaces.remove()


@pytest.mark.root
@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section.page.stem}: {section.title}")
def test_what_a_page_shows_is_so(section, folder, request):
    if "py-spy" in section.text and not shutil.which("py-spy", path=Path(sys.executable).parent):
        pytest.skip("NOT TESTED: py-spy does not know this Python yet")
    prefix = request.getfixturevalue("internet") if "192.0.2.10:7000" in section.text else ()
    printed = type_in(section, folder, prefix)
    commands = list(section.commands)
    assert len(printed) == len(commands), printed
    for (command, pattern), text in zip(commands, printed, strict=True):
        assert matches(pattern or "", text), f"{command}\nprints\n{text}\nand not\n{pattern}"


def test_a_sample_that_is_wrong_is_found():
    """The control."""
    assert matches("a … c\n", "a b\nb c\n") and not matches("a … c", "a b d") and not matches("a", "a b")


def test_the_cookbook_has_ten_tasks():
    assert sum(section.page.stem == "cookbook" for section in SECTIONS) == 10
