"""The pure core: decisions without I/O, clocks, threads or randomness of their own.

Nothing here imports asyncio, threading, time, os, random or any media library; time comes in as
an argument and what should happen comes out as a value. ``tests/test_layers.py`` enforces it.
"""
