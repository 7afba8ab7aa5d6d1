"""Leaving something in a network namespace, and looking for what another left."""

import os
import random
import socket
import struct
import sys
import time

LOOPBACK = 1
SO_COOKIE = 57


def main(what, *args):
    return globals()[what](*args)


def namespace(seconds=0):
    time.sleep(seconds)
    return os.stat("/proc/self/ns/net").st_ino


def read(path):
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError as error:
        return f"errno {error.errno}"


# ---- what can be left: each makes it, and returns what it then sees of it --------------------


def counter():
    return int(read("/proc/self/net/snmp").splitlines()[1].split()[12])  # Ip: OutNoRoutes


def raise_counter():
    for _ in range(3):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect_ex(("10.0.0.1", 9))
    return counter()


def listener():
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex("\0pyspawner-slot") == 0


def leave_listener():
    """In a process that is still there at the job's end."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0pyspawner-slot")
    server.listen()
    if os.fork() == 0:
        time.sleep(60)
    return listener()


def port():
    """Whether somebody has it."""
    with socket.socket() as server:
        try:
            server.bind(("0.0.0.0", 45_679))
        except OSError:
            return True
    return False


def leave_port():
    server = socket.socket()
    server.bind(("0.0.0.0", 45_679))
    server.listen()
    if os.fork() == 0:
        time.sleep(60)
    return port()


def reports():
    """What is sent to multicast groups in the next two seconds."""
    before = read("/proc/self/net/snmp6")
    time.sleep(2)
    return before != read("/proc/self/net/snmp6")


def leave_group():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as member:
        group = socket.inet_pton(socket.AF_INET6, "ff05::1:5") + struct.pack("i", LOOPBACK)
        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)


# ---- sockets that outlive their job ----------------------------------------------------------


def pass_on(place, kind):
    """Hand an open socket to somebody outside, who keeps it; what is the namespace?"""
    if kind == "nothing":
        return namespace()
    kept = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    kept.bind("\0pyspawner-slot" if kind == "unix" else ("0.0.0.0", 45_679))
    kept.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(place)
        socket.send_fds(client, [b"x"], [kept.fileno()])
        client.recv(1)
    return namespace()


def cookie(seconds):
    """The number of this job's first socket."""
    with socket.socket(socket.AF_UNIX) as own:
        (number,) = struct.unpack("Q", own.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))
    time.sleep(seconds)
    return number, namespace()


def connect_to_itself(address):
    with socket.socket() as server, socket.socket() as client:
        server.bind(("0.0.0.0", 0))
        server.listen()
        client.settimeout(2)
        return client.connect_ex((address, server.getsockname()[1]))


# ---- anything at all -------------------------------------------------------------------------

# The machine's, or about the process that looks.
NOT_OF_THE_NAMESPACE = ("softnet_stat", "protocols", "netlink", "ptype", "sockstat", "/stat/", "fib_triestat", "psched")


def everything():
    """All that a job can read of its namespace."""
    found = {}
    for top in ("/proc/self/net", "/proc/sys/net"):
        for folder, _, files in os.walk(top):
            for path in (f"{folder}/{name}" for name in files):
                if not any(name in path for name in NOT_OF_THE_NAMESPACE):
                    found[path] = read(path)
    found["used"] = read("/proc/self/net/sockstat").splitlines()[0]
    return found


def do_anything(seed):
    """Random calls on random sockets, many of which the kernel takes."""
    chance = random.Random(seed)
    sockets = []
    for _ in range(chance.randint(1, 5)):
        family = chance.choice([socket.AF_INET, socket.AF_INET6, socket.AF_INET6, socket.AF_UNIX])
        protocol = chance.choice([0, 0, 0, 6, 17, 136, 262, 1, 58]) if family != socket.AF_UNIX else 0
        try:
            sockets.append(socket.socket(family, chance.choice([1, 2, 2]), protocol))
        except OSError:
            pass
    for _ in range(chance.randint(3, 40) if sockets else 0):
        one = chance.choice(sockets)
        one.settimeout(0)
        try:
            random_call(one, chance)
        except (OSError, OverflowError):
            pass
    return namespace()


def random_call(one, chance):
    what = chance.randint(0, 8)
    if what <= 3:
        level = chance.choice([0, 0, 41, 41, 41, 6, 17, 1, 136, 284])
        option = chance.choice([chance.randint(0, 90), 20, 21, 23, 31, 32, 35, 36, 42, 43, 46, 47, 48])
        one.setsockopt(level, option, random_value(chance))
    elif what == 4:
        one.bind(random_address(one, chance))
    elif what == 5:
        one.connect(random_address(one, chance))
    elif what == 6:
        one.listen()
    elif what == 7:
        flags = chance.choice([0, socket.MSG_FASTOPEN, socket.MSG_CONFIRM])
        one.sendto(b"x" * chance.choice([0, 1, 2000]), flags, random_address(one, chance))
    else:
        one.getsockopt(chance.choice([0, 41, 6, 1]), chance.randint(0, 90), 200)


ADDRESSES = ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "239.1.1.1", "10.0.0.1"]
ADDRESSES6 = ["::", "::1", "ff02::1", "ff05::5", "fe80::1", "fd00::1", "::ffff:127.0.0.1"]


def random_address(one, chance):
    number = chance.choice([0, 9, 1234])
    if one.family == socket.AF_INET:
        return chance.choice(ADDRESSES), number
    if one.family == socket.AF_INET6:
        return chance.choice(ADDRESSES6), number, chance.choice([0, 0x12345]), chance.choice([0, LOOPBACK])
    return chance.choice(["\0a", "\0b", ""])


def random_value(chance):
    device = struct.pack("i", chance.choice([0, LOOPBACK, LOOPBACK]))
    here = socket.inet_aton(chance.choice(ADDRESSES))
    here6 = socket.inet_pton(socket.AF_INET6, chance.choice(ADDRESSES6))
    group = struct.pack("HHI16sI", socket.AF_INET6, 0, 0, here6, 0).ljust(128, b"\0")
    label = struct.pack("BBHHHI", *(chance.randint(0, 3) for _ in range(3)), 0, 60, 0)
    return chance.choice(
        [
            struct.pack("i", chance.choice([0, 1, 2, -1, 1000])),
            here + bytes(4) + device,
            here6 + device,
            here6 + struct.pack(">I", 0x12345) + label,
            device + bytes(4) + group,
            device + bytes(4) + group + group,
            chance.randbytes(chance.choice([4, 8, 16, 32, 136])),
        ]
    )


if __name__ == "__main__":  # in a namespace of its own, for comparison
    main(sys.argv[1])
    print(main(sys.argv[2]))
