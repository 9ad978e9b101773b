"""The folder of a run: written whole whatever becomes of the run, readable while it goes on, and never in its way."""

import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flows import driver, runlog
from flows.executors import Inline
from flows.facts import gpus
from flows.follow import follow, last_events, last_runs, lines, view
from flows.jobs import make_jobs
from flows.locks import PlanConflict, locked
from flows.progress import Quiet
from flows.runlog import Stage, read_runs
from manifests.catalog import query
from manifests.verify import verify
from pipeline.plan import Job
from pipeline.presets import ShardConfig, configure
from pipeline.shards import withdraw
from schemas.records import Quarantined

SPARROW = Path(sys.executable).parent / "sparrow"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tiny_root, tmp_path_factory) -> Job:
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    job = make_jobs("hcstvg", tiny_root, tmp_path_factory.mktemp("runlog") / "out", config)[0]
    driver.run([job], Inline(), Quiet())
    return job


@pytest.fixture
def finished(ran, tmp_path) -> tuple[Job, Path]:
    """A finished job of one's own, and the folder of its run."""
    out = shutil.copytree(ran.out, tmp_path / "copy")
    return ran.model_copy(update={"out": str(out)}), next((out / "runs").iterdir())


def test_a_run_leaves_config_versions_models_timings_and_memory(finished):
    job, folder = finished
    facts, summary = (
        json.loads((folder / name).read_text()) for name in ("run.json", "summary.json")
    )
    assert facts["jobs"][job.name]["job"]["config"] == job.config.model_dump(mode="json")
    assert facts["jobs"][job.name]["models"] == driver.fused(job.config).stages.versions
    assert facts["versions"]["numpy"] == np.__version__
    assert (facts["state"], facts["host"]["cores"]) == ("completed", len(os.sched_getaffinity(0)))
    assert summary["jobs"][job.name] == {
        "clips": 6,
        "clips_done": 6,
        "clips_resumed": 0,
        "shards": 3,
        "shards_done": 3,
        "shards_skipped": 0,
    }
    track = summary["stages"]["track"]
    assert 0 < track["p50"] <= track["p95"] <= track["seconds"]
    assert summary["stages"]["decode"]["frames"] == 6 * 20  # the missing one was tried
    assert summary["stages"]["decode"]["bytes"] > 0
    (host,) = summary["hosts"].values()
    assert host["workers"] == 1
    assert host["peak_rss"] == pytest.approx(
        summary["driver_peak_rss"], rel=0.5
    )  # inline: the same process
    assert read_lines(folder / "samples.jsonl")[-1]["clips_done"] == 6
    assert verify(Path(job.out), deep=True).problems == []


def test_the_log_says_run_shard_clip_and_stage(finished):
    job, folder = finished
    events = read_lines(folder / "log.jsonl")
    assert [e["event"] for e in events if e["event"] in ("start", "end")] == ["start", "end"]
    assert {e["run"] for e in events} == {folder.name}
    clips = [e for e in events if e["event"] == "clip"]
    assert len({e["clip"] for e in clips}) == 6
    assert {e["shard"] for e in clips} == {e["shard"] for e in events if e["event"] == "commit"}
    assert all(e["seconds"]["track"] > 0 for e in clips if e["samples"])
    (dropped,) = [e for e in events if e["event"] == "dropped"]
    assert (dropped["reason"], dropped["level"]) == ("media_missing", "warning")
    assert "3_video" in dropped["clip"]
    assert dropped["shard"].startswith(job.name)


def test_a_second_run_has_a_folder_of_its_own_that_says_all_was_done(finished):
    job, folder = finished
    driver.run([job], Inline(), Quiet())
    first, second = read_runs(Path(job.out))
    assert first["id"] == folder.name != second["id"]
    assert second["jobs"][job.name]["shards_skipped"] == 3
    assert lines(second)[0]["clips_done"] == 6


class Breaks(Inline):
    """Fails in the middle, in the way that is asked for."""

    def __init__(self, error: BaseException):
        super().__init__()
        self.error = error

    def run(self, work, tasks, done):
        def breaking(outcome):
            followed = done(outcome)
            if outcome.task.payload[0] == "commit":
                raise self.error
            return followed

        super().run(work, tasks, breaking)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (RuntimeError("no room"), "failed", "RuntimeError: no room"),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
def test_a_run_that_breaks_says_how(tiny_job, error, state, said):
    with pytest.raises(type(error)):
        driver.run([tiny_job], Breaks(error), Quiet())
    (run,) = read_runs(Path(tiny_job.out))
    assert (run["state"], run["error"]) == (state, said)
    assert run["jobs"][tiny_job.name]["shards_done"] == 1
    assert last_events(Path(run["folder"]))[-1]["event"] == "end"


def test_planning_is_seen_while_it_lasts_and_its_seconds_are_kept(tiny_job, monkeypatch):
    seen, plan = [], driver.build_plan

    def slow(job, **named):
        named["tick"](5)
        time.sleep(0.2)
        seen.extend(read_runs(Path(job.out)))
        return plan(job, **named)

    monkeypatch.setattr(runlog, "EVERY", 0.02)
    monkeypatch.setattr(driver, "build_plan", slow)
    driver.run([tiny_job], Inline(), Quiet())
    (before,) = seen
    assert (before["state"], before["phase"], before["jobs"][tiny_job.name]["clips"]) == (
        "running",
        "planning",
        5,
    )
    assert before["elapsed"] == pytest.approx(before["phases"]["planning"], abs=0.05)
    said = Console(width=200, file=io.StringIO())
    said.print(view([before]))
    assert "0 of 5" in (text := said.file.getvalue())
    assert "planning for 0 s" in text
    (after,) = read_runs(Path(tiny_job.out))
    last = {"run": after["id"], "run_state": "completed", "planning": after["phases"]["planning"]}
    assert last_runs(Path(tiny_job.out)) == {tiny_job.name: last}
    assert (after["state"], list(after["phases"])) == (
        "completed",
        ["planning", "curating", "reporting"],
    )
    assert after["phases"]["planning"] >= 0.2
    assert sum(after["phases"].values()) == pytest.approx(after["elapsed"], abs=0.05)
    (row,) = lines(after)
    assert row["clips_per_second"] == pytest.approx(6 / after["phases"]["curating"], rel=0.01)
    events = read_lines(Path(after["folder"]) / "log.jsonl")
    assert [e["phase"] for e in events if e["event"] == "phase"] == ["curating", "reporting"]


@pytest.fixture
def own_root(tiny_root, tmp_path) -> Path:
    """A copy of the tiny dataset, to be spoilt."""
    return Path(shutil.copytree(tiny_root, tmp_path / "data"))


def test_the_rows_of_a_run_in_the_runs_table_are_named_by_its_folder(own_root, tmp_path):
    annotations = own_root / "anno_v2"
    first = dict([next(iter(json.loads((annotations / "train_v2.json").read_text()).items()))])
    for name in ("train_v2.json", "val_v2.json"):
        (annotations / name).write_text(json.dumps(first))
    out = tmp_path / "out"
    driver.run(
        make_jobs("hcstvg", own_root, out, configure("lite"), splits=["train", "val"]),
        Inline(),
        Quiet(),
    )
    (run,) = read_runs(out)
    rows = query(out, "SELECT run_id, split FROM runs ORDER BY split")
    assert [(row["run_id"], row["split"]) for row in rows] == [
        (run["id"], "train"),
        (run["id"], "val"),
    ]
    assert verify(out).problems == []


def test_a_crash_while_planning_is_told_by_the_folder(own_root, tmp_path):
    job = make_jobs("hcstvg", own_root, tmp_path / "out", configure("lite"))[0]
    annotations = own_root / "anno_v2" / "train_v2.json"
    annotations.write_text(annotations.read_text()[:-1])
    with pytest.raises(Quarantined):
        driver.run([job], Inline(), Quiet())
    (run,) = read_runs(Path(job.out))
    assert (run["state"], run["phase"]) == ("failed", "planning")
    assert run["error"].startswith(
        "Quarantined: anno_v2/train_v2.json: not a JSON object: the file ends early"
    )


def test_a_run_that_is_refused_leaves_no_folder(tiny_job):
    with (
        locked(Path(tiny_job.out), tiny_job.name),
        pytest.raises(PlanConflict, match="is being worked on by"),
    ):
        driver.run([tiny_job], Inline(), Quiet())
    assert not (Path(tiny_job.out) / "runs").exists()


def test_a_run_whose_process_is_gone_is_lost(finished):
    job, folder = finished
    facts = json.loads((folder / "run.json").read_text())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / "run.json").write_text(json.dumps(facts | {"state": "running", "pid": dead.pid}))
    assert [run["state"] for run in read_runs(Path(job.out))] == ["lost"]
    (folder / "run.json").write_text(json.dumps(facts | {"state": "running"}))
    assert [run["state"] for run in read_runs(Path(job.out))] == ["running"]  # this process
    elsewhere = facts | {"state": "running", "host": facts["host"] | {"name": "another"}}
    (folder / "run.json").write_text(json.dumps(elsewhere))
    assert [run["state"] for run in read_runs(Path(job.out))] == ["running"]
    os.utime(folder / "summary.json", (1, 1))
    assert [run["state"] for run in read_runs(Path(job.out))] == ["lost"]


def test_follow_watches_from_another_process_until_the_run_ends(finished, monkeypatch):
    monkeypatch.setattr(
        runlog, "EVERY", 600
    )  # no sample while the watcher starts, however long that takes
    job, folder = finished
    shutil.rmtree(folder)
    out = Path(job.out)
    withdraw(out, f"{job.name}-000002")
    watchers = []

    class Watched(Inline):
        def run(self, work, tasks, done):
            def seen(outcome):
                if not watchers:
                    command = [SPARROW, "status", str(out), "--follow", "--json"]
                    watchers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
                    watchers[0].first = watchers[
                        0
                    ].stdout.readline()  # it has looked: the run is still at its first
                return done(outcome)

            super().run(work, tasks, seen)

    driver.run([job], Watched(), Quiet())
    rest = watchers[0].communicate(timeout=30)[0].splitlines()
    (before,), (after,) = json.loads(watchers[0].first), json.loads(rest[-1])
    assert watchers[0].returncode == 0
    assert (before["state"], before["clips_done"], before["shards_done"]) == (
        "running",
        0,
        0,
    )  # of the first sample
    assert (after["state"], after["clips_done"], after["shards_done"]) == ("completed", 6, 3)


def test_follow_without_a_terminal_prints_plain_lines_and_without_a_run_says_so(
    finished, tmp_path, capsys
):
    job, _ = finished
    follow(Path(job.out))
    assert "6 of 6 clips, 3 of 3 shards, 1 dropped, completed" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(FileNotFoundError, match="holds no run"):
        follow(tmp_path / "empty")


def test_a_log_that_cannot_be_written_stops_nothing(finished, monkeypatch):
    job, folder = finished
    shutil.rmtree(folder)
    withdraw(Path(job.out), f"{job.name}-000001")
    real = Path.open

    def full(self, *args, **kwargs):
        if self.name == "log.jsonl":
            raise OSError(28, "No space left on device", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    driver.run([job], Inline(), Quiet())
    (run,) = read_runs(Path(job.out))
    assert (run["state"], run["jobs"][job.name]["shards_done"]) == ("completed", 1)
    assert run["lost_lines"] >= 4  # start, a clip, a commit, the end


def test_percentiles_are_exact_while_few_and_near_when_many(monkeypatch):
    monkeypatch.setattr(runlog, "KEPT", 500)
    draw, few, many = random.Random(0), Stage(), Stage()
    for n in range(100):
        few.add(float(n), 1, 0, draw)
    for n in range(20_000):
        many.add(n / 20_000, 2, 3, draw)
    assert (few.as_dict()["p50"], few.as_dict()["p95"]) == (49.0, 94.0)
    told = many.as_dict()
    assert (told["clips"], told["frames"], told["bytes"], len(many.kept)) == (
        20_000,
        40_000,
        60_000,
        500,
    )
    assert told["p50"] == pytest.approx(0.5, abs=0.08)
    assert told["p95"] == pytest.approx(0.95, abs=0.04)


def test_gpus_are_what_nvidia_smi_says_and_a_broken_driver_is_none(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559, 1024, 37'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpus() == [
        {
            "name": "NVIDIA H100",
            "driver_version": "570.1",
            "memory.total": "81559",
            "memory.used": "1024",
            "utilization.gpu": "37",
        }
    ]
    tool.write_text("#!/bin/sh\necho 'cannot talk to the driver'\nexit 9\n")
    assert gpus() == []
