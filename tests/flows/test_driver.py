"""The driver: runs are idempotent, resumable, refuse to overwrite, and end with the same bytes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flows import driver
from flows.executors import Inline, Outcome, Task
from flows.progress import Quiet
from manifests.catalog import query
from manifests.verify import verify
from pipeline.corpora import Take
from pipeline.plan import build_plan, read_plan
from pipeline.presets import configure
from schemas.records import Reason
from tests.conftest import make_tiny_job


def tree(out: Path) -> dict[str, bytes]:
    """Every byte that must be reproducible: shards, parts, plan. Timings and runs tell of one run, not of the data."""
    files = [p for p in out.rglob("*") if p.suffix in (".tar", ".parquet")]
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in files
        if p.parent.name not in ("timings", "runs", "plan")
    }


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    """An undisturbed run's output, never changed."""
    job = make_tiny_job(tiny_root, tmp_path_factory.mktemp("whole") / "out")
    driver.run([job], Inline(), Quiet())
    return Path(job.out)


@pytest.fixture
def finished(tiny_job, whole):
    """A finished job of the test's own: a copy."""
    shutil.copytree(whole, tiny_job.out)
    return tiny_job


def test_a_run_commits_every_shard_and_says_what_it_dropped(finished):
    out = Path(finished.out)
    report = verify(out, deep=True)
    assert (report.shards, report.samples, report.problems) == (3, 5, [])
    rows = query(out, "SELECT reason, count(*) AS n FROM quarantine GROUP BY ALL ORDER BY ALL")
    assert rows == [{"reason": "malformed_row", "n": 1}, {"reason": "media_missing", "n": 1}]
    (run,) = query(out, "SELECT * FROM runs")
    assert (run["status"], run["shards_done"], run["clips_done"], run["synthetic"]) == (
        "completed",
        3,
        6,
        False,
    )
    assert not list((out / ".staging").iterdir())


def test_a_second_run_does_nothing(finished):
    out = Path(finished.out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.tar")}
    (again,) = driver.run([finished], Inline(), Quiet())
    assert (again.shards_skipped, again.clips_done, again.shards_done) == (3, 0, 0)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.tar")} == before


class Killed(BaseException):
    """A kill, as seen from inside."""


class Dies(Inline):
    """Stops dead after n tasks, without a word to anybody."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def run(self, work, tasks, done):
        left = [self.after]

        def counting(outcome: Outcome) -> list[Task]:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return done(outcome)

        super().run(work, tasks, counting)


@pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
def test_a_run_that_was_killed_resumes_to_the_same_bytes(tiny_job, whole, after):
    with pytest.raises(Killed):
        driver.run([tiny_job], Dies(after), Quiet())
    (again,) = driver.run([tiny_job], Inline(), Quiet())
    assert again.clips_done + again.clips_resumed + 2 * again.shards_skipped >= 6
    assert again.clips_done <= 6 - min(after, 1)  # finished clips are not done twice
    assert tree(Path(tiny_job.out)) == tree(whole)
    assert verify(Path(tiny_job.out), deep=True).problems == []


def test_a_changed_source_file_re_curates_its_shard_only(finished, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(finished.data_root, copy, copy_function=shutil.copy2)
    job = finished.model_copy(update={"data_root": str(copy)})
    os.utime(copy / "part_1" / "0_video.mp4", ns=(1, 1))
    (again,) = driver.run([job], Inline(), Quiet())
    assert (again.shards_skipped, again.shards_done) == (2, 1)
    assert verify(Path(job.out)).problems == []


@pytest.mark.parametrize(
    "other", [{"take": Take(max_clips=2)}, {"config": configure("lite", ["select.k=3"])}]
)
def test_another_plan_or_config_does_not_overwrite_unasked(finished, other):
    before = tree(Path(finished.out))
    job = finished.model_copy(update=other)
    with pytest.raises(driver.PlanConflict, match="--replan"):
        driver.run([job], Inline(), Quiet())
    assert tree(Path(finished.out)) == before


def test_replan_replaces_and_leaves_nothing_behind(finished):
    job = finished.model_copy(update={"take": Take(max_clips=2)})
    driver.run([job], Inline(), Quiet(), replan=True)
    report = verify(Path(job.out), deep=True)
    assert (report.shards, report.problems) == (1, [])


def test_two_runs_at_once_are_refused_with_the_holders_name(tiny_job):
    held = driver.locked(Path(tiny_job.out), tiny_job.name)
    with held, pytest.raises(driver.PlanConflict, match=f"process {os.getpid()}"):
        driver.run([tiny_job], Inline(), Quiet())
    driver.run([tiny_job], Inline(), Quiet())  # the lock went with its holder


def test_retry_picks_up_a_video_that_has_come_back(finished, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(finished.data_root, copy, copy_function=shutil.copy2)
    job = finished.model_copy(update={"data_root": str(copy)})
    driver.run([job], Inline(), Quiet(), replan=True)  # the plan says where the data are
    shutil.copy2(copy / "part_1" / "2_video.mp4", copy / "part_1" / "3_video.mp4")
    (again,) = driver.retry(Path(job.out), "retryable", Inline(), Quiet())
    assert (again.shards_skipped, again.shards_done) == (2, 1)
    reasons = query(Path(job.out), "SELECT reason FROM quarantine")
    assert reasons == [{"reason": "malformed_row"}]
    assert verify(Path(job.out), deep=True).problems == []


@pytest.mark.parametrize(
    ("kind", "reason"), [("died", Reason.WORKER_DIED), ("deadline", Reason.DEADLINE)]
)
def test_a_clip_that_is_given_up_is_a_row_and_stops_nothing(tiny_job, kind, reason):
    class Loses(Inline):
        def run(self, work, tasks, done):
            def losing(outcome: Outcome) -> list[Task]:
                if "0_video" in outcome.task.label:
                    outcome = replace(outcome, kind=kind, value=None, message="gone")
                return done(outcome)

            super().run(work, tasks, losing)

    driver.run([tiny_job], Loses(), Quiet())
    (row,) = query(Path(tiny_job.out), f"SELECT * FROM quarantine WHERE reason = '{reason}'")
    assert row["stage"] == "worker"
    assert row["retryable"]
    assert verify(Path(tiny_job.out), deep=True).problems == []


def test_staged_clips_are_counted_for_status(tiny_job):
    with pytest.raises(Killed):
        driver.run([tiny_job], Dies(1), Quiet())
    assert driver.staged_clips(Path(tiny_job.out)) == {"hcstvg-train-000000": 2}
    build_plan(tiny_job)
    assert len(list(read_plan(tiny_job, ""))) == 3
