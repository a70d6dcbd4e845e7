"""Ports for tests that need some in a row."""

from __future__ import annotations

import socket


def free_ports(count: int) -> range:
    """So many free ports in a row, outside those that the system gives out by itself."""
    for first in range(20_000, 30_000, count):
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
        try:
            for number, sock in enumerate(sockets):
                sock.bind(("", first + number))
        except OSError:
            continue
        else:
            return range(first, first + count)
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no ports are free")
