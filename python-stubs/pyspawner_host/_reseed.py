"""Gives a random generator a state of its own. The host's module has this code, too."""

import os
import random
import sys
from typing import Any


def reseed(generator: object, /) -> None:
    """Seed ``generator`` anew from the operating system.

    For an ``after_clone`` hook: a generator that was made while modules were imported gives every job
    the same numbers. Takes a ``random.Random``, a ``numpy.random.Generator``, ``RandomState`` or
    ``BitGenerator``, or a ``torch.Generator``; TypeError for anything else.
    """
    if isinstance(generator, random.Random):
        random.Random.seed(generator)
        return
    # Whoever has such a generator has imported its library.
    numpy: Any = sys.modules.get("numpy.random")
    torch: Any = sys.modules.get("torch")
    if numpy is not None and isinstance(generator, numpy.BitGenerator):
        _reseed_bits(generator)
    elif numpy is not None and isinstance(generator, numpy.Generator):
        _reseed_bits(generator.bit_generator)
    elif numpy is not None and isinstance(generator, numpy.RandomState):
        _reseed_bits(generator._bit_generator)
        # It keeps the second one of a pair of normal deviates.
        state = generator.get_state(legacy=False)
        generator.set_state({**state, "has_gauss": 0, "gauss": 0.0})
    elif torch is not None and isinstance(generator, torch.Generator):
        generator.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    else:
        raise TypeError(
            "expected a random.Random, a numpy.random.Generator, RandomState or BitGenerator, or a "
            f"torch.Generator, got a {type(generator).__module__}.{type(generator).__qualname__}"
        )


def _reseed_bits(bits: Any) -> None:
    fresh = type(bits)()
    # With the state goes, in newer versions, the sequence from which ``spawn()`` seeds others.
    bits.__setstate__(fresh.__getstate__())
