"""As `generators`, renewed."""

import generators
from generators import renewing  # noqa: F401

generators.RENEWS.append(True)
