"""Counters for Prometheus: what is counted of a task; without Ray nothing is. test_executors.py has plain Ray."""

from types import SimpleNamespace

import pytest

from flows import metrics
from flows.executors import Outcome, Task

JOB = SimpleNamespace(name="hcstvg-train")
CLIP = SimpleNamespace(referents=["a", "b", "c"])


def clip(kind, value=None):
    return Outcome(Task("clip", ("clip", JOB, (CLIP, "somewhere"), "token")), kind, value)


OUTCOMES = [
    clip(
        "ok",
        {
            "dropped": [{"reason": "media_missing"}],
            "stages": [["track", 0.5, 8, 0, ""], ["track", 1, 1, 1, "note"]],
        },
    ),
    clip("died"),
    Outcome(Task("commit", ("commit", JOB, "token", None)), "ok", {"bytes": 1}),
    Outcome(Task("commit", ("commit", JOB, "token", None)), "died"),
]


class Seen:
    def __init__(self):
        self.calls = []

    def inc(self, value, tags):
        self.calls.append((value, *tags.values()))

    observe = inc


def test_what_is_counted_of_a_task(monkeypatch):
    seen = metrics.Metrics(Seen(), Seen(), Seen(), Seen())
    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(metrics.sys.modules, "ray", ray)
    monkeypatch.setattr(metrics, "_metrics", lambda session: seen)
    for outcome in OUTCOMES:
        metrics.count(outcome)
    job = JOB.name
    assert seen.clips.calls == [(1, job, "ok"), (1, job, "died")]
    assert seen.dropped.calls == [(1, job, "media_missing"), *[(1, job, "worker_died")] * 3]
    assert seen.shards.calls == [(1, job)]
    assert seen.seconds.calls == [(0.5, job, "track")]


@pytest.mark.parametrize(
    "ray", [None, SimpleNamespace(is_initialized=lambda: False)], ids=["unused", "closed"]
)
def test_without_ray_nothing_is_counted(ray, monkeypatch):
    monkeypatch.setitem(metrics.sys.modules, "ray", ray)
    monkeypatch.setattr(metrics, "_metrics", lambda session: pytest.fail("made"))
    for outcome in OUTCOMES:
        metrics.count(outcome)
