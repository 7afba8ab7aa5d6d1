"""Run by test_network.py in a network namespace: echoes, and a place where children meet.

Who sends "port" is told its own, as seen from here.

Arguments: the echo port, addresses that echo datagrams, and with "meet=PORT=COUNT" a meeting.
Commands on standard input: a line lets the meeting go on; its end ends this program.
"""

import json
import socket
import sys
import threading

seen = []


def echo_streams(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512) as server:
        while True:
            threading.Thread(target=echo, args=server.accept(), daemon=True).start()


def answer(data, sender):
    return str(sender[1]).encode() if data == b"port" else data


def echo(connection, sender):
    with connection:
        try:
            connection.sendall(answer(connection.recv(100), sender))
        except OSError:
            pass  # the client has gone


def echo_datagrams(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, port))
        while True:
            data, sender = server.recvfrom(200)
            seen.append(data.decode())
            try:
                server.sendto(answer(data, sender), sender)
            except OSError:
                pass  # a sender that does not exist


def meeting(server, count):
    streams = [server.accept()[0].makefile("rw") for _ in range(count)]
    everybody = [json.loads(stream.readline()) for stream in streams]
    tell(streams, json.dumps(everybody))
    for stream in streams:
        stream.readline()
    print("done", flush=True)
    sys.stdin.readline()
    tell(streams, "go on")


def tell(streams, line):
    for stream in streams:
        stream.write(line + "\n")
        stream.flush()


def start(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


start(echo_streams, int(sys.argv[1]))
for word in sys.argv[2:]:
    if not word.startswith("meet="):
        start(echo_datagrams, word, int(sys.argv[1]))
meetings = [word.split("=")[1:] for word in sys.argv[2:] if word.startswith("meet=")]
servers = [(socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512),
            int(count)) for port, count in meetings]  # fmt: skip
print("ready", flush=True)
for place in servers:
    meeting(*place)
sys.stdin.read()
print(json.dumps(seen), flush=True)
