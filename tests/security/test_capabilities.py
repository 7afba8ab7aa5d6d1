"""No capability, and no way back to one."""

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
