"""kvmd: kernel-memory access as a service. Imports nothing, so that clients can import kvmd.v1."""

__version__ = "0.1.0"
