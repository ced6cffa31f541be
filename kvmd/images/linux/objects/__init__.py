"""Data of kernels whose symbol table has functions only (no CONFIG_KALLSYMS_ALL): where it lies, found and proved.

``table.py`` has a line for each object: where to look for it, and what it must be. A place that passes alone is the
object; if several do, nobody guesses.
"""
