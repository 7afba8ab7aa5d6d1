"""What jobs do with a loopback interface of their own."""

import asyncio
import errno
import functools
import http.server
import multiprocessing.managers
import os
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import xmlrpc.client
import xmlrpc.server

ADDRESSES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def serve_http(address):
    """A server of the standard library's, and a client."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = ADDRESSES[address]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"served " + self.path.encode())

        def log_message(self, *_):
            pass

    with Server((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        host = f"[{address}]" if ":" in address else address
        with urllib.request.urlopen(f"http://{host}:{server.server_port}/page", timeout=10) as answer:
            text = answer.read().decode()
        server.shutdown()
    return text


def share_by_manager():
    """multiprocessing's objects that processes share by a server."""
    manager = multiprocessing.managers.SyncManager(("127.0.0.1", 0), authkey=b"key")
    manager.start()
    try:
        shared = manager.dict(a=1)
        context = multiprocessing.get_context("fork")
        worker = context.Process(target=functools.partial(shared.update, b=2))
        worker.start()
        worker.join()
        return dict(shared)
    finally:
        manager.shutdown()


def meet_by_rendezvous(workers):
    """As torch.distributed and Dask do: one listens, the others tell where they are, all are told of all."""
    hub = socket.create_server(("localhost", 0))
    script = (
        "import socket, sys\n"
        "own = socket.create_server(('localhost', 0))\n"
        "with socket.create_connection(('localhost', int(sys.argv[1]))) as hub, hub.makefile('rw') as lines:\n"
        "    print(own.getsockname()[1], file=lines, flush=True)\n"
        "    rank, ports = lines.readline().split()\n"
        "ports = ports.split(',')\n"
        "with socket.create_connection(('localhost', int(ports[(int(rank) + 1) % len(ports)]))) as after:\n"
        "    after.sendall(rank.encode())\n"
        "before, _ = own.accept()\n"
        "print(rank, before.recv(10).decode())\n"
    )
    command = [sys.executable, "-c", script, str(hub.getsockname()[1])]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    connections = [hub.accept()[0] for _ in processes]
    ports = [connection.recv(20).decode().strip() for connection in connections]
    for rank, connection in enumerate(connections):
        connection.sendall(f"{rank} {','.join(ports)}\n".encode())
    return sorted(process.communicate(timeout=20)[0].strip() for process in processes)


def echo_by_asyncio(address):
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async def talk():
        server = await asyncio.start_server(answer, address, 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(b"hello\n")
            text = await reader.readline()
            writer.close()
            return text.decode().strip()

    return asyncio.run(talk())


def call_by_rpc():
    with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_function(pow)
        threading.Thread(target=server.handle_request).start()
        return xmlrpc.client.ServerProxy(f"http://127.0.0.1:{server.server_address[1]}").pow(2, 10)


def send_datagrams(address):
    with socket.socket(ADDRESSES[address], socket.SOCK_DGRAM) as server:
        server.bind((address, 0))
        with socket.socket(ADDRESSES[address], socket.SOCK_DGRAM) as client:
            client.sendto(b"datagram", server.getsockname())
        return server.recv(100).decode()


def interfaces():
    """Name, whether it is up, and addresses of both families by what can be bound."""
    import fcntl

    found = []
    with socket.socket() as probe:
        for _, name in socket.if_nameindex():
            flags = fcntl.ioctl(probe, 0x8913, struct.pack("16sH14s", name.encode(), 0, b""))
            found.append([name, bool(struct.unpack_from("16sH", flags)[1] & 1)])
    with open("/proc/net/if_inet6") as file:
        inet6 = [line.split()[-1] for line in file]
    with open("/proc/net/route") as file:
        routes = file.read().splitlines()[1:]
    return [found, inet6, routes]


def reach(*targets):
    """What becomes of an attempt to connect to each address and port."""
    found = []
    for address, port in targets:
        try:
            with socket.create_connection((address, port), timeout=3) as connection:
                connection.settimeout(3)
                found.append(connection.recv(100).decode())
        except OSError as error:
            found.append(errno.errorcode.get(error.errno, str(error)))
    return found


def lower_loopback():
    import fcntl

    with socket.socket() as probe:
        try:
            fcntl.ioctl(probe, 0x8914, struct.pack("16sH14s", b"lo", 0, b""))
        except OSError as error:
            return errno.errorcode[error.errno]
    return "ok"


def main(what, *args):
    return globals()[what](*args)


def listen(port, abstract):
    """Listen for others until the host ends this, by TCP and at an abstract name; and prove it to itself."""
    import ctypes
    import time

    def answer(server):
        while True:
            server.accept()[0].sendall(b"a job's")

    with socket.create_server(("127.0.0.1", port)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind("\0" + abstract)
        named.listen()
        for each in (server, named):
            threading.Thread(target=answer, args=(each,), daemon=True).start()
        assert reach(("127.0.0.1", port)) == ["a job's"]
        ctypes.CDLL(None).prctl(15, b"victim", 0, 0, 0)
        time.sleep(20)


def reach_abstract(name):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect("\0" + name)
        except OSError as error:
            return errno.errorcode[error.errno]
    return "ok"


def remember():
    """Connect to oneself, and tell what the counters of the network namespace say of others before."""
    with open("/proc/net/snmp") as file:
        before = [line.split()[10] for line in file if line.startswith("Tcp:")][1]
    send_datagrams("127.0.0.1")
    assert call_by_rpc() == 1024
    return [int(before), os.stat("/proc/self/ns/net").st_ino]
