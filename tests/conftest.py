"""How often properties are tried, where a test doesn't say."""

from __future__ import annotations

try:
    from hypothesis import settings
except ImportError:
    pass  # in a guest, that has pytest alone and runs tests without properties (tests/guest/live_freebsd.py)
else:
    settings.register_profile("quick", max_examples=30)
