"""Killed before any step that changes the disk, a run ends with the same bytes, and leaves nothing behind."""

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from manifests.verify import verify
from pipeline.plan import build_plan, read_plan
from pipeline.shards import stage_clip
from tests.chaos.world import (
    counts,
    curate,
    differing,
    forked,
    leftovers,
    make_corpus,
    make_job,
    tree,
)

LONG = int(os.environ.get("KILLS", "0"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus of one good clip and a missing one, their results, an undisturbed run, and the steps that it took."""
    from flows.driver import fused

    place = tmp_path_factory.mktemp("chaos")
    job = make_job(make_corpus(place / "corpus", 2, 6), place / "undisturbed", 4)
    build_plan(job)
    models = fused(job.config)
    cache = place / "cache"
    for shard in read_plan(job, models.stages.digest):
        for planned in shard.clips:
            stage_clip(cache / f"{planned.clip.clip_id}.clip", models.curate(planned, job))
    shutil.rmtree(job.out)
    assert forked(curate, job, cache, None, place / "steps") == 0
    return job, cache, (place / "steps").read_text().splitlines()


def test_the_steps_of_a_commit_are_all_there(world):
    _, _, steps = world
    renamed = [
        s for s in steps if s.startswith("os.rename /.staging") and "hcstvg-train-000000-" in s
    ]
    assert len(renamed) == 2 + 1 + 11  # clips, the tar, the parts
    assert renamed[-1].endswith("shards.parquet")
    assert any(s.startswith("os.rmdir") for s in steps)


def test_killed_before_any_step_it_ends_with_the_same_bytes(world, tmp_path):
    """One run after another is killed one step further on, each from nothing; then each is finished."""
    job, cache, steps = world
    whole, rows = tree(Path(job.out)), counts(Path(job.out))
    commit = next(n for n, s in enumerate(steps) if s.endswith("shard.tar"))
    ends = next(n for n, s in enumerate(steps) if s.startswith("os.rmdir"))
    inside = [n for n in range(commit, ends + 1) if not steps[n].startswith("os.mkdir")]
    others = [n for n in range(len(steps)) if n not in inside]
    chosen = range(len(steps)) if LONG else [*inside, *random.Random(0).sample(others, 3)]
    for at in sorted(chosen):
        mine = job.model_copy(update={"out": str(tmp_path / f"{at}")})
        assert forked(curate, mine, cache, at, None) == -signal.SIGKILL
        assert forked(curate, mine, cache, None, None) == 0
        out = Path(mine.out)
        assert differing(out, whole) == [], steps[at]
        assert leftovers(out) == [], steps[at]
        if at in (commit, ends):
            assert counts(out) == rows
            assert verify(out, deep=True).problems == []
        shutil.rmtree(out)


def test_killed_again_and_again_each_time_one_step_later(world, tmp_path):
    """The same output all the time: what a kill leaves is what the next run begins with."""
    job, cache, steps = world
    mine = job.model_copy(update={"out": str(tmp_path / "out")})
    killed = 0
    for at in range(0, len(steps), 1 if LONG else 6):
        code = forked(curate, mine, cache, at, None)
        killed += code == -signal.SIGKILL
        if code == 0:
            break
    assert killed > 2
    assert forked(curate, mine, cache, None, None) == 0
    assert differing(Path(mine.out), tree(Path(job.out))) == []
    assert counts(Path(mine.out)) == counts(Path(job.out))
    assert leftovers(Path(mine.out)) == []
