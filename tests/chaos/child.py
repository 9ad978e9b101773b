"""A run with Ray in a process of its own: `python tests/chaos/child.py <job.json> <diary> <workers>`.

The diary gets a line "<pid> <clip>" for each clip that a worker has begun.
"""

import sys
from pathlib import Path
from typing import Any

from flows import driver
from flows.executors import RayActors, Work
from flows.progress import Quiet
from pipeline.plan import Job


def noting(diary: str) -> Work:
    """The driver's work, with a diary. In a function, so that Ray sends it by value: a worker cannot import this."""
    work = driver.work

    def noted(payload: Any) -> Any:
        import os

        if payload[0] == "clip":
            with open(diary, "a") as file:
                file.write(f"{os.getpid()} {payload[2][0].clip.clip_id}\n")
        return work(payload)

    return noted


if __name__ == "__main__":
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    driver.work = noting(sys.argv[2])
    driver.after_run = lambda *_, **__: None
    executor = RayActors(workers=int(sys.argv[3]))
    try:
        driver.run([job], executor, Quiet())
    finally:
        executor.close()
