"""Settings all tests share."""

from __future__ import annotations

from hypothesis import settings

# These machines stall now and then; how long an example takes is no property of the code.
settings.register_profile("bridge", deadline=None)
settings.load_profile("bridge")
