"""Processes that train together wait for the one that writes, longer than the backend's limit for gradients."""

import os
import socket
import subprocess
import sys

CODE = """
import time
from datetime import timedelta
import torch
import torch.distributed as dist
from model.train.parallel import World

dist.init_process_group("gloo", timeout=timedelta(seconds=2))
world = World.join(torch.device("cpu"))
found = world.agree(lambda: time.sleep(4) or world.rank if world.first else world.rank)
assert found == [0, 1], found
world.wait()
print("agreed")
"""


def test_the_others_wait_for_the_first_one_beyond_the_backends_limit():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = []
    for rank in (0, 1):
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
        env = os.environ | own | {"MASTER_ADDR": "127.0.0.1"}
        runs.append(
            subprocess.Popen(
                [sys.executable, "-c", CODE],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for run in runs:
        out, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
        assert out.strip() == "agreed"
