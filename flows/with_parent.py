"""Run a module that ends when its parent does, however that ended: `python -m flows.with_parent PID MODULE ARG ...`."""

import os
import runpy
import signal
import sys
import threading
import time

EVERY, GRACE = 1.0, 15.0
"""Seconds between looks, and from SIGTERM to the end."""


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
