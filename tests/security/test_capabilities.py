"""No capability, and no way back to one."""

import os
import shutil
import struct

from attacking import attack


def test_all_sets_are_empty(pyspawner):
    assert set(attack(pyspawner, "identity.capabilities").values()) == {0}
    control = attack(pyspawner, "identity.capabilities", off=["drop_capabilities"])
    assert control["CapEff"] and control["CapBnd"]


def test_mounting_needs_one(pyspawner):
    assert attack(pyspawner, "root.mount_tmpfs", off=["seccomp"]) == "EPERM"
    assert attack(pyspawner, "root.mount_tmpfs", off=["seccomp", "drop_capabilities"]) == "ok"


def test_none_can_be_raised_and_securebits_stay(pyspawner):
    for name in ("raise_ambient", "clear_securebits"):
        assert attack(pyspawner, f"identity.{name}") == "ENOSYS"
        assert attack(pyspawner, f"identity.{name}", off=["seccomp"]) == "EPERM"
    control = attack(pyspawner, "identity.clear_securebits", off=["seccomp", "drop_capabilities"])
    assert control == "ok"


def test_capabilities_of_a_file_give_none(pyspawner, open_folder):
    """The bounding set is empty, whatever else is off."""
    open_folder.chmod(0o755)
    program = open_folder / "grep"
    shutil.copy("/usr/bin/grep", program)
    # vfs_cap_data of revision 2, effective: CAP_NET_RAW (capabilities(7))
    os.setxattr(program, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))

    def effective(*off):
        arguments = [str(program), "CapEff", "/proc/self/status"]
        output = attack(pyspawner, "identity.run_program", *arguments, off=off)
        return output if output == "EPERM" else int(output.split()[1], 16)

    others = ["user_namespace", "root", "seccomp", "no_new_privs"]
    assert effective() == 0
    assert effective(*others) == "EPERM"
    assert effective(*others, "drop_capabilities") == 1 << 13
