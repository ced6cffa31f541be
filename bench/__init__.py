"""Measurements that anyone can run: each prints both sides of its ratio, taken in turn in one run."""
