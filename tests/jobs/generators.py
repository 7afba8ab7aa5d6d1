"""Random generators that are made while this is imported, and one hook that renews some."""

import random
import secrets
import sys
from functools import partial

import numpy
import pyspawner_host

OURS = random.Random(1)
GENERATOR = numpy.random.default_rng(1)
LEGACY = numpy.random.RandomState(1)
BITS = numpy.random.Philox(1)
LISTED = [None, numpy.random.default_rng(2)]
BY_NAME = {"mine": random.Random(2)}
OF_THE_SYSTEM = random.SystemRandom()
SECRET = secrets.SystemRandom()


class Holder:
    SHARED = random.Random(3)

    def __init__(self):
        self.generator = numpy.random.default_rng(3)


HOLDER = Holder()


class Unwilling:
    """Looked at, it runs code: nothing at start may look."""

    @property
    def __class__(self):
        sys.exit("looked at")

    @property
    def __dict__(self):
        sys.exit("looked at")


UNWILLING = Unwilling()
NAMELESS = partial(partial, partial(random.Random(4).getrandbits, 32))

ALL = {
    "random.Random": (OURS, lambda: OURS.gauss(0, 1)),
    "Generator": (GENERATOR, lambda: float(GENERATOR.normal())),
    "RandomState": (LEGACY, lambda: float(LEGACY.normal())),
    "BitGenerator": (BITS, lambda: int(BITS.random_raw())),
    "a RandomState of PCG64": (numpy.random.RandomState(numpy.random.PCG64(1)), None),
}
PCG64 = ALL["a RandomState of PCG64"][0]
ALL["a RandomState of PCG64"] = (PCG64, lambda: float(PCG64.normal()))
# The second of a pair of deviates is kept.
OURS.gauss(0, 1), LEGACY.normal(), PCG64.normal()


def draw():
    return {name: draw() for name, (_, draw) in ALL.items()}


def shared():
    return draw()


RENEWS = []


@pyspawner_host.after_clone
def renew():
    if RENEWS:
        for generator, _ in ALL.values():
            pyspawner_host.reseed(generator)


def renewing():
    """As ``child_main``: the module's own."""
    spawned = [float(generator.random()) for generator in GENERATOR.spawn(1)] if hasattr(GENERATOR, "spawn") else []
    return {**draw(), **{"spawned": number for number in spawned}}


def refusals():
    said = []
    for wrong in (None, 5, random, numpy.random, random.Random, object(), "text"):
        try:
            pyspawner_host.reseed(wrong)
        except TypeError as error:
            said.append(str(error))
    return said
