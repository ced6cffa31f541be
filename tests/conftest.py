"""How often properties are tried, where a test doesn't say."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quick", max_examples=30)
