"""A module that holds 1 GiB of live Python objects."""

import resource

_CHUNK = 100_000


def _resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


_before = _resident()
DATA = []
while _resident() - _before < 1 << 30:
    DATA.append([(number, str(number)) for number in range(_CHUNK)])
