"""Many clips at once in one process: the same results as one by one, within the bounds."""

import threading
import time

from pipeline.curate import curate_clip
from pipeline.fused import ByteBudget, Fused, decoded_bytes
from pipeline.plan import plan_items
from pipeline.presets import build_stages
from schemas.records import Planned


def test_clips_at_once_are_the_clips_one_by_one(tiny_job):
    items = [item for item in plan_items(tiny_job) if isinstance(item, Planned)]
    stages = build_stages(tiny_job.config)
    alone = [curate_clip(item, tiny_job, tiny_job.load(), stages) for item in items]
    together = list(Fused(tiny_job.config, decoders=2).map(tiny_job, items, in_flight=4))
    assert [[s.key for s in r.samples] for r in together] == [
        [s.key for s in r.samples] for r in alone
    ]
    for one, other in zip(alone, together, strict=True):
        assert [s.members for s in one.samples] == [s.members for s in other.samples]
        assert one.quarantine == other.quarantine


def test_workers_of_one_machine_share_its_memory(tiny_job, monkeypatch):
    whole = Fused(tiny_job.config).budget.limit
    monkeypatch.setenv("SPARROW_WORKERS", "8")
    shared = Fused(tiny_job.config).budget.limit
    assert 8 * shared <= whole < 8 * (shared + 1)
    assert Fused(tiny_job.config, host_bytes=5).budget.limit == 5


def test_no_more_clips_decode_at_once_than_allowed(tiny_job, monkeypatch):
    from pipeline import curate

    decode, inside, most = curate.decode, [], []

    def watched(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        try:
            return decode(*args)
        finally:
            inside.pop()

    monkeypatch.setattr(curate, "decode", watched)
    items = [item for item in plan_items(tiny_job) if isinstance(item, Planned)]
    list(Fused(tiny_job.config, decoders=1).map(tiny_job, items, in_flight=4))
    assert max(most) == 1


def test_the_budget_bounds_bytes_and_lets_a_giant_in_alone():
    budget, order = ByteBudget(100), []

    def hold(count, seconds):
        with budget.hold(count):
            order.append(budget.used)
            time.sleep(seconds)

    threads = [threading.Thread(target=hold, args=(count, 0.05)) for count in (60, 60, 30, 500, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0
    assert max(used for used in order if used != 500) <= 100
    assert 500 in order


def test_decoded_bytes_are_those_of_the_frames(tiny_job):
    clip = next(item.clip for item in plan_items(tiny_job) if isinstance(item, Planned))
    assert decoded_bytes(clip) == 20 * 96 * 160 * 3
