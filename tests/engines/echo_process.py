"""A worker process for test_process.py: answers each frame with itself, or misbehaves on demand."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from voice_rtc.engines.process import FrameReader, frame


def main() -> None:
    reader = FrameReader(1 << 20)
    while data := os.read(0, 65536):
        for each in reader.feed(data):
            if each == b"die":
                sys.exit(3)
            if each == b"complain":
                os.write(2, b"this went wrong\n")
            if each == b"rant":
                os.write(2, b"\n" * 60_000)
            if each == b"child":  # that has our pipes, and outlives us
                each = str(subprocess.Popen(["sleep", "600"]).pid).encode()
            if each == b"linger":
                time.sleep(600)
            if each == b"flood":
                os.write(1, b"\xff\xff\xff\xff")
                continue
            os.write(1, frame(each))


if __name__ == "__main__":
    main()
