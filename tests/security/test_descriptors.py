"""The descriptors layer: a job has 0, 1, 2, what stands in for the host's, and one while a result is wanted. It cannot be skipped."""

from attacking import ATTACKS

LEAVING = """
import os, socket
server = socket.create_server(("127.0.0.1", 0))
file = open("/etc/passwd")
read, write = os.pipe()
inherited = os.dup2(file.fileno(), 100, inheritable=True)
high = os.dup2(server.fileno(), 900, inheritable=True)
os.set_inheritable(server.fileno(), True)
OPEN = [n for n in range(1024) if os.path.exists(f"/proc/self/fd/{n}")]
"""


def test_what_preloaded_modules_leave_open_reaches_neither_job_nor_its_programs(pyspawner, open_folder):
    """Their numbers stay taken, by stand-ins (see test_stand_ins); a program gets none of those."""
    (open_folder / "leaving.py").write_text(LEAVING)
    flags = ["--preload", "leaving", "--path", open_folder]
    seen = pyspawner.value("descriptors.mine_and_a_programs", path=ATTACKS, flags=flags)
    # But for the result's, the job has no number that the host's modules do not hold.
    [result] = set(seen["job"]) - set(seen["host"]) - {0, 1, 2}
    assert result > 50 and {100, 900} <= set(seen["job"])
    assert set(seen["program"]) <= {0, 1, 2, 3}  # the last is the program's own listing
    # The control: the host does have them, and each would have survived the clone.
    assert {100, 900} <= set(seen["host"]) and len(seen["host"]) > 8


def test_without_a_result_there_are_three(pyspawner, open_folder):
    (open_folder / "look.py").write_text("import os\ndef main(): print(len(os.listdir('/proc/self/fd')))")
    # The listing itself is the fourth.
    assert pyspawner.run("look.main", flags=["--no-result"], path=open_folder).stdout == "4\n"


def test_stdin_cannot_be_changed_by_opening_it_anew(pyspawner):
    line = pyspawner.map("descriptors.reopen", [{"args": [0], "stdin": "text"}], path=ATTACKS).lines[0]
    assert "changed" not in line["result"]["w"]


def test_nothing_that_a_job_does_to_its_stdin_reaches_the_next(pyspawner):
    jobs = [{}, {}, {"stdin": "same"}, {"stdin": "same"}]
    done = pyspawner.map("descriptors.read_then_spoil_stdin", jobs, "-j", "1", "--ordered", path=ATTACKS)
    texts, spoiled = zip(*(line["result"] for line in done.lines), strict=True)
    assert texts == ("", "", "same", "same")
    # The control: the flags were changed, in each job's own open file.
    assert all(spoiled)
