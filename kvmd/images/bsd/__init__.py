"""Crash dumps of BSD kernels: one file a format, over one reader of memory."""
