"""The mount namespace: what a job sees of the host's files, and that it changes none."""

import os
import shutil
import subprocess

import pytest
from attacking import ALL_BUT_PID, ATTACKS, Running, attack, attacks, verdict
from driving import JOBS, skipping

MAY_MOUNT = ["seccomp", "drop_capabilities"]


def open_to_all(path):
    for folder in (path, *path.parents):
        if folder.is_relative_to("/tmp") and str(folder) != "/tmp":
            folder.chmod(0o755)


def test_only_harmless_places_are_writable(pyspawner):
    harmless = ["/dev/full", "/dev/null", "/dev/random", "/dev/shm", "/dev/urandom", "/dev/zero", "/tmp"]
    assert attack(pyspawner, "root.writable_places") == harmless


@pytest.mark.parametrize("around", ["", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../../.."])
def test_files_cannot_be_written(pyspawner, open_folder, around):
    target = open_folder / "file"
    assert attack(pyspawner, "root.write_file", f"{around}{target}") == "EROFS"
    assert not target.exists()
    # In the machine's /proc a job's number is another; this process stands for one of the host.
    off = ALL_BUT_PID if "/1/" in around else ["root"]
    around = around.replace("/1/", f"/{os.getpid()}/")
    assert attack(pyspawner, "root.write_file", f"{around}{target}", off=off) == "ok"
    assert target.read_text() == "owned"


def test_files_cannot_be_written_through_an_open_folder(pyspawner, open_folder):
    target = open_folder / "file"
    assert attack(pyspawner, "root.write_by_open_folder", str(target)) == "EROFS"
    assert attack(pyspawner, "root.write_by_open_folder", str(target), off=["root"]) == "ok"


def test_files_cannot_be_changed_in_any_other_way(pyspawner, open_folder):
    target = open_folder / "file"
    target.write_text("unchanged")
    target.chmod(0o666)
    done = attack(pyspawner, "root.change_file", str(target))
    assert set(done.values()) == {"EROFS"}, done
    assert target.read_text() == "unchanged" and os.listdir(open_folder) == ["file"]
    control = attack(pyspawner, "root.change_file", str(target), off=["root", "setuid", "user_namespace"])
    assert {"ok"} <= {control[name] for name in ("chmod", "truncate", "utime", "link", "unlink", "mkfifo")}


SWITCHES = [
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
    "/proc/sys/kernel/modprobe", "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger",
    "/proc/self/oom_score_adj", "/proc/self/uid_map", "/proc/self/gid_map", "/proc/self/setgroups",
    "/proc/self/mem", "/proc/self/clear_refs", "/proc/self/loginuid", "/proc/self/coredump_filter",
    "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/release_agent",
    "/sys/fs/cgroup/cgroup.procs", "/dev/kmsg", "/dev/mem",
]  # fmt: skip


def test_switches_of_the_kernel_cannot_be_opened(pyspawner):
    there = [[path] for path in SWITCHES if os.path.exists(path)]
    found = attacks(pyspawner, "root.open_to_write", there)
    assert set(found.values()) <= {"EROFS", "ENOENT", "EACCES"}, found
    control = attacks(pyspawner, "root.open_to_write", there, off=ALL_BUT_PID)
    assert [path for path, result in control.items() if result != "ok"] == [], control


def test_own_program_cannot_be_overwritten(pyspawner):
    assert attack(pyspawner, "root.overwrite_own_program") in ("EROFS", "EACCES")
    # Without the layers it would be refused only while it runs.
    assert attack(pyspawner, "root.overwrite_own_program", off=ALL_BUT_PID) == "ETXTBSY"


def test_tmp_is_private(pyspawner, tmp_path):
    open_to_all(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    assert attack(pyspawner, "root.read_file", str(secret)) == "ENOENT"
    assert attack(pyspawner, "root.read_file", str(secret), off=["root"]) == "of the host"


def test_tmp_has_a_size(pyspawner, open_folder):
    (open_folder / "fill.py").write_text(
        "def main(n):\n"
        "    with open('/tmp/x', 'wb') as f:\n"
        "        try: f.write(b'x' * n); f.flush()\n"
        "        except OSError as e: return e.errno\n"
    )

    def fill(size):
        config = f'[profile.default]\ntmp = "{size}"\n'
        return pyspawner.value("fill.main", 2 << 20, path=open_folder, config=config)

    assert fill("1M") == 28  # ENOSPC
    assert fill("4M") is None


def test_working_directory_does_not_lead_around_the_private_tmp(pyspawner, tmp_path):
    open_to_all(tmp_path)
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o777)

    def look(*off):
        config = skipping(*off)
        command = pyspawner.command("map", "root.around_working_directory", config=config, path=ATTACKS)
        return subprocess.run(command, input=b"[]\n", capture_output=True, cwd=secret, check=True).stdout

    assert b"secret" not in look()
    assert b"secret" in look("root")


def test_kernel_file_systems_and_services_are_hidden(pyspawner):
    hidden = attack(pyspawner, "root.hidden_places")
    devices = ["fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert hidden == {"/sys": [], "/run": [], "/dev": devices}
    assert "kernel" in attack(pyspawner, "root.hidden_places", off=["root"])["/sys"]


def test_no_mount_is_writable_but_the_private_ones_and_none_honours_set_uid(pyspawner):
    mounts = attack(pyspawner, "root.mounts")
    writable = [place for place, _, flags in mounts if "ro" not in flags]
    assert sorted(writable) == ["/dev/shm", "/tmp"]
    assert all("nosuid" in flags for _, _, flags in mounts)
    devices = {place for place, _, flags in mounts if "nodev" not in flags}
    assert devices == {f"/dev/{name}" for name in ("full", "null", "random", "urandom", "zero")}
    assert {kind for _, kind, _ in mounts} & {"sysfs", "cgroup2", "debugfs", "devpts", "mqueue"} == set()


MOUNTING = {
    "mount_tmpfs": "mount", "bind": "mount", "remount": "mount", "unmount": "umount2", "new_mount": "fsopen",
    "open_tree": "open_tree", "mount_setattr": "mount_setattr", "pivot_root": "pivot_root", "chroot": "chroot",
}  # fmt: skip


def test_nothing_can_be_mounted(pyspawner):
    """By seccomp, and without it for want of a capability."""
    names = [[name] for name in MOUNTING]
    assert attacks(pyspawner, "root.main", names) == {name: f"blocked {call}" for name, call in MOUNTING.items()}
    assert set(attacks(pyspawner, "root.main", names, off=["seccomp"]).values()) == {"EPERM"}
    control = attacks(pyspawner, "root.main", names, off=MAY_MOUNT)
    assert {name for name, result in control.items() if result == "ok"} >= {
        "mount_tmpfs", "bind", "new_mount", "open_tree", "chroot",
    }  # fmt: skip
    # These the kernel has locked: they come from a greater user namespace.
    assert control["remount"] == control["mount_setattr"] == "EPERM"


def test_read_only_is_locked_even_for_one_who_may_mount(pyspawner, open_folder):
    target = str(open_folder / "file")
    assert attack(pyspawner, "root.remount_and_write", target, off=MAY_MOUNT) == "EROFS"
    # The control: locked because of the user namespace.
    off = [*MAY_MOUNT, "user_namespace", "setuid"]
    assert attack(pyspawner, "root.remount_and_write", target, off=off) == "ok"


def test_chroot_leads_nowhere(pyspawner, tmp_path):
    """Even where it may be called: the host's root is not in the namespace."""
    open_to_all(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    assert attack(pyspawner, "root.escape_by_chroot", str(secret)) == "blocked chroot"
    assert attack(pyspawner, "root.escape_by_chroot", str(secret), off=MAY_MOUNT) == "ENOENT"
    try:
        off = [*MAY_MOUNT, "root"]
        assert attack(pyspawner, "root.escape_by_chroot", str(secret), off=off) == "of the host"
    finally:
        shutil.rmtree("/tmp/jail")


def test_files_cannot_be_opened_by_handle(pyspawner):
    assert attack(pyspawner, "root.open_by_handle", "/etc/passwd") == "ENOSYS"
    assert attack(pyspawner, "root.open_by_handle", "/etc/passwd", off=["seccomp"]) == "EPERM"
    assert attack(pyspawner, "root.open_by_handle", "/etc/passwd", off=ALL_BUT_PID) == "ok"


def test_devices_cannot_be_made(pyspawner):
    assert attack(pyspawner, "root.make_device") == "EPERM"
    off = ["user_namespace", "setuid", "drop_capabilities"]
    assert attack(pyspawner, "root.make_device", off=off) == "ok"


def test_a_set_uid_file_of_its_own_gives_a_job_nothing(pyspawner):
    assert attack(pyspawner, "root.set_id_file") == "refused"
    assert "euid" not in attack(pyspawner, "root.set_id_file", off=["seccomp"])


def test_a_folder_of_the_host_cannot_be_watched(pyspawner, open_folder):
    """As with inotify, which is refused: what others do with the host's files is not a job's."""

    def watch(*off):
        with Running(pyspawner, "root.watch_folder", off=off) as running:
            running.send(str(open_folder))
            running.child()
            (open_folder / "".join(["new", *off])).write_text("")
            return verdict(running.line())

    assert watch() == "nothing"
    assert watch("seccomp") == "told"


def test_chroot_shows_exactly_that_folder(pyspawner, open_folder):
    (open_folder / "only").write_text("")
    (open_folder / "look.py").write_text(
        "import os\ndef main(): return [os.getcwd(), sorted(os.listdir('/')), os.access('/proc/self', 0)]"
    )
    open_folder.chmod(0o755)
    config = f'[profile.default]\nroot = {{ chroot = "{open_folder}" }}\n'
    result = pyspawner.value("look.main", path=open_folder, config=config)
    assert result == ["/", sorted(os.listdir(open_folder)), False]


def test_links_and_fifos_in_a_writable_chroot_mislead_nobody(pyspawner, open_folder):
    """What one job leaves there a later one sees (docs/threat-model.md), but nothing follows it."""
    for name in ("proc", "tmp", "dev"):
        (open_folder / name).mkdir(mode=0o777)
        (open_folder / name).chmod(0o777)
    outside = open_folder.parent / f"outside-{os.getpid()}"
    outside.write_text("of the host")
    config = f'[profile.default]\nroot = {{ chroot = "{open_folder}" }}\n'
    jobs = [["spoil_chroot"], ["look_around_chroot", str(outside)], ["look_around_chroot", "/etc/passwd"]]
    try:
        done = pyspawner.map("root.main", jobs, "-j", "1", "--ordered", config=config, path=ATTACKS)
        spoiled, first, second = (line["result"] for line in done.lines)
        assert "ok" in spoiled, done.lines
        for seen, cwd, plain, climbing, proc in (first, second):
            assert set(seen) >= {"proc", "tmp", "dev"} and cwd == "/"
            assert plain != "ok" and climbing != "ok" and proc != "ok"
    finally:
        outside.unlink()


def test_unreachable_files_are_named(pyspawner, open_folder):
    closed = open_folder / "closed"
    shutil.copytree(JOBS, closed)
    closed.chmod(0o700)
    done = pyspawner.map("basic.nothing", [[]], path=closed)
    assert done.status == 125
    assert f"children cannot read {closed}" in done.stderr and "chmod" in done.stderr
