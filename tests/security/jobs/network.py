"""Sockets: to the host, and between siblings."""

import array
import os
import socket
import time

from syscalls import attempt, errno_name, named


def main(what, *args):
    return globals()[what](*args)


def connect(port, host="127.0.0.1"):
    try:
        with socket.create_connection((host, port), timeout=5) as connection:
            return connection.recv(100).decode()
    except OSError as error:
        return errno_name(error.errno)


def connect_by_name(name):
    """A path, or with @ in front an abstract name. Also takes a descriptor, if one is sent."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(name.replace("@", "\0"))
            _, rights, _, _ = client.recvmsg(10, socket.CMSG_SPACE(4))
        except OSError as error:
            return errno_name(error.errno)
    numbers = array.array("i")
    for _, _, data in rights:
        numbers.frombytes(data)
    return [os.read(number, 100).decode() for number in numbers] or "ok"


def victim(kind, name):
    """Listen for a sibling, and give it a descriptor where that is possible."""
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as server:
        server.bind(name.replace("@", "\0") if kind == "unix" else ("127.0.0.1", name))
        if kind == "unix" and name.startswith("/"):
            os.chmod(name, 0o777)
        server.listen()
        named("victim")
        server.settimeout(4)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return "nobody came"
        if kind == "unix":
            read, write = os.pipe()
            os.write(write, b"a descriptor")
            socket.send_fds(connection, [b"x"], [read])
        else:
            connection.sendall(b"sibling")
        time.sleep(0.2)
        return "somebody came"


def open_socket(name):
    return attempt(lambda: socket.socket(*KINDS[name]).close())


KINDS = {
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0),
    "vsock": (getattr(socket, "AF_VSOCK", 40), socket.SOCK_STREAM, 0),
    "netlink audit": (socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "netlink netfilter": (socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "netlink uevent": (socket.AF_NETLINK, socket.SOCK_RAW, 15),
    "netlink generic": (socket.AF_NETLINK, socket.SOCK_RAW, 16),
    "netlink sock_diag": (socket.AF_NETLINK, socket.SOCK_RAW, 4),
    "alg": (38, socket.SOCK_SEQPACKET, 0),
}


def socket_families():
    """The address families of which a socket can be had."""
    families = []
    for family in range(46):
        for protocol in (0, 12):
            kind = socket.SOCK_RAW if family == 16 else socket.SOCK_DGRAM
            if attempt(lambda: socket.socket(family, kind, protocol).close()) == "ok":
                families.append((family, protocol))
    return families


def interfaces():
    """Those that can be used: name and whether it is up."""
    import fcntl
    import struct

    found = []
    with socket.socket() as probe:
        for index in range(1, 100):
            try:
                named = fcntl.ioctl(probe, 0x8910, struct.pack("16si12x", b"", index))  # SIOCGIFNAME
            except OSError:
                continue
            name = named[:16]
            flags = fcntl.ioctl(probe, 0x8913, struct.pack("16sH14s", name, 0, b""))  # SIOCGIFFLAGS
            if struct.unpack_from("16sH", flags)[1] & 1:
                found.append(name.rstrip(b"\0").decode())
    return found


def raise_loopback():
    import fcntl
    import struct

    with socket.socket() as probe:
        return attempt(lambda: fcntl.ioctl(probe, 0x8914, struct.pack("16sH14s", b"lo", 1, b"")))
