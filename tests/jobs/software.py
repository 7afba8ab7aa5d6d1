"""What current Python software does, one function each."""


def matrix():
    import numpy as np

    a = np.ones((1500, 1500))
    return float(a.dot(a)[0, 0])


def thread():
    import threading

    results = []
    worker = threading.Thread(target=results.append, args=(1,))
    worker.start()
    worker.join()
    return results


def subprocess_():
    import subprocess
    import sys

    code = "print(6 * 7)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def pool(method="fork"):
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as workers:
        return workers.map(abs, [-1, -2, -3])


def arrow_csv():
    import io

    import pyarrow.csv

    return pyarrow.csv.read_csv(io.BytesIO(b"a,b\n" + b"1,2\n" * 10_000)).num_rows


def group_by():
    import pandas as pd

    frame = pd.DataFrame({"k": ["a", "a", "b"], "v": [1.0, 2.0, 5.0]})
    return frame.groupby("k")["v"].mean().to_dict()


def asyncio_():
    import asyncio

    async def main():
        process = await asyncio.create_subprocess_exec("/bin/echo", "x", stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        server = await asyncio.start_unix_server(lambda r, w: w.close(), "/tmp/socket")
        server.close()
        return output.decode()

    return asyncio.run(main())


def sqlite():
    import sqlite3

    with sqlite3.connect("/tmp/test.db") as connection:
        connection.execute("create table t (a)")
        connection.execute("insert into t values (1)")
        return connection.execute("select a from t").fetchall()


def ssl_():
    import ssl

    ssl.create_default_context()
    return len(ssl.RAND_bytes(8))


def tempfile_():
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(b"text")
        file.flush()
        return open(file.name, "rb").read().decode()


def futures():
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = list(threads.map(abs, [-1]))
    with concurrent.futures.ProcessPoolExecutor(2) as processes:
        return results + list(processes.map(abs, [-2]))


def shared_memory():
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(create=True, size=100)
    memory.buf[0] = 7
    other = shared_memory.SharedMemory(memory.name)
    value = other.buf[0]
    other.close()
    memory.close()
    memory.unlink()
    return value


EXPECTED = {
    "matrix": 1500.0,
    "thread": [1],
    "subprocess_": "42\n",
    "pool": [1, 2, 3],
    "arrow_csv": 10_000,
    "group_by": {"a": 1.5, "b": 5.0},
    "asyncio_": "x\n",
    "sqlite": [[1]],
    "ssl_": 8,
    "tempfile_": "text",
    "futures": [1, 2],
    "shared_memory": 7,
}


def main(name, *args):
    return globals()[name](*args)
