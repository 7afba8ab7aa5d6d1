"""What the kernel counts for the host's user, or does outside of every limit, if a job asks for it."""

import os
import signal

import pytest
from attacking import ATTACKS, attack, verdict

FILTERED = ["filter", "lock", "ebpf", "reuseport cbpf", "reuseport ebpf"]


def test_queued_signals_are_few(pyspawner):
    assert attack(pyspawner, "quotas.queue_signals", 2000) == [256, "EAGAIN"]
    # The control: twice as many jobs at once have as many each, since each counts for itself.
    done = pyspawner.map("quotas.queue_signals", [[200]] * 8, "-j", "4", path=ATTACKS)
    assert [line["result"] for line in done.lines] == [[200, None]] * 8


def test_limits_of_what_is_counted_for_the_hosts_user(pyspawner):
    few = {"CORE": 1, "SIGPENDING": 256, "MSGQUEUE": 0, "MEMLOCK": 65536, "RTPRIO": 0, "NICE": 0}
    assert attack(pyspawner, "quotas.limits") == {name: [limit, limit] for name, limit in few.items()}
    raised = attack(pyspawner, "quotas.raise_limits")
    # That of core dumps is answered with success, and stays: who sets it wants none.
    assert raised.pop("CORE") == "ok" and set(raised.values()) == {"ValueError"}
    assert attack(pyspawner, "quotas.lower_core_limit") == [[1, 1], "(1, 1)"]
    assert attack(pyspawner, "quotas.lower_core_limit", off=["seccomp"]) == [[0, 0], "(0, 0)"]


def test_core_dumps_hold_no_memory(pyspawner):
    """For those that a socket takes (`core_pattern`), the kernel looks at no limit."""
    assert attack(pyspawner, "quotas.core_filters") == [0, 0]
    with open("/proc/self/coredump_filter") as file:
        assert int(file.read(), 16) != 0, "the control: others' do"


def test_memory_is_locked_in_small_amounts(pyspawner):
    assert attack(pyspawner, "quotas.lock_memory", 32 << 10) == "ok"
    assert attack(pyspawner, "quotas.lock_memory", 1 << 20) == "ENOMEM"
    assert attack(pyspawner, "quotas.lock_shared_memory") == "EPERM"
    assert attack(pyspawner, "quotas.lock_shared_memory", off=["seccomp"]) == "ok"


def test_no_filter_can_be_attached_to_a_socket(pyspawner):
    found = attack(pyspawner, "quotas.attach_filters")
    assert {found[name] for name in FILTERED} == {"EPERM"}
    assert {found[f"{name}, wide"] for name in FILTERED} == {"EPERM"}
    control = attack(pyspawner, "quotas.attach_filters", off=["seccomp"])
    assert control["filter"] == control["filter, wide"] == control["reuseport cbpf"] == "ok"


def test_ordinary_options_of_sockets_work(pyspawner):
    found = attack(pyspawner, "quotas.ordinary_options")
    assert found == attack(pyspawner, "quotas.ordinary_options", off=["seccomp"])
    ordinary = {name: word for name, word in found.items() if not name.startswith("IPv6 ")}
    assert list(ordinary.values()).count("ok") >= len(ordinary) - 2, ordinary


def test_no_job_holds_or_takes_what_the_whole_machine_waits_for(pyspawner):
    """A thread that is less urgent than its job's others sleeps with a lock of the kernel's for as long as these like."""
    assert set(attack(pyspawner, "quotas.hold_locks").values()) <= {"EPERM", "ENOSYS"}
    control = attack(pyspawner, "quotas.hold_locks", off=["seccomp"])
    refused = {name for name, word in control.items() if word in ("EPERM", "ENOSYS")}
    assert not refused & {"0 encap", "0 gro", "idle", "batch"}, refused
    # It is advice, which is not taken.
    assert attack(pyspawner, "quotas.be_nice") == 0
    assert attack(pyspawner, "quotas.be_nice", off=["seccomp"]) == 19


def test_nothing_is_kept_in_sockets_and_files_that_counts_nowhere(pyspawner):
    assert set(attack(pyspawner, "quotas.keep_in_sockets").values()) == {"EPERM"}
    control = attack(pyspawner, "quotas.keep_in_sockets", off=["seccomp"])
    assert "ENOSYS" not in control.values() and set(control.values()) != {"EPERM"}, control
    assert attack(pyspawner, "quotas.large_attribute") == ["EPERM", "ok"]
    assert attack(pyspawner, "quotas.large_attribute", off=["seccomp"])[0] in ("ok", "EINVAL")
    assert attack(pyspawner, "quotas.place_memory") == "EPERM"
    assert attack(pyspawner, "quotas.place_memory", off=["seccomp"]) == "ok"


def test_no_flow_label_is_taken(pyspawner):
    assert attack(pyspawner, "quotas.flow_labels") == ["EPERM"] * 2
    assert attack(pyspawner, "quotas.flow_labels", off=["seccomp"])[0] == "ok"


@pytest.mark.parametrize("where", ["its own files", "a file of the host's"])
def test_locks_on_files_are_few(pyspawner, where):
    """No limit counts them, and they slow whoever locks or closes the same file."""
    path = [] if where == "its own files" else ["/etc/passwd"]
    jobs = [[3500, 60, *path], [400, 6, *path]]
    done = pyspawner.map("quotas.lock_ranges", jobs, "-j", "2", "--ordered", path=ATTACKS)
    too_many, few = done.lines
    assert (too_many["outcome"], too_many["signal"]) == ("signaled", signal.SIGKILL), too_many
    assert "locks on files" in done.stderr
    # The control: one with fewer is not ended beside it.
    assert few["result"] == "not ended", few


def test_locks_count_for_who_holds_them(pyspawner):
    """The kernel lists them under who took them."""
    jobs = [[900, 60], [100, 6]]
    done = pyspawner.map("quotas.lock_by_others", jobs, "-j", "2", "--ordered", path=ATTACKS)
    too_many, few = done.lines
    assert (too_many["outcome"], too_many["signal"]) == ("signaled", signal.SIGKILL), too_many
    assert few["result"] == "not ended", few


def test_each_process_has_one_table_of_descriptors(pyspawner):
    """Locks of a table that several processes have stay when the process ends that took them."""
    assert attack(pyspawner, "quotas.share_descriptors") == ["ENOSYS"] * 2
    assert attack(pyspawner, "quotas.share_descriptors", off=["seccomp"]) == ["ok"]


def test_no_protocol_makes_the_kernel_look_for_a_module(pyspawner):
    assert set(attack(pyspawner, "quotas.odd_sockets").values()) == {"ENOSYS"}
    assert "ENOSYS" not in attack(pyspawner, "quotas.odd_sockets", off=["seccomp"]).values()
    assert set(attack(pyspawner, "quotas.ordinary_sockets").values()) == {"ok"}


def test_huge_pages_are_the_machines(pyspawner):
    assert set(attack(pyspawner, "quotas.huge_pages").values()) == {"EPERM"}
    # There may be none; but then it is for want of them.
    control = attack(pyspawner, "quotas.huge_pages", off=["seccomp"])
    assert control["memfd"] == "ok" and control["mmap"] in ("ok", "ENOMEM"), control


def test_commands_on_descriptors(pyspawner):
    refused = {"F_OFD_SETLK", "F_OFD_SETLKW", "F_SETPIPE_SZ"}
    found = attack(pyspawner, "quotas.descriptor_commands")
    assert {name for name, word in found.items() if word == "EPERM"} == refused
    assert {word for name, word in found.items() if name not in refused} == {"ok"}
    assert set(attack(pyspawner, "quotas.descriptor_commands", off=["seccomp"]).values()) == {"ok"}


def test_the_page_cache_tells_nothing_and_stays(pyspawner, open_folder):
    file = open_folder / "file"
    file.write_bytes(b"x" * 4096)
    os.sync()
    assert attack(pyspawner, "quotas.page_cache", str(file)) == ["EPERM", "EPERM"]
    before, after = attack(pyspawner, "quotas.page_cache", str(file), off=["seccomp"])
    assert before == 1 and after in ("EAGAIN", 1)


URGENT = {
    "real time": ["chrt", "-f", "10"],
    "in turns": ["chrt", "-r", "10"],
    "nice": ["nice", "-n", "-10"],
    "io": ["ionice", "-c", "1", "-n", "2"],
}


@pytest.mark.root
@pytest.mark.parametrize("how", URGENT)
@pytest.mark.parametrize("spares", [0, 1])
def test_jobs_are_no_more_urgent_than_others_whatever_the_host_is(pyspawner, how, spares):
    options = {"path": ATTACKS, "prefix": URGENT[how], "spares": spares}
    assert verdict(pyspawner.map("quotas.scheduling", [[]], **options).lines[0]) in ([0, 0, 0], [0, 0, 2])
    words = verdict(pyspawner.map("quotas.become_urgent", [[]], **options).lines[0])
    assert words["fifo"] == "EPERM" and words["nice"] in ("EPERM", "EACCES"), words


@pytest.mark.root
def test_an_urgent_host_keeps_time_limits(pyspawner):
    """As many jobs as there are processors would keep the host from running, were they as urgent."""
    jobs = [{"args": [], "timeout": 1}] * os.cpu_count()
    done = pyspawner.map("quotas.spin", jobs, "-j", str(os.cpu_count()), path=ATTACKS, prefix=URGENT["real time"])
    assert [line["outcome"] for line in done.lines] == ["timed_out"] * os.cpu_count()
    assert max(line["wall_ms"] for line in done.lines) < 5000


def test_a_modest_host_has_modest_jobs(pyspawner):
    """What makes the host less urgent is its operator's wish: the control of what is reset."""
    done = pyspawner.map("quotas.scheduling", [[]], path=ATTACKS, prefix=["nice", "-n", "5"])
    assert verdict(done.lines[0])[1] == 5
