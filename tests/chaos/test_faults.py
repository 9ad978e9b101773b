"""Faults of the world: a clear message, and a run that goes on or stops cleanly and is finished by the same command.

Beside these: locks and replaced files in tests/flows/test_driver.py, deaths and deadlines in tests/flows/
test_executors.py, a GPU out of memory in tests/trackers/test_batching.py, damaged files in tests/manifests.
"""

import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline
from flows.locks import PlanConflict, fenced, locked
from flows.progress import Quiet
from manifests.catalog import query
from manifests.verify import verify
from pipeline.plan import build_plan, read_plan
from pipeline.shards import commit_shard, stage_clip, staged_path
from tests.chaos.world import FORK, differing, leftovers, make_corpus, make_job, remembered, tree


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus of three good clips and a missing one, their results, and an undisturbed run."""
    place = tmp_path_factory.mktemp("faults")
    job = make_job(make_corpus(place / "corpus", 4, 6), place / "undisturbed", 2)
    build_plan(job)
    models = driver.fused(job.config)
    cache = place / "cache"
    for shard in read_plan(job, models.stages.digest):
        for planned in shard.clips:
            stage_clip(cache / f"{planned.clip.clip_id}.clip", models.curate(planned, job))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "after_run", lambda *_, **__: None)
        driver.run([job], Inline(), Quiet())
    return job, cache


@pytest.fixture
def job(world, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "after_run", lambda *_, **__: None)
    return world[0].model_copy(update={"out": str(tmp_path / "out")})


def finished(job, world) -> None:
    """The same command again ends as if nothing had been."""
    driver.run([job], Inline(), Quiet())
    out = Path(job.out)
    assert differing(out, tree(Path(world[0].out))) == []
    assert leftovers(out) == []
    assert verify(out, deep=True).problems == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 kB, if this machine lets us mount one."""
    place = tmp_path / "out"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("a disk of a size of its own needs root and the right to mount")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_room_finishes_it(world, job, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 270_000)
    with pytest.raises(
        OSError, match=r"the disk is full: free some space, and run the same command again.*out"
    ):
        driver.run([job], Inline(), Quiet())
    assert not list(small_disk.glob("manifests/shards/*.parquet"))
    assert not list(small_disk.glob(".staging/*/*.tmp"))  # half a clip does not stay in the way
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    finished(job, world)


def test_a_read_only_output_says_so(world, job, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="mounted read-only: mount it for writing"):
        driver.run([job], Inline(), Quiet())
    subprocess.run(["mount", "-o", "remount,rw,size=30m", str(small_disk)], check=True)
    finished(job, world)


def as_nobody(job, said: str) -> None:
    """In a process of its own: root may write everywhere, so it becomes somebody who may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        driver.run([job], Inline(), Quiet())
    except OSError as error:
        if root:
            os.seteuid(0)
        Path(said).write_text(f"{type(error).__name__}: {error}")


def test_no_permission_to_write_says_so(job, tmp_path):
    Path(job.out).mkdir(mode=0o555)
    process = FORK.Process(target=as_nobody, args=(job, str(tmp_path / "said")))
    process.start()
    process.join(60)
    assert (
        "PermissionError: [Errno 13] no permission to write there"
        in (tmp_path / "said").read_text()
    )


def test_a_video_that_is_cut_short_after_the_plan_is_dropped_and_the_rest_is_done(
    world, job, tmp_path
):
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    job = job.model_copy(update={"data_root": str(copy)})
    build_plan(job)
    video = copy / "part_1" / "1_video.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    driver.run([job], Inline(), Quiet())
    rows = query(
        Path(job.out), "SELECT clip_id, reason FROM quarantine WHERE reason <> 'media_missing'"
    )
    assert [(r["reason"], "1_video" in r["clip_id"]) for r in rows] == [("media_unreadable", True)]
    assert query(Path(job.out), "SELECT count(*) AS n FROM referents") == [{"n": 2}]
    assert verify(Path(job.out), deep=True).problems == []


def test_a_staged_clip_of_a_video_that_has_been_replaced_is_made_again(world, job, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    job = job.model_copy(update={"data_root": str(copy)})
    build_plan(job)
    shard = next(read_plan(job, driver.fused(job.config).stages.digest))
    for planned in shard.clips:
        name = f"{planned.clip.clip_id}.clip"
        path = staged_path(Path(job.out), shard, planned.clip.clip_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(world[1] / name, path)
    video = copy / "part_1" / "0_video.mp4"
    shutil.copyfile(copy / "part_1" / "1_video.mp4", video)
    (run,) = driver.run([job], Inline(), Quiet())
    assert run.clips_resumed == 1
    sizes = query(
        Path(job.out), "SELECT source_bytes AS n FROM clips WHERE media_path LIKE '%0_video%'"
    )
    assert sizes == [{"n": video.stat().st_size}]
    (again,) = driver.run([job], Inline(), Quiet())
    assert (again.shards_done, again.clips_done) == (0, 0)


def test_staged_clips_that_outlived_their_commit_are_not_used_by_a_retry(
    world, job, tmp_path, monkeypatch
):
    """A kill between a commit and the removal of its staging folder leaves such."""
    copy = tmp_path / "data"
    shutil.copytree(job.data_root, copy, copy_function=shutil.copy2)
    job, out = job.model_copy(update={"data_root": str(copy)}), Path(job.out)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        driver.run([job], Inline(), Quiet())
    assert len(list(out.glob(".staging/*/*.clip"))) == 4
    shutil.copy2(
        copy / "part_1" / "2_video.mp4", copy / "part_1" / "3_video.mp4"
    )  # the missing one is found
    driver.retry(out, "retryable", Inline(), Quiet())
    assert query(out, "SELECT count(*) AS n FROM quarantine") == [{"n": 0}]
    assert leftovers(out) == []


def test_a_retry_beside_a_run_takes_nothing_back(world, job, monkeypatch):
    driver.run([job], Inline(), Quiet())
    before = tree(Path(job.out))
    with (
        locked(Path(job.out), job.name),
        pytest.raises(PlanConflict, match=f"process {os.getpid()}"),
    ):
        driver.retry(Path(job.out), "retryable", Inline(), Quiet())
    assert tree(Path(job.out)) == before


def test_a_clock_that_goes_backwards_changes_nothing(world, job, monkeypatch):
    start, steps = driver.now(), iter(range(10_000))
    monkeypatch.setattr(driver, "now", lambda: start - timedelta(hours=next(steps)))
    monkeypatch.setattr(time, "time", lambda: 1.0e9 - next(steps))
    finished(job, world)
    (again,) = driver.run([job], Inline(), Quiet())
    assert (again.shards_done, again.clips_done) == (0, 0)


def dies_with_the_lock(job) -> None:
    with locked(Path(job.out), job.name):
        os._exit(1)


def test_the_lock_of_a_dead_run_is_nobodys(world, job):
    process = FORK.Process(target=dies_with_the_lock, args=(job,))
    process.start()
    process.join(60)
    assert (
        Path(job.out) / ".lock" / job.name
    ).read_text() == f"process {process.pid} on {os.uname().nodename}"
    finished(job, world)


def commits_slowly(job, cache, token, inside, go) -> None:
    """The worker of a driver that is gone, in the middle of a commit."""
    remembered(cache)
    shard = next(read_plan(job, driver.fused(job.config).stages.digest))
    for planned in shard.clips:
        shutil.copy2(
            cache / f"{planned.clip.clip_id}.clip",
            staged_path(Path(job.out), shard, planned.clip.clip_id),
        )
    with fenced(job, token):
        inside.set()
        go.wait(30)
        commit_shard(job, shard, driver.fused(job.config).stages.encoder.dim)


def test_a_run_waits_for_the_orphans_of_a_dead_one_and_then_shuts_them_out(world, job, monkeypatch):
    """Seen with Ray: a driver's death drops its lock at once, and its workers write for a second more."""
    build_plan(job)
    with locked(Path(job.out), job.name) as token:
        shard = next(read_plan(job, driver.fused(job.config).stages.digest))
    (Path(job.out) / ".staging" / f"{shard.name}-{shard.hash}").mkdir(parents=True)
    inside, go = FORK.Event(), FORK.Event()
    orphan = FORK.Process(target=commits_slowly, args=(job, world[1], token, inside, go))
    orphan.start()
    assert inside.wait(60)
    monkeypatch.setattr("flows.locks.FENCE_SECONDS", 0.3)
    with pytest.raises(
        PlanConflict, match="a worker of an earlier run of hcstvg-train is still writing"
    ):
        driver.run([job], Inline(), Quiet())
    monkeypatch.undo()
    monkeypatch.setattr(driver, "after_run", lambda *_, **__: None)
    go.set()
    (run,) = driver.run([job], Inline(), Quiet())
    orphan.join(60)
    assert orphan.exitcode == 0
    assert (run.shards_skipped, run.shards_done) == (1, 1)  # what the orphan committed stands
    with (
        pytest.raises(RuntimeError, match="another run of hcstvg-train has taken over"),
        fenced(job, token),
    ):
        pass
    finished(job, world)


def test_a_disk_that_cannot_be_read_stops_the_run_and_names_the_file(world, job, monkeypatch):
    """An error of the data's disk is not the clip's fault: it would otherwise drop everything behind a lost mount."""
    opened, lost = Path.open, [1]

    def slow_and_failing(self, *words, **named):
        if self.suffix == ".mp4":
            time.sleep(0.05)
            if self.name >= "1_video.mp4" and lost:
                raise OSError(5, "Input/output error", str(self))
        return opened(self, *words, **named)

    monkeypatch.setattr(Path, "open", slow_and_failing)
    with pytest.raises(OSError, match=r"Input/output error: '.*1_video\.mp4'"):
        driver.run([job], Inline(), Quiet())
    assert len(list(Path(job.out).glob(".staging/*/*.clip"))) == 1  # what was done is kept
    lost.clear()
    finished(job, world)


def all_staged(job, world):
    """The job's first shard with all of its clips staged, and the file of the last one."""
    build_plan(job)
    shard = next(read_plan(job, driver.fused(job.config).stages.digest))
    for planned in shard.clips:
        path = staged_path(Path(job.out), shard, planned.clip.clip_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(world[1] / f"{planned.clip.clip_id}.clip", path)
    return shard, path


def test_a_commit_whose_worker_dies_after_it_is_done_is_not_done_twice(world, job, monkeypatch):
    """The next worker gets the same commit and finds half of its clips gone."""
    shard, path = all_staged(job, world)
    with locked(Path(job.out), job.name) as token:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda stage: path.unlink())
            driver.work(("commit", job, token, shard))
        before = tree(Path(job.out))
        assert driver.work(("commit", job, token, shard)) == {}
        assert tree(Path(job.out)) == before
        assert leftovers(Path(job.out)) == []
        part = Path(job.out) / "manifests" / "shards" / f"{shard.name}.parquet"
        part.unlink()
        with pytest.raises(
            FileNotFoundError, match=r"\.clip"
        ):  # not committed: its clips are missing in earnest
            driver.work(("commit", job, token, shard))
    finished(job, world)


def test_a_worker_that_is_wrongly_taken_for_dead_commits_in_peace(world, job, monkeypatch):
    """Cut off from Ray's network but not from the disk, it is in the middle of the commit that another is given."""
    shard, _ = all_staged(job, world)
    inside, go = threading.Event(), threading.Event()
    began: list[str] = []

    def slowly(*words):
        began.append(threading.current_thread().name)
        inside.set()
        go.wait(30)
        return commit_shard(*words)

    monkeypatch.setattr("flows.work.commit_shard", slowly)
    with locked(Path(job.out), job.name) as token, ThreadPoolExecutor(2) as pool:
        first = pool.submit(driver.work, ("commit", job, token, shard))
        assert inside.wait(30)
        second = pool.submit(driver.work, ("commit", job, token, shard))
        time.sleep(0.5)
        assert len(began) == 1
        go.set()
        assert first.result(30)["shard"] == shard.name
        assert second.result(30) == {}
    monkeypatch.setattr("flows.work.commit_shard", commit_shard)
    finished(job, world)
