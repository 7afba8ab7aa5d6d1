"""Draws from every source of randomness, in a child and in a grandchild of it."""

import json
import os
import random
import ssl
import tempfile
import uuid

import numpy
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def draw():
    key = ec.generate_private_key(ec.SECP256R1())
    folder = tempfile.mkdtemp()
    return {
        "random": random.random(),
        "numpy": float(numpy.random.rand()),
        "ssl": ssl.RAND_bytes(8).hex(),
        "ec": key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()).hex(),
        "uuid": str(uuid.uuid4()),
        "tempfile": os.path.basename(folder)[3:],
    }


draw()  # in the host, before any clone


def main(child_draws):
    """Draw in a grandchild, and before that, or not at all, in the child itself."""
    own = [draw()] if child_draws else []
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps([os.getpid(), draw()]).encode())
        os._exit(0)
    os.wait()
    pid, grandchilds = json.loads(os.read(read, 100_000))
    return {"pid": pid, "draws": [*own, grandchilds]}
