"""Counters for Ray's Prometheus exporter: what a run that uses Ray has done, by job. See docs/cluster.md.

Ray serves them where a node has an exporter, which is part of `ray[default]`. Without one, and without Ray, they go
nowhere and cost microseconds; nothing reads them to decide anything.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.executors import Outcome

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
"""Upper bounds of the histogram of a stage's seconds per clip."""


@dataclass(frozen=True)
class Metrics:
    """Ray's own metric objects."""

    clips: Any
    dropped: Any
    shards: Any
    seconds: Any


@lru_cache(maxsize=1)
def _metrics(session: str) -> Metrics:
    """Made once for each Ray that this process has joined."""
    from ray.util.metrics import Counter, Histogram

    return Metrics(
        Counter(
            "sparrow_clips", "Clips that are done, whether kept or given up.", ("job", "outcome")
        ),
        Counter("sparrow_dropped", "Referents in quarantine.", ("job", "reason")),
        Counter("sparrow_shards", "Committed shards.", ("job",)),
        Histogram(
            "sparrow_stage_seconds", "Seconds of a stage for a clip.", SECONDS, ("job", "stage")
        ),
    )


def count(outcome: "Outcome") -> None:
    """Count a finished task of `flows.work`. Nothing happens while this process has no Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    metrics = _metrics(ray.get_runtime_context().gcs_address)
    kind, job, item, *_ = outcome.task.payload
    value = outcome.value or {}
    if kind == "commit":
        if outcome.kind == "ok":
            metrics.shards.inc(1, {"job": job.name})
        return
    metrics.clips.inc(1, {"job": job.name, "outcome": outcome.kind})
    reasons = [row["reason"] for row in value.get("dropped", [])]
    if outcome.kind != "ok":
        reasons = [{"died": "worker_died"}.get(outcome.kind, outcome.kind)] * len(item[0].referents)
    for reason in reasons:
        metrics.dropped.inc(1, {"job": job.name, "reason": reason})
    for stage, seconds, *_, note in value.get("stages", []):
        if not note:
            metrics.seconds.observe(seconds, {"job": job.name, "stage": stage})
