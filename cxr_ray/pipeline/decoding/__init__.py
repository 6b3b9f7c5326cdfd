"""Decoding of one image's bytes to a frame, here or in a process of its own that may die.

``decoded`` is the work itself, the same code in both places. ``child`` is the other process, ``child_process``
this side of it, and ``isolated`` decides what a death means. No Ray.
"""
