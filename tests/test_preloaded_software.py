"""Software of others that is preloaded, used at import or in the warm-up, and used again in every job.

What each needs is pinned in requirements.txt; a version of Python for which there is no wheel skips the test aloud.
"""

import importlib.util

import pytest

# By what it stands for: needed modules, source, and what each of three jobs returns.
CASES = {
    # Objects that keep files open.
    "HDF5": (
        ["h5py", "numpy"],
        """
import h5py, numpy, tempfile
PATH = tempfile.mkdtemp(dir="/var/tmp") + "/x.h5"
with h5py.File(PATH, "w") as file: file["a"] = numpy.arange(100_000)
FILE = h5py.File(PATH, "r")
def main(): return int(FILE["a"][::2].sum())
""",
        2499950000,
    ),
    "PROJ's database": (
        ["pyproj"],
        """
import pyproj
FIRST = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True)
def main():
    second = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True)
    return [[round(x) for x in second.transform(15, 50)], pyproj.CRS.from_epsg(25832).name]
""",
        [[500000, 5538631], "ETRS89 / UTM zone 32N"],
    ),
    "images": (
        ["numpy"],
        """
import numpy, tempfile
PATH = tempfile.mkdtemp(dir="/var/tmp") + "/a.npz"
numpy.savez(PATH, a=numpy.arange(5), b=numpy.eye(2))
ARCHIVE = numpy.load(PATH)
def main(): return [ARCHIVE["a"].tolist(), float(ARCHIVE["b"].sum())]
""",
        [[0, 1, 2, 3, 4], 2.0],
    ),
    "SQLite in WAL mode": (
        [],
        """
import os, sqlite3, tempfile
PATH = tempfile.mkdtemp(dir="/var/tmp") + "/d"
DATABASE = sqlite3.connect(PATH); DATABASE.execute("pragma journal_mode=wal"); DATABASE.execute("create table t (x)")
DATABASE.executemany("insert into t values (?)", [(n,) for n in range(100)]); DATABASE.commit()
def main(): return DATABASE.execute("select sum(x) from t").fetchone()[0]
""",
        4950,
    ),
    "Arrow's file": (
        ["pyarrow"],
        """
import pyarrow, pyarrow.ipc, pyarrow.parquet, tempfile
PATH = tempfile.mkdtemp(dir="/var/tmp") + "/t.parquet"
pyarrow.parquet.write_table(pyarrow.table({"a": list(range(1000))}), PATH)
FILE = pyarrow.parquet.ParquetFile(PATH)
def main(): return FILE.read()["a"].to_pylist()[-1]
""",
        999,
    ),
    # Locks and values that processes share.
    "tqdm's lock": (
        ["tqdm"],
        """
import io, tqdm
def main():
    tqdm.tqdm.get_lock().acquire()
    return len(list(tqdm.tqdm(range(3), file=io.StringIO())))
main()
tqdm.tqdm.get_lock().release()
""",
        3,
    ),
    "multiprocessing": (
        [],
        """
import multiprocessing
LOCK, VALUE, QUEUE = multiprocessing.Lock(), multiprocessing.Value("i", 1), multiprocessing.Queue()
def work():
    with VALUE.get_lock(): VALUE.value += 1
    QUEUE.put(VALUE.value)
def main():
    LOCK.acquire()
    process = multiprocessing.get_context("fork").Process(target=work); process.start(); process.join()
    return [QUEUE.get(timeout=10), VALUE.value]
""",
        [2, 2],
    ),
    # Event loops and what they try as they start.
    "uvloop": (
        ["uvloop"],
        """
import asyncio, uvloop
async def work():
    process = await asyncio.create_subprocess_exec("/bin/echo", "hi", stdout=-1)
    return (await process.communicate())[0].decode()
def main(): return uvloop.run(work())
""",
        "hi\n",
    ),
    "an event loop of uvloop's, made at import": (
        ["uvloop"],
        """
import asyncio, uvloop
LOOP = uvloop.new_event_loop(); asyncio.set_event_loop(LOOP)
LOOP.run_until_complete(asyncio.sleep(0))
def main(): return LOOP.run_until_complete(asyncio.wait_for(asyncio.sleep(0.01, 7), 5))
""",
        7,
    ),
    "an event loop of asyncio's, with a server and an executor": (
        [],
        """
import asyncio, socket
LOOP = asyncio.new_event_loop()
async def serve(): return await asyncio.start_unix_server(lambda r, w: w.close(), "/var/tmp/loop-%d" % __import__("os").getpid())
SERVER = LOOP.run_until_complete(serve())
async def work(): return await LOOP.run_in_executor(None, sum, [3, 4])
def main(): return LOOP.run_until_complete(asyncio.wait_for(work(), 5))
""",
        7,
    ),
    # Loggers.
    "a queue of log records": (
        [],
        """
import logging, logging.handlers, queue
QUEUE = queue.Queue()
LISTENER = logging.handlers.QueueListener(QUEUE, logging.StreamHandler()); LISTENER.start()
LOG = logging.getLogger("queued"); LOG.addHandler(logging.handlers.QueueHandler(QUEUE)); LOG.setLevel("INFO")
def main():
    LOG.info("a line")
    return "went on"
""",
        "went on",
    ),
}


def missing(modules):
    return [name for name in modules if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("spares", [0, 2])
@pytest.mark.parametrize("what", CASES)
def test_it_works_in_every_job(pyspawner, open_folder, what, spares):
    modules, source, expected = CASES[what]
    if missing(modules):
        pytest.skip(f"there is no {missing(modules)} for this Python")
    (open_folder / "software.py").write_text(source)
    flags = ["--preload", "software", "--timeout", "20", "-j", "1"]
    done = pyspawner.map("software.main", [[]] * 3, *flags, path=open_folder, spares=spares)
    assert [line["result"] for line in done.lines] == [expected] * 3, done
