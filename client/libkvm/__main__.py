"""``python -m libkvm`` is kvmctl."""

import sys

from libkvm.cli import main

if __name__ == "__main__":
    sys.exit(main())
