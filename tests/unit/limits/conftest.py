"""Properties are checked without a time limit for each example: the machine may be busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
