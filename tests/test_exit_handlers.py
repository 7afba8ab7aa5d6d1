"""The end of a job runs what the job has registered, not what the host's modules have."""

import textwrap

import pytest


@pytest.fixture
def job(pyspawner, open_folder):
    """Runs jobs of a module with this source: their lines, which must all be ``ok``."""

    def run(source, jobs=2, **options):
        (open_folder / "module.py").write_text(textwrap.dedent(source))
        done = pyspawner.map("module.main", [[]] * jobs, "-j", "1", path=open_folder, **options)
        assert [line["outcome"] for line in done.lines] == ["ok"] * jobs, done
        run.said = done.said  # type: ignore[attr-defined]
        return done.lines

    return run


def outputs(lines):
    return [(line["stdout"], line["stderr"]) for line in lines]


def test_handlers_of_modules_do_not_run_and_those_of_jobs_do(job):
    lines = job("""
        import atexit, logging, os
        atexit.register(os.write, 1, b"MODULE\\n")
        def main():
            atexit.register(print, "first")
            atexit.register(print, "second")
    """)
    assert outputs(lines) == [("second\nfirst\n", "")] * 2


@pytest.mark.parametrize("handler", ["1 / 0", "raise SystemExit(7)", "os._exit(9)", "time.sleep(60)"])
def test_a_modules_handler_does_not_change_the_end_of_a_job(job, handler):
    lines = job(f"""
        import atexit, os, time
        @atexit.register
        def at_exit():
            {handler}
        def main(): pass
    """)
    assert outputs(lines) == [("", "")] * 2
    assert all(line["wall_ms"] < 30_000 for line in lines)


def test_what_only_a_handler_holds_stays(job):
    """A module that keeps files out of an archive leaves their stack to its handler."""
    lines = job("""
        import atexit, contextlib
        CLOSED = []
        def open_until_exit():
            stack = contextlib.ExitStack()
            stack.callback(CLOSED.append, "closed")
            @contextlib.contextmanager
            def context():
                try: yield
                finally: CLOSED.append("ended")
            stack.enter_context(context())
            atexit.register(stack.close)
        open_until_exit()
        def main(): return CLOSED
    """)
    assert [line["result"] for line in lines] == [[], []]


def test_temporary_folders_of_modules_are_left_alone(job, open_folder):
    lines = job(f"""
        import os, shutil, tempfile, weakref
        KEPT = tempfile.TemporaryDirectory(dir={str(open_folder)!r})
        ANOTHER = tempfile.TemporaryDirectory()
        class Thing: pass
        THING = Thing()
        weakref.finalize(THING, print, "MODULE")
        def main():
            own = tempfile.TemporaryDirectory()
            kept.append(own)
            weakref.finalize(own, print, "own")
            return os.path.isdir(KEPT.name)
        kept = []
    """)
    assert [line["result"] for line in lines] == [True, True]
    assert outputs(lines) == [("own\n", "")] * 2


def test_finalizers_made_by_jobs_run_where_modules_have_made_none(job):
    lines = job("""
        import sys, tempfile
        def main():
            import weakref
            weakref.finalize(sys, print, "own")
    """)
    assert outputs(lines) == [("own\n", "")] * 2


def test_records_that_logging_keeps_are_written_once_and_those_of_jobs_at_their_end(job):
    lines = job("""
        import logging, logging.handlers, sys
        class Says(logging.Handler):
            def emit(self, record): print(record.getMessage(), file=sys.stderr)
        SAYS = Says()
        logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=SAYS))
        logging.warning("of the module")
        def main(): logging.warning("of the job")
    """)
    assert outputs(lines) == [("", "of the job\n")] * 2
    assert job.said == "of the module\n"


def test_a_handler_of_logging_that_a_job_makes_is_flushed(job):
    lines = job("""
        def main():
            import logging, logging.handlers, sys
            target = logging.StreamHandler(sys.stdout)
            logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=target))
            logging.warning("kept")
    """)
    assert outputs(lines) == [("kept\n", "")] * 2


def test_buffers_of_files_are_written_once(job, open_folder):
    names = [open_folder / name for name in ("text", "binary", "both")]
    lines = job(f"""
        import fcntl
        def opened(name, mode):  # not at a number that a child uses for something else
            with open(name, mode) as file: return open(fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 100), mode)
        FILES = [opened({str(names[0])!r}, "w"), opened({str(names[1])!r}, "wb"), opened({str(names[2])!r}, "w+b")]
        FILES[0].write("half a line")
        FILES[1].write(b"half a line")
        FILES[2].write(b"half a line")
        def main():
            seen = [open(name).read() for name in {[str(name) for name in names]!r}]
            for file in FILES:
                try: file.close()
                except OSError: pass
            return seen
    """)
    assert [line["result"] for line in lines] == [["half a line"] * 3] * 2
    assert [name.read_text() for name in names] == ["half a line"] * 3


def test_what_a_hook_writes_is_written_once(job, open_folder):
    lines = job(f"""
        import pyspawner_host
        NAME = {str(open_folder / "log")!r}
        FILE = open(NAME, "w")
        COUNT = []
        @pyspawner_host.before_clone
        def write():
            COUNT.append(1)
            FILE.write(f"clone {{len(COUNT)}}\\n")
        def main():
            return f"clone {{len(COUNT)}}" in open(NAME).read().splitlines()
    """)
    assert [line["result"] for line in lines] == [True, True]
    written = (open_folder / "log").read_text().splitlines()
    assert written == [f"clone {number}" for number in range(1, len(written) + 1)]


def test_a_file_that_cannot_be_written_is_named(job, pyspawner, open_folder):
    job("""
        FILE = open("/dev/full", "w")
        FILE.write("x")
        def main(): pass
    """)
    said = pyspawner.map("module.main", [[]], path=open_folder).stderr
    assert "cannot be flushed" in said and "/dev/full" in said and "No space left" in said


# ---- processes and threads that modules have started -----------------------------------------------


def test_processes_of_modules_are_not_a_jobs(job):
    lines = job("""
        import multiprocessing, time
        CONTEXT = multiprocessing.get_context("fork")
        PROCESSES = [CONTEXT.Process(target=time.sleep, args=(60,), daemon=daemon) for daemon in (True, False)]
        for process in PROCESSES: process.start()
        def main(): return len(multiprocessing.active_children())
    """)
    assert [line["result"] for line in lines] == [0, 0]
    assert outputs(lines) == [("", "")] * 2


def test_processes_of_jobs_are_waited_for(job):
    lines = job("""
        import multiprocessing, time
        def work():
            time.sleep(0.3)
            print("worked", flush=True)
        def main():
            context = multiprocessing.get_context("fork")
            context.Process(target=work).start()
    """)
    assert outputs(lines) == [("worked\n", "")] * 2


def test_executors_of_modules_do_not_hold_a_job_up(job):
    lines = job("""
        import concurrent.futures, multiprocessing
        THREADS = concurrent.futures.ThreadPoolExecutor(2)
        assert list(THREADS.map(abs, [-1, -2])) == [1, 2]
        def main(): return "ran"
    """)
    assert outputs(lines) == [("", "")] * 2


def test_process_pools_of_modules_do_not_hold_a_job_up(job):
    lines = job("""
        import concurrent.futures, multiprocessing
        POOL = concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        assert POOL.submit(abs, -1).result() == 1
        def main(): return "ran"
    """)
    assert outputs(lines) == [("", "")] * 2


def test_executors_of_jobs_are_waited_for(job):
    lines = job("""
        import concurrent.futures, time
        MODULES = concurrent.futures.ThreadPoolExecutor(1)
        MODULES.submit(abs, 1).result()
        def work():
            time.sleep(0.3)
            print("worked", flush=True)
        def main():
            concurrent.futures.ThreadPoolExecutor(1).submit(work)
    """)
    assert outputs(lines) == [("worked\n", "")] * 2


# ---- what is registered later ----------------------------------------------------------------------


def test_what_hooks_register_in_the_host_is_the_hosts(job):
    lines = job(
        """
        import atexit, pyspawner_host, weakref
        class Thing: pass
        THINGS = []
        @pyspawner_host.before_clone
        def before():
            atexit.register(print, "HOST")
            THINGS.append(Thing())
            weakref.finalize(THINGS[-1], print, "HOST")
        @pyspawner_host.after_clone
        def after(): atexit.register(print, "child")
        def main(): atexit.register(print, "job")
        """,
        jobs=3,
    )
    assert outputs(lines) == [("job\nchild\n", "")] * 3


def test_what_threads_register_in_the_host_is_the_hosts(job):
    lines = job(
        """
        import atexit, threading, time
        def register():
            while True:
                atexit.register(print, "HOST")
                time.sleep(0.001)
        threading.Thread(target=register, daemon=True).start()
        time.sleep(0.1)
        def main(): atexit.register(print, "job")
        """,
        jobs=3,
        spares=0,
    )
    assert outputs(lines) == [("job\n", "")] * 3


def test_a_failure_of_what_ends_threads_is_told_and_changes_nothing_else(pyspawner, open_folder):
    """As the interpreter has it: exit handlers run, and the result and the status stay."""
    (open_folder / "fails.py").write_text(
        "import atexit, threading\n"
        "def fail(): raise OSError('a pipe that is closed already')\n"
        "def main():\n"
        "    threading._register_atexit(fail)\n"
        "    atexit.register(print, 'the end')\n"
        "    return 5\n"
    )
    line = pyspawner.job("fails.main", path=open_folder)
    assert (line["outcome"], line["result"], line["stdout"]) == ("ok", 5, "the end\n")
    assert "Exception ignored in: <module 'threading'" in line["stderr"] and "a pipe that is closed" in line["stderr"]
