"""Descriptors, and the worker processes behind them."""
