"""What a networked child can reach."""

import json
import os
import selectors
import socket
import struct
import time

PATIENCE = 1.5
IPV6_FREEBIND = 78


def main(what, *args):
    return globals()[what](*args)


def reach(targets):
    """For each ``[protocol, host, port]``, at once: whether an echo came back."""
    with selectors.DefaultSelector() as selector:
        results = {}
        for number, target in enumerate(targets):
            results[number] = begin(selector, number, *target)
        end = time.monotonic() + PATIENCE
        while selector.get_map() and time.monotonic() < end:
            for key, _ in selector.select(0.1):
                results[key.data] = go_on(selector, key, results[key.data])
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return [results[number] == "echo" for number in range(len(targets))]


def begin(selector, number, protocol, host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    client = socket.socket(family, kind)
    client.setblocking(False)
    try:
        address = socket.getaddrinfo(host, port, family, kind, 0, socket.AI_NUMERICHOST)[0][4]
        if protocol == "udp":
            client.sendto(b"hello", address)
        else:
            client.connect_ex(address)
    except OSError as error:
        client.close()
        return error.strerror
    selector.register(client, selectors.EVENT_READ if protocol == "udp" else selectors.EVENT_WRITE, number)
    return "connecting" if protocol == "tcp" else "sent"


def go_on(selector, key, state):
    client = key.fileobj
    try:
        if state == "connecting":
            client.send(b"hello")
            selector.modify(client, selectors.EVENT_READ, key.data)
            return "sent"
        answer = client.recv(100)
        state = "echo" if answer == b"hello" else repr(answer)
    except OSError as error:
        state = error.strerror
    selector.unregister(client)
    client.close()
    return state


def addresses():
    """This child's own, of both families."""
    found = []
    for family, host in [(socket.AF_INET, "192.0.2.10"), (socket.AF_INET6, "2001:db8::10")]:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.connect((host, 9))
            found.append(client.getsockname()[0])
    return found


def meet(meeting, port, targets):
    """Meet all siblings at a server, attack them and ``targets``, wait for its word, do it again."""
    own = addresses()
    servers = [listen(address, port) for address in own]
    with socket.create_connection((meeting[0], meeting[1]), timeout=60) as connection:
        lines = connection.makefile("rw")
        lines.write(json.dumps(own) + "\n")
        lines.flush()
        everybody = json.loads(lines.readline())
        place = everybody.index(own)
        sibling = everybody[place - 1]
        all_targets = [*targets, *(["tcp", address, port] for address in sibling)]
        first = attack(all_targets, servers, own, "guarded")
        lines.write("done\n")
        lines.flush()
        lines.readline()
        second = attack(all_targets, servers, own, "unguarded")
    return {"own": own, "guarded": first, "unguarded": second}


def reach_later(meeting, seconds, targets):
    """Reach for ``targets``, tell a server so, and do it again after a while."""
    first = reach(targets)
    with socket.create_connection((meeting[0], meeting[1]), timeout=60) as connection:
        lines = connection.makefile("rw")
        lines.write("[]\n")
        lines.flush()
        lines.readline()
        lines.write("done\n")
        lines.flush()
    time.sleep(seconds)
    return [first, reach(targets)]


def ports_seen(port, targets):
    """The port that each of ``targets`` sees when this sends from ``port``."""
    seen = []
    for protocol, host, to in targets:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("", port))
            client.connect((host, to))
            client.sendall(b"port")
            seen.append(int(client.recv(100)))
    return seen


def listen(address, port):
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    server.bind((address, port))
    server.listen()
    return server


def attack(targets, servers, own, word):
    """Serve the sibling that comes, in a process of its own, while reaching out."""
    serving = os.fork()
    if serving == 0:
        try:
            serve(servers)
        finally:
            os._exit(0)
    send_what_is_dropped(word)
    reached = reach(targets)
    os.waitpid(serving, 0)
    return reached


def serve(servers):
    with selectors.DefaultSelector() as selector:
        for server in servers:
            selector.register(server, selectors.EVENT_READ)
        end = time.monotonic() + PATIENCE + 0.5
        while time.monotonic() < end:
            for key, _ in selector.select(0.1):
                connection, _ = key.fileobj.accept()
                connection.settimeout(1)
                connection.sendall(connection.recv(100))
                connection.close()


def send_what_is_dropped(word):
    """From addresses that are not this child's, and to all who listen to the link. Needs CAP_NET_RAW."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        text = f"false IPv4 sender {word}".encode()
        raw.sendto(datagram("10.99.99.99", "192.0.2.10", 7000, text), ("192.0.2.10", 0))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
        free.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        free.bind(("2001:db8:99::99", 0))
        free.sendto(f"false IPv6 sender {word}".encode(), ("2001:db8::10", 7000))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        link = socket.if_nametoindex("eth0")
        client.sendto(f"to all neighbours {word}".encode(), ("ff02::1", 7000, 0, link))


def datagram(source, target, port, payload):
    """An IPv4 packet of UDP without checksum; the kernel fills in the header's."""
    udp = struct.pack("!HHHH", 5000, port, 8 + len(payload), 0) + payload
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                         socket.inet_aton(source), socket.inet_aton(target))  # fmt: skip
    return header + udp


def read(path):
    with open(path) as file:
        return file.read()


def wait(seconds):
    time.sleep(seconds)
    return reach([["tcp", "192.0.2.10", 7000]])
