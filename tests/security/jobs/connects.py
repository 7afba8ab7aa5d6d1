"""A job that connects to a host, as its clients do."""

import os
import socket
import time


def main(path, how):
    print("begun", flush=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(20)
        try:
            connect(connection, path, how)
            connection.send(b'{"type": "hello", "version": 1}')
            print(connection.recv(1000).decode() or "sent away")
        except ConnectionError:
            print("sent away")
        except OSError as error:
            print(error.strerror)


def connect(connection, path, how):
    if how != "ended":
        return connection.connect(path)
    time.sleep(1)
    child = os.fork()
    if child == 0:
        try:
            connection.connect(path)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise OSError(os.waitstatus_to_exitcode(status), os.strerror(os.waitstatus_to_exitcode(status)))
