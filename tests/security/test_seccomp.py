"""The system call filter."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from attacking import ATTACKS, attack, attacks

INTEL = os.uname().machine == "x86_64"
POLICY = tomllib.loads((Path(__file__).parents[2] / "src/sandbox/seccomp_policy.toml").read_text())

# Arguments with which none does anything where it is permitted.
DEADLY = [
    *(["acct", 1], ["adjtimex"], ["bpf"], ["capset"], ["chroot", 1], ["clock_adjtime"]),
    *(["clock_settime"], ["delete_module", 1], ["finit_module", -1], ["fsconfig", -1], ["fsmount", -1]),
    *(["fsopen", 1], ["fspick", -1], ["init_module", 1], ["kexec_file_load", -1, -1], ["mount", 1, 1, 1, 0, 1]),
    *(["mount_setattr", -1, 1], ["move_mount", -1], ["open_tree", -1, 1], ["pivot_root", 1, 1], ["ptrace", 99]),
    *(["quotactl", -1], ["quotactl_fd", -1], ["reboot", 1], ["setdomainname", 1, -1]),
    *(["setns", -1], ["settimeofday", 1], ["swapoff", 1]),
    *(["swapon", 1], ["umount2", 1], ["unshare", 0x40]),
]
INTEL_ALONE = [["iopl", 3], ["ioperm", -1, 1, 1], ["modify_ldt", -1]]

REFUSED = [
    *(["unknown"], ["clone3", 0, 0], ["seccomp", 99], ["inotify_init1"], ["fanotify_init", -1]),
    *(["name_to_handle_at", -1], ["syslog", -1], ["memfd_secret", -1], ["process_madvise", -1]),
    *(["migrate_pages", 0, 0, 0, 0], ["move_pages", 0, 0, 0, 0, 0, 99]),
    # Libraries try these as they start, and do without.
    *(["io_uring_setup"], ["io_uring_enter", -1], ["io_uring_register", -1], ["add_key"], ["keyctl", -1]),
    *(["request_key", 1], ["kcmp"], ["pidfd_getfd", -1], ["perf_event_open", 1], ["userfaultfd", -1]),
    *(["process_vm_readv"], ["process_vm_writev"], ["setfsgid", 1000], ["setfsuid", 1000]),
]


def test_calls_that_no_honest_program_makes_end_the_job(pyspawner):
    deadly: list = DEADLY + (INTEL_ALONE if INTEL else [])
    assert attacks(pyspawner, "seccomp.calls", deadly) == {name: f"blocked {name}" for name, *_ in deadly}
    control = attacks(pyspawner, "seccomp.calls", deadly, off=["seccomp"])
    assert not any(result.startswith("blocked") for result in control.values())


def test_calls_that_are_not_listed_do_not_exist(pyspawner):
    assert set(attacks(pyspawner, "seccomp.calls", REFUSED).values()) == {"ENOSYS"}
    control = attacks(pyspawner, "seccomp.calls", REFUSED, off=["seccomp"])
    exist = {name for name, result in control.items() if result != "ENOSYS"}
    assert exist >= {"clone3", "seccomp", "name_to_handle_at", "syslog", "process_madvise"}, control


def test_every_call_by_number_is_answered_as_the_policy_says(pyspawner):
    """Those of the C headers and all numbers that no kernel has yet."""
    header = subprocess.run(
        ["cc", "-E", "-dM", "-x", "c", "-"], input=b"#include <asm/unistd.h>", capture_output=True, check=True
    )
    names = {int(value): name for name, value in re.findall(r"#define __NR_(\w+) (\d+)$", header.stdout.decode(), re.M)}
    answered = POLICY["allow"] + POLICY["refuse"] + POLICY["ignore"]
    allowed = {call for entry in answered for call in entry["calls"]}
    deadly = {call for entry in POLICY["kill"] for call in entry["calls"]} | {"kexec_load"}
    numbers = [number for number in range(1100) if names.get(number) not in allowed]
    found = {int(number): result for number, result in attack(pyspawner, "seccomp.numbers", numbers).items()}
    newer = {452: "fchmodat2"}  # the headers may be older than the policy
    # The kernel runs these two past every filter; outside of a probe they only fail.
    exempt = {335, 336} if INTEL else set()
    wrong = {
        names.get(number, number): result
        for number, result in found.items()
        if newer.get(number) not in allowed
        and number not in exempt
        and result != (-signal.SIGSYS if names.get(number) in deadly else 38)
    }
    assert not wrong
    assert len(found) > 600


@pytest.mark.parametrize("flag", [0x80000 >> 2, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30])
def test_clone_makes_no_namespace(pyspawner, flag):
    off = ["seccomp", "drop_capabilities"]
    assert attack(pyspawner, "seccomp.clone_with", flag) == "ENOSYS"
    assert attack(pyspawner, "seccomp.clone_with", flag, off=off) == "ok"


@pytest.mark.parametrize(
    "name",
    ["block_then_call", "call_with_another_result_channel", "call_in_thread"],
)
def test_a_blocked_call_ends_the_job_whatever_it_prepared(pyspawner, name):
    assert attack(pyspawner, f"seccomp.{name}").startswith("blocked")
    assert not str(attack(pyspawner, f"seccomp.{name}", off=["seccomp"])).startswith("blocked")


def test_a_blocked_call_of_a_subprocess_ends_that_alone(pyspawner):
    assert attack(pyspawner, "seccomp.call_in_child") == [True, signal.SIGSYS]
    assert attack(pyspawner, "seccomp.call_in_child", off=["seccomp"]) == [False, 0]


if sys.version_info >= (3, 14):  # PEP 768

    def test_the_debuggers_interface_cannot_be_used(pyspawner):
        """It works by reading and writing a process's memory, and opens nothing by itself.

        Hosts and clones of it cannot be debugged so: an embedded interpreter has no running `main`.
        """
        assert attack(pyspawner, "seccomp.debug") == "blocked process_vm_readv"
        assert attack(pyspawner, "seccomp.debug", off=["seccomp"]) is True


def test_the_handler_cannot_be_replaced(pyspawner):
    assert attack(pyspawner, "seccomp.install_handler_then_call", "unshare") == "blocked unshare"
    assert attack(pyspawner, "seccomp.install_handler_then_call", "unshare", off=["seccomp"])[0] is True


def test_a_call_that_ended_one_of_the_jobs_processes_is_named(pyspawner):
    """By that process, so with its own word: the outcome is the job's."""
    line = pyspawner.job("seccomp.call_in_child", path=ATTACKS)
    assert (line["outcome"], line["result"]) == ("ok", [True, signal.SIGSYS])
    assert line["detail"] == "one of its processes was ended by the blocked system call unshare"


@pytest.mark.parametrize("number", [31, 31 + (1 << 32), 31 - (1 << 63), 63 - 32 + (1 << 33)])
def test_nor_by_a_number_that_the_kernel_reads_as_sigsys(pyspawner, number):
    """It is answered with success, which programs want that reset all actions, and nothing is done."""
    assert attack(pyspawner, "seccomp.set_action", number) == ["ok", "a handler"]
    assert attack(pyspawner, "seccomp.set_action", number, off=["seccomp"]) == ["ok", "ignored"]


def test_no_filter_of_its_own(pyspawner):
    """One could not loosen the first, but would answer for it (SECCOMP_RET_TRACE, USER_NOTIF)."""
    assert attack(pyspawner, "seccomp.own_filter") == ["ENOSYS", "ENOSYS"]
    assert attack(pyspawner, "seccomp.own_filter", off=["seccomp"]) == ["ok", "ok"]


@pytest.mark.parametrize("persona", [0x0400000, 0x0040000, 0x0008])
def test_personality_cannot_be_changed(pyspawner, persona):
    """READ_IMPLIES_EXEC, ADDR_NO_RANDOMIZE, PER_LINUX32."""
    assert attack(pyspawner, "seccomp.calls", "personality", persona) == "ENOSYS"
    assert attack(pyspawner, "seccomp.calls", "personality", persona, off=["seccomp"]) == "ok"


@pytest.mark.parametrize(
    ("option", "args", "control"),
    [
        ("PR_SET_PTRACER", [0x59616D61, -1], ("ok", "EINVAL")),
        ("PR_SET_MM", [35, 1, 0, 0, 0], ("EPERM", "EINVAL")),
        ("PR_SET_SECCOMP", [22, 2, 0], ("EFAULT",)),
        ("PR_SET_KEEPCAPS", [8, 1], ("EPERM",)),
        ("PR_SET_SECUREBITS", [28, 0], ("EPERM",)),
        ("PR_CAPBSET_DROP", [24, 1], ("EPERM",)),
        ("PR_SET_CHILD_SUBREAPER", [36, 1], ("ok",)),
        ("PR_SET_TSC", [26, 1], ("ok", "EINVAL")),
    ],
)
def test_other_options_of_prctl_are_refused(pyspawner, option, args, control):
    assert attack(pyspawner, "seccomp.calls", "prctl", *args) == "ENOSYS", option
    assert attack(pyspawner, "seccomp.calls", "prctl", *args, off=["seccomp"]) in control, option


THIRTY_TWO_BIT = r"""
#include <stdio.h>
int main(void) {
    long result = 20; /* getpid by the 32-bit table */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
    printf("%ld\n", result);
    return 0;
}
"""
X32 = r"""
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(void) { printf("%ld\n", syscall(0x40000000 + SYS_getpid)); return 0; }
"""


@pytest.mark.skipif(not INTEL, reason="x86-64 has other tables beside its own")
@pytest.mark.parametrize("source", [THIRTY_TWO_BIT, X32], ids=["32-bit", "x32"])
def test_other_call_tables_end_the_process(pyspawner, open_folder, source):
    program = open_folder / "program"
    subprocess.run(["cc", "-x", "c", "-", "-o", program], input=source.encode(), check=True)
    open_folder.chmod(0o755)
    assert attack(pyspawner, "seccomp.run_program", str(program)) == [-signal.SIGSYS, ""]
    status, output = attack(pyspawner, "seccomp.run_program", str(program), off=["seccomp"])
    # A kernel without that table answers -1, or faults; with it, a process id.
    assert output or status == -signal.SIGSEGV


def test_no_file_that_runs_as_its_owner_can_be_made(pyspawner, open_folder):
    """In a writable bind it would lie in wait for the host's users."""

    def tried(*off):
        for left in open_folder.glob("bits"):
            shutil.rmtree(left)
        bind = f'binds = [{{ source = "{open_folder}", writable = true }}]\n'
        return attack(pyspawner, "seccomp.set_id_bits", str(open_folder), off=off, config=bind)

    told, made = tried()
    assert made == []
    others = {way: word for way, word in told.items() if word != "EPERM"}
    # mkdir(2) ignores these bits.
    assert {way: word for way, word in others.items() if word != "ENOSYS"} == {
        way: "ok" for way in told if way.startswith("mkdir")
    }, told
    told, made = tried("seccomp")
    # This kernel may lack the newest.
    ways = {way.split()[0] for way, word in told.items() if word != "ENOSYS"} - {"mkdir"}
    assert {name.split("-")[0] for name in made} == ways, made


def test_modes_without_those_bits_and_modes_that_are_not_read_are_nobodys_matter(pyspawner):
    assert attack(pyspawner, "seccomp.modes_that_are_not_read", "/etc/hostname") == [True, "ok"]
