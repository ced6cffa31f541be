"""Reads straight from the image's worker, where the daemon allows it (docs/adr/0014-fast-path.md).

What can't be read this way, for whatever reason, is asked of the daemon as if this package weren't there: its answer,
and its error, is the one that counts.
"""
