"""Plan: caps are deterministic samples, shards are fixed by annotations and config alone, a saved plan reads back."""

import pytest

from pipeline.corpora import CORPORA, PAPER_COUNTS, PAPER_TOTAL, Take, take
from pipeline.plan import Job, build_plan, plan_identity, plan_items, read_plan, read_plan_header
from pipeline.presets import ShardConfig
from schemas.records import Planned, Reason, Rejected


def ids(job: Job) -> list[str]:
    return [
        r.referent_id
        for item in plan_items(job)
        if isinstance(item, Planned)
        for r in item.referents
    ]


def with_take(job: Job, **caps: object) -> Job:
    return job.model_copy(update={"take": Take(**caps)})


def test_saved_plan_reads_back_as_planned(tiny_job):
    counts = build_plan(tiny_job)
    shards = list(read_plan(tiny_job, "stages"))
    assert [item for shard in shards for item in shard.items] == list(plan_items(tiny_job))
    assert (counts.clips, counts.referents, counts.rejected, counts.shards) == (6, 6, 1, 3)
    assert [s.name for s in shards] == [f"hcstvg-train-{i:06d}" for i in range(3)]
    assert read_plan_header(tiny_job.plan_path) == (tiny_job, plan_identity(tiny_job), counts)


def test_rejected_rows_belong_to_a_shard(tiny_job):
    build_plan(tiny_job)
    rejected = [i for s in read_plan(tiny_job, "") for i in s.items if isinstance(i, Rejected)]
    assert [(r.item, r.reason) for r in rejected] == [("5_video.mp4", Reason.MALFORMED_ROW)]


def test_limit_is_a_deterministic_sample_and_nested(tiny_job):
    three, four = ids(with_take(tiny_job, max_clips=3)), ids(with_take(tiny_job, max_clips=4))
    assert three == ids(with_take(tiny_job, max_clips=3))
    assert len(three) == 3
    assert set(three) < set(four) < set(ids(tiny_job))
    assert (
        three != ids(tiny_job)[:3] or four != ids(tiny_job)[:4]
    )  # a sample, not the head of the file


def test_another_seed_is_another_sample(tiny_job):
    samples = {tuple(ids(with_take(tiny_job, max_clips=2, seed=seed))) for seed in range(6)}
    assert len(samples) > 1


def test_shards_close_by_count_and_by_bytes(tiny_job):
    by_bytes = tiny_job.config.model_copy(
        update={"shard": ShardConfig(max_referents=100, max_bytes=100_000)}
    )
    assert build_plan(tiny_job.model_copy(update={"config": by_bytes}), save=False).shards == 6
    assert build_plan(tiny_job, save=False).shards == 3


def test_shard_hash_changes_with_config_and_rows_only(tiny_job):
    build_plan(tiny_job)
    base = [s.hash for s in read_plan(tiny_job, "stages 1")]
    assert base == [s.hash for s in read_plan(tiny_job, "stages 1")]
    assert not set(base) & {s.hash for s in read_plan(tiny_job, "stages 2")}
    moved = tiny_job.model_copy(update={"synthetic": True})
    assert base == [s.hash for s in read_plan(moved, "stages 1")]


def test_plan_identity_follows_the_annotation_file(tiny_job, tmp_path):
    import os
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_job.data_root, copy)
    job = tiny_job.model_copy(update={"data_root": str(copy)})
    before = plan_identity(job)
    assert before == plan_identity(job)
    os.utime(copy / "anno_v2" / "train_v2.json", ns=(1, 1))
    assert plan_identity(job) != before


def test_paper_corpus_names_every_source_and_adds_up():
    assert set(CORPORA["paper"]) == set(PAPER_COUNTS)
    assert sum(c.clips for c in PAPER_COUNTS.values()) == PAPER_TOTAL.clips == 30_646
    assert sum(c.qa for c in PAPER_COUNTS.values()) == PAPER_TOTAL.qa == 45_231


def test_unknown_corpus_names_the_choices():
    with pytest.raises(ValueError, match="choose one of all, paper"):
        take("everything", "lasot")
