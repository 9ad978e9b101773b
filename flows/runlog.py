"""The folder of a run, `<out>/runs/<id>/`: what it ran with, what happened, how long every stage took, what it used.

    run.json       at the start, once planned, and at the end: jobs with resolved configs, versions, models, host, state
    log.jsonl      an event a line: phases, clips with the seconds of their stages, dropped referents, commits, the end
    samples.jsonl  a line every few seconds: progress, memory of the driver, its host's GPUs
    summary.json   as of the last sample: progress, seconds of planning, curating and reporting, p50 and p95 of every
                   stage, frames/s, bytes, peak memory by host
    worker-*.log   what a worker process and its libraries printed; only if they did

The id of the folder is `run_id` of the rows (one for each source and split) that the run leaves in `manifests/runs`. A
run that is refused because another one holds the output leaves no folder.

Plain files, no server. Nothing reads them to decide anything (the manifests know what is done), so the folder may be
deleted at any time, and a line that cannot be written (a full disk) is counted and never stops a run.
"""

import json
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.facts import gpus, host, versions
from flows.metrics import count
from flows.progress import Progress
from flows.worker_log import remove_empty
from pipeline.curate import ClipResult
from pipeline.plan import Counts, Job
from pipeline.sample import CODE_VERSION

if TYPE_CHECKING:
    from flows.driver import Run
    from flows.executors import Executor, Outcome

EVERY = 5.0
"""Seconds between samples."""
LOST = 60.0
"""Seconds without a sample after which a run on another machine counts as gone."""
KEPT = 65_536
"""Durations kept of each stage: exact percentiles up to here, of a uniform sample beyond."""


# --- in a worker ---------------------------------------------------------------------------------------------------


def account(result: ClipResult) -> dict[str, Any]:
    """What a worker tells the driver of a clip beside its files: stages, what was dropped, its own memory. Small."""
    stages = [
        [r["stage"], round(r["seconds"], 6), r["frames"], r["bytes"], r["note"]]
        for r in result.timings
    ]
    names = ("stage", "reason", "referent_id", "message")
    dropped = [{name: str(row[name] or "")[:300] for name in names} for row in result.quarantine]
    return {"stages": stages, "dropped": dropped, **vitals()}


def vitals() -> dict[str, Any]:
    """Host, process and peak memory (bytes) of this process; of its GPU too, where torch has used one."""
    torch = sys.modules.get("torch")
    gpu = (
        torch.cuda.max_memory_allocated()
        if torch and torch.cuda.is_available() and torch.cuda.is_initialized()
        else 0
    )
    return {"host": socket.gethostname(), "pid": os.getpid(), "rss": _memory("VmHWM"), "gpu": gpu}


def _memory(name: str) -> int:
    """A line of /proc/self/status, in bytes: VmRSS is now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def new_id(began: datetime | None = None) -> str:
    """The name of a run that has begun then, or now."""
    return f"{began or datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


# --- in the driver -------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """One stage over all clips."""

    n: int = 0
    seconds: float = 0.0
    frames: int = 0
    bytes: int = 0
    kept: list[float] = field(default_factory=list)

    def add(self, seconds: float, frames: int, size: int, draw: random.Random) -> None:
        self.n, self.seconds = self.n + 1, self.seconds + seconds
        self.frames, self.bytes = self.frames + frames, self.bytes + size
        if len(self.kept) < KEPT:
            self.kept.append(seconds)
        elif (place := draw.randrange(self.n)) < KEPT:
            self.kept[place] = seconds

    def as_dict(self) -> dict[str, float | int | None]:
        """p50 and p95 are of seconds per clip; nearest rank."""
        ranked = sorted(self.kept)
        p50, p95 = (round(ranked[int(q * (len(ranked) - 1))], 6) for q in (0.5, 0.95))
        rate = round(self.frames / self.seconds, 1) if self.seconds and self.frames else None
        return {
            "clips": self.n,
            "seconds": round(self.seconds, 3),
            "p50": p50,
            "p95": p95,
            "frames": self.frames,
            "frames_per_second": rate,
            "bytes": self.bytes,
        }


class RunLog:
    """Writes one folder. `runs`: the driver's live counts, by job name, all of one output."""

    def __init__(self, out: Path, runs: Mapping[str, "Run"], executor: "Executor"):
        began = datetime.now(UTC)
        self.id = new_id(began)
        self.folder, self.runs, self.start = out / "runs" / self.id, runs, time.monotonic()
        self.stages: dict[str, Stage] = {}
        self.hosts: dict[str, dict[str, Any]] = {}
        self.dropped = self.lost_lines = 0
        self._phases: tuple[dict[str, float], float] = (
            {"planning": 0.0},
            self.start,
        )  # seconds; start of the last
        self._lock, self._stop, self._draw = threading.Lock(), threading.Event(), random.Random(0)
        self.facts: dict[str, Any] = {
            "id": self.id,
            "state": "running",
            "started": began.isoformat(),
            "ended": None,
            "error": None,
            "pid": os.getpid(),
            "command": sys.argv,
            "executor": executor.name,
            "workers": executor.workers,
            "code_version": CODE_VERSION,
            "versions": versions(),
            "host": host(),
            "jobs": {
                n: {
                    "job": r.job.model_dump(mode="json"),
                    "config_hash": r.job.config.digest(),
                    "models": None,
                }
                for n, r in runs.items()
            },
        }
        self.folder.mkdir(parents=True)
        self._thread = threading.Thread(target=self._watch, name="runlog", daemon=True)

    def open(self) -> None:
        """Write down what is known before any work, and begin to sample."""
        self._replace("run.json", self.facts)
        self.event("start", jobs=list(self.runs))
        self._sample()
        self._thread.start()

    def planned(self, models: Callable[[Any], dict[str, str]]) -> None:
        """All jobs have their plans, and the models have been found: the work begins."""
        for name, run in self.runs.items():
            self.facts["jobs"][name]["models"] = models(run.job)
        self._replace("run.json", self.facts)
        self.enter("curating")

    def enter(self, phase: str) -> None:
        """curating or reporting; a run begins with planning."""
        self._phases = self.phases() | {phase: 0.0}, time.monotonic()
        self.event("phase", phase=phase, clips=sum(run.counts.clips for run in self.runs.values()))
        self._sample()

    def phases(self) -> dict[str, float]:
        """Seconds of each phase, the last of which goes on."""
        done, began = self._phases
        return done | {list(done)[-1]: round(time.monotonic() - began, 3)}

    def close(self, state: str, error: str | None = None) -> None:
        """state: completed, stopped or failed."""
        self._stop.set()
        self._thread.join()
        self.facts |= {"state": state, "ended": datetime.now(UTC).isoformat(), "error": error}
        self.event("end", level="error" if state == "failed" else "info", state=state, error=error)
        self._sample()
        self._replace("run.json", self.facts)

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(),
            "run": self.id,
            "level": level,
            "event": event,
            **fields,
        }
        self._append("log.jsonl", line)

    def saw(self, outcome: "Outcome") -> None:
        """Log a finished task. Called by the driver, in order of completion."""
        kind, job, item, shard, *_ = outcome.task.payload
        value = outcome.value or {}
        if kind == "commit":
            sizes = {k: value.get(k) for k in ("bytes", "n_samples", "n_quarantined")}
            self.event(
                "commit",
                level="info" if outcome.kind == "ok" else "error",
                job=job.name,
                shard=shard.name,
                stage="commit",
                **sizes,
            )
            return
        planned, path = item
        where = {
            "job": job.name,
            "shard": Path(path).parent.name.rsplit("-", 1)[0],
            "clip": planned.clip.clip_id,
        }
        if outcome.kind != "ok":
            with self._lock:
                self.dropped += len(planned.referents)
            self.event(
                "given up",
                level="error",
                **where,
                stage="worker",
                reason=outcome.kind,
                message=outcome.message,
                attempt=outcome.task.attempt,
            )
            return
        stages, dropped = value.get("stages", []), value.get("dropped", [])
        with self._lock:
            self.dropped += len(dropped)
            for stage, seconds, frames, size, note in stages:
                if not note:
                    self.stages.setdefault(stage, Stage()).add(seconds, frames, size, self._draw)
            self._worker(value)
        self.event(
            "clip",
            **where,
            samples=value.get("samples"),
            bytes=value.get("bytes"),
            pid=value.get("pid"),
            host=value.get("host"),
            seconds={s[0]: s[1] for s in stages if not s[4]},
        )
        for stage, *_, note in stages:
            if note:
                self.event(stage, level="warning", **where, stage=stage, message=note)
        for row in dropped:
            self.event("dropped", level="warning", **where, **row)

    def _worker(self, value: dict) -> None:
        if "pid" not in value:
            return
        entry = self.hosts.setdefault(value["host"], {"pids": set(), "peak_rss": 0, "peak_gpu": 0})
        entry["pids"].add(value["pid"])
        entry["peak_rss"] = max(entry["peak_rss"], value["rss"])
        entry["peak_gpu"] = max(entry["peak_gpu"], value["gpu"])

    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds. Memory in bytes: the largest worker of each host, and the driver."""
        with self._lock:
            stages = {name: stage.as_dict() for name, stage in self.stages.items()}
            peaks = {h: {k: e[k] for k in ("peak_rss", "peak_gpu")} for h, e in self.hosts.items()}
            hosts = {
                h: {"workers": len(self.hosts[h]["pids"]), **peak} for h, peak in peaks.items()
            }
            dropped = self.dropped
        phases = self.phases()
        return {
            "id": self.id,
            "state": self.facts["state"],
            "time": datetime.now(UTC).isoformat(),
            "elapsed": round(time.monotonic() - self.start, 3),
            "phase": list(phases)[-1],
            "phases": phases,
            "jobs": self.progress(),
            "dropped": dropped,
            "stages": stages,
            "hosts": hosts,
            "driver_peak_rss": _memory("VmHWM"),
            "lost_lines": self.lost_lines,
        }

    def progress(self) -> dict[str, dict[str, int]]:
        """Per job: clips and shards planned so far, done by this run, and found done (clips: in unfinished shards)."""
        return {
            name: {
                "clips": r.counts.clips,
                "clips_done": r.clips_done,
                "clips_resumed": r.clips_resumed,
                "shards": r.counts.shards,
                "shards_done": r.shards_done,
                "shards_skipped": r.shards_skipped,
            }
            for name, r in list(self.runs.items())
        }

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            self._sample()

    def _sample(self) -> None:
        summary = self.summary()
        sums = {
            k: sum(job[k] for job in summary["jobs"].values())
            for k in ("clips_done", "shards_done")
        }
        line = {
            "time": summary["time"],
            "elapsed": summary["elapsed"],
            **sums,
            "driver_rss": _memory("VmRSS"),
        }
        self._append("samples.jsonl", line | ({"gpus": found} if (found := gpus()) else {}))
        self._replace("summary.json", summary)

    def _append(self, name: str, line: dict) -> None:
        try:
            with self._lock, (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError:
            self.lost_lines += 1

    def _replace(self, name: str, value: dict) -> None:
        temporary = self.folder / f".{name}.tmp"
        try:
            temporary.write_text(
                json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            os.replace(temporary, self.folder / name)
        except OSError:
            self.lost_lines += 1


class Recording:
    """The folders of one run of the driver, one in each output. saw: takes each finished task."""

    def __init__(self, runs: Mapping[str, "Run"], executor: "Executor"):
        self.logs: dict[str, RunLog] = {}
        for out in {run.job.out: None for run in runs.values()}:
            here = {name: run for name, run in runs.items() if run.job.out == out}
            self.logs[out] = RunLog(Path(out), here, executor)
        first = next(iter(self.logs.values()), None)
        if (
            first is not None
        ):  # workers serve all outputs of a run; there is hardly ever more than one
            executor.logs = str(first.folder.absolute())

    def saw(self, outcome: "Outcome") -> None:
        count(outcome)
        self.logs[outcome.task.payload[1].out].saw(outcome)

    def planned(self, models: Callable[[Any], dict[str, str]]) -> None:
        """models: a job -> name and version (for networks, with the hash of the weights) of each of its stages"""
        for log in self.logs.values():
            log.planned(models)

    def enter(self, phase: str) -> None:
        for log in self.logs.values():
            log.enter(phase)

    def id(self, job: Job) -> str:
        """The name of the folder in the job's output, which is the `run_id` of its row in `manifests/runs`."""
        return self.logs[job.out].id


@contextmanager
def recording(runs: Mapping[str, "Run"], executor: "Executor") -> Iterator[Recording]:
    """`with recording(runs, executor) as record: plan; record.planned(models); ...`: what is raised inside is the end
    that the folders tell of."""
    record = Recording(runs, executor)
    state: str = "stopped"
    error: str | None = None

    def close(log: RunLog) -> None:
        log.close(state, error)
        remove_empty(log.folder)

    with ExitStack() as stack:
        for log in record.logs.values():
            log.open()
            stack.callback(close, log)
        try:
            yield record
            state = "completed"
        except Exception as problem:
            state, error = "failed", f"{type(problem).__name__}: {problem}"
            raise


class Planning:
    """Progress that also shows in a run's folder how many clips of a job are planned, while they are."""

    def __init__(self, progress: Progress, run: "Run"):
        self.progress, self.run = progress, run

    @contextmanager
    def stage(self, name: str, *, unit: str, total: int | None = None) -> Iterator["Planning"]:
        with self.progress.stage(name, unit=unit, total=total) as self.tick:
            yield self

    def __call__(self, n: int, note: str = "") -> None:
        self.tick(n, note)

    def to(self, n: int) -> None:
        self.run.counts = Counts(clips=n)
        self.tick.to(n)


# --- readers -------------------------------------------------------------------------------------------------------


def read_runs(out: Path) -> list[dict[str, Any]]:
    """The summaries of all runs of an output, oldest first, with what `run.json` says of their state.

    A run that says "running" and is not (its process is gone; or, on another machine, silent for LOST s) is "lost".
    """
    found = []
    for path in sorted((out / "runs").glob("*/summary.json")):
        try:
            facts, summary = (
                json.loads((path.parent / n).read_text()) for n in ("run.json", "summary.json")
            )
        except (OSError, ValueError):  # being deleted, or the disk was full
            continue
        state = facts["state"]
        if state == "running" and not _alive(facts, path):
            state = "lost"
        found.append(
            summary
            | {
                "state": state,
                "error": facts["error"],
                "started": facts["started"],
                "workers": facts["workers"],
                "folder": str(path.parent),
            }
        )
    return found


def _alive(facts: dict, path: Path) -> bool:
    if facts["host"]["name"] == socket.gethostname():
        return Path(f"/proc/{facts['pid']}").exists()
    return time.time() - path.stat().st_mtime < LOST
