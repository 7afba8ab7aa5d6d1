"""As `seeded`, where a hook draws in the host before each clone."""

import pyspawner_host
from seeded import draw, main  # noqa: F401

pyspawner_host.before_clone(draw)
