"""How the program was linked: what makes a bug of it, or of a library, harder to use."""

import os
import subprocess
from pathlib import Path

import pytest
from driving import PYSPAWNER
from elftools.elf.elffile import ELFFile

WRITABLE, EXECUTABLE = 2, 1
PIE, NOW, BIND_NOW = 0x08000000, 0x1, 0x8


def weaknesses(path):
    """What is missing, of what every distribution's hardened build has (`checksec`, Debian's hardening-check)."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        segments = list(elf.iter_segments())
        kinds = {segment["p_type"]: segment for segment in segments}
        dynamic = {tag.entry.d_tag: tag for tag in kinds["PT_DYNAMIC"].iter_tags()}  # type: ignore[attr-defined]
        value = {name: tag.entry.d_val for name, tag in dynamic.items()}
        found = {
            "position-independent": elf["e_type"] == "ET_DYN" and value.get("DT_FLAGS_1", 0) & PIE,
            "relocations read-only": "PT_GNU_RELRO" in kinds,
            "all bound at start": value.get("DT_FLAGS", 0) & BIND_NOW or value.get("DT_FLAGS_1", 0) & NOW,
            "no code on the stack": "PT_GNU_STACK" in kinds and not kinds["PT_GNU_STACK"]["p_flags"] & EXECUTABLE,
            "no segment writable and executable": not any(
                segment["p_flags"] & WRITABLE and segment["p_flags"] & EXECUTABLE for segment in segments
            ),
            "no relocation in code": "DT_TEXTREL" not in value,
            "libraries from closed folders": all(
                is_closed(folder)
                for name in ("DT_RPATH", "DT_RUNPATH")
                for folder in (getattr(dynamic.get(name), name[3:].lower(), "") or "").split(":")
                if folder
            ),
        }
    return {name for name, is_there in found.items() if not is_there}


def is_closed(folder):
    """Whether nobody but root and its owner can put a library there."""
    path = Path(folder)
    above = [path, *path.parents]
    return path.is_absolute() and not any(
        p.exists() and p.stat().st_mode & 0o022 and not p.stat().st_mode & 0o1000 for p in above
    )


def test_the_program_is_hardened():
    assert weaknesses(PYSPAWNER) == set()


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (["-no-pie"], "position-independent"),
        (["-Wl,-z,norelro"], "relocations read-only"),
        (["-Wl,-z,lazy"], "all bound at start"),
        (["-z", "execstack"], "no code on the stack"),
        ([], "no segment writable and executable"),
        (["-Wl,-rpath,lib"], "libraries from closed folders"),
        (["-Wl,-rpath,/usr/lib:OPEN"], "libraries from closed folders"),
    ],
)
def test_what_is_missing_is_noticed(tmp_path, flags, missing):
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    source, program = tmp_path / "main.c", tmp_path / "main"
    source.write_text("int main(void) { return 0; }")
    flags = [flag.replace("OPEN", str(tmp_path / "open")) for flag in flags]
    subprocess.run(["cc", "-o", program, source, *flags], check=True)
    if not flags:
        assert weaknesses(program) <= {"all bound at start"}
        make_code_writable(program)
    assert missing in weaknesses(program)


def make_code_writable(program):
    """No flag of the linker's does that to a dynamic program."""
    with open(program, "r+b") as file:
        elf = ELFFile(file)
        number, segment = next((n, s) for n, s in enumerate(elf.iter_segments()) if s["p_flags"] & EXECUTABLE)
        file.seek(elf["e_phoff"] + number * elf["e_phentsize"] + 4)  # p_flags (elf(5))
        file.write((segment["p_flags"] | WRITABLE).to_bytes(4, "little"))
