"""A worker process ends with the server that it works for, however that ended.

It does already when its stdin closes; but one that is stopped, or whose threads all wait for each
other, does not read it, and would keep its GPU's memory for ever.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""Linux, prctl(2)."""


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends: the event loop's.

    On Linux; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
