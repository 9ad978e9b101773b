"""The row of a run in the `runs` table."""

import json
import platform
import socket
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.quarantine import newly_dropped
from pipeline.sample import CODE_VERSION
from pipeline.shards import job_record
from schemas import tables
from schemas.files import replacing
from schemas.parts import part_path

if TYPE_CHECKING:
    from flows.driver import Run
    from flows.executors import Executor


def record_run(
    entry: "Run", executor: "Executor", run_id: str, *, status: str = "completed"
) -> None:
    """One row of `runs`: who, when, with what, how much. run_id: the name of the run's folder; with source and split it
    is the key of the row. status: "resharded" for a run that has cut the shards anew."""
    job = entry.job
    packages = (
        "numpy",
        "opencv-contrib-python-headless",
        "scikit-learn",
        "pyarrow",
        "ray",
        "prefect",
    )
    row = {
        "run_id": run_id,
        "source": job.source,
        "split": job.split,
        "started": entry.started,
        "ended": datetime.now(UTC),
        "status": status,
        "executor": executor.name,
        "workers": executor.workers,
        "host": socket.gethostname(),
        "shards_done": entry.shards_done,
        "shards_skipped": entry.shards_skipped,
        "clips_done": entry.clips_done,
        "clips_resumed": entry.clips_resumed,
        "config": job_record(job),
        "config_hash": job.config.digest(),
        "code_version": CODE_VERSION,
        "synthetic": job.synthetic,
        "versions": json.dumps(
            {"python": platform.python_version()} | {p: version(p) for p in packages}
        ),
        "dropped": newly_dropped(Path(job.out), job.name, entry.committed),
    }
    path = part_path(Path(job.out), "runs", f"{job.name}-{run_id}")
    with replacing(path) as temporary:
        tables.write(temporary, "runs", [row])
