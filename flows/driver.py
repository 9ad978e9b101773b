"""The driver: plan, find what is left to do, feed the executor, commit shards, index. What Prefect and the CLI call.

Idempotence lives here and in the manifest, nowhere else: a committed shard with the right hash is done, a staged clip
is done, everything else is work. Killing the driver at any moment loses at most the clips in flight.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.executors import Executor, Outcome, Task
from flows.extras import require_networks
from flows.locks import PlanConflict, locked, writing
from flows.progress import Progress
from flows.report import after_run
from flows.reshard import recut
from flows.run_record import record_run
from flows.runlog import Planning, recording
from flows.work import fused, work
from manifests.catalog import build_catalog
from manifests.quarantine import dropped
from manifests.reshard import finish, is_resharded
from pipeline.curate import ClipResult
from pipeline.plan import (
    Counts,
    Job,
    Outline,
    ShardPlan,
    build_plan,
    outlines,
    plan_identity,
    read_plan,
    read_plan_header,
)
from pipeline.requeue import finish_requeued, requeue, requeued
from pipeline.sample import quarantine_row
from pipeline.shards import (
    changed_clips,
    committed,
    discard,
    has_staging,
    is_current,
    stage_clip,
    staged_path,
    sweep,
    unchanged,
    withdraw,
)
from schemas import checksum
from schemas.parts import part_names, split_of
from schemas.records import Planned, Quarantined, Reason


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Run:
    """What happened to one job. token: of the run's lock; only workers that bring it may write.

    shards: the plan's; have: hashes of those that were committed when the run began.
    """

    job: Job
    counts: Counts
    token: str = ""
    started: datetime = field(default_factory=lambda: now())
    shards_done: int = 0
    shards_skipped: int = 0
    clips_done: int = 0
    clips_resumed: int = 0
    committed: list[str] = field(default_factory=list)
    have: dict[str, str] = field(default_factory=dict, repr=False)
    shards: list[Outline] = field(default_factory=list, repr=False)


# --- plan ----------------------------------------------------------------------------------------------------------


def ensure_plan(job: Job, progress: Progress, *, replan: bool = False) -> Counts:
    """The saved plan's counts, planning first if there is none. PlanConflict if the saved one would be another.

    replan: plan again in any case; shards whose rows come out the same keep their hash, and stay.
    """
    identity = plan_identity(job)
    is_saved = job.plan_path.exists()
    damage = checksum.why_damaged(job.plan_path) if is_saved else ""
    if is_saved and not damage and not replan:
        saved, saved_identity, counts = read_plan_header(job.plan_path)
        if saved_identity == identity and saved.config == job.config:
            return counts
        # Retry and repair take the config from the plan: before the first shard, one of another config is replaced.
        if committed(Path(job.out), saved):
            if saved_identity == identity:
                return counts  # `prepare` says what to do
            raise PlanConflict(
                f"{job.out} holds another plan of {job.name} ({_difference(saved, job)}) with committed shards. "
                "Choose another --out, or pass --replan to replace those shards"
            )
    because = ", as the saved plan is damaged" if damage else ""
    with progress.stage(f"plan {job.name}{because}", unit="clips") as tick:
        counts = build_plan(job, tick=tick.to)
        tick.to(counts.clips)
    return counts


def _difference(saved: Job, job: Job) -> str:
    old, new = saved.model_dump(mode="json"), job.model_dump(mode="json")
    changed = [
        f"{k} {old['take'][k]} -> {v}" for k, v in new["take"].items() if old["take"][k] != v
    ]
    changed += [
        f"shard {k} {old['config']['shard'][k]} -> {v}"
        for k, v in new["config"]["shard"].items()
        if old["config"]["shard"][k] != v
    ]
    changed += [
        f"corrupt {k} {old['config']['corrupt'][k]} -> {v}"
        for k, v in new["config"]["corrupt"].items()
        if old["config"]["corrupt"][k] != v
    ]
    if old["exclude"] != new["exclude"]:
        lists = [
            f"{len(x['keys'])} ids of {x['name']}" if x else "none"
            for x in (old["exclude"], new["exclude"])
        ]
        changed.append(f"exclude {lists[0]} -> {lists[1]}")
    return ", ".join(changed) or "the annotations have changed"


# --- run -----------------------------------------------------------------------------------------------------------


def run(
    jobs: list[Job], executor: Executor, progress: Progress, *, replan: bool = False
) -> list[Run]:
    """Curate all jobs into their outputs. Finished work is skipped; what fails on its own is in quarantine.

    MissingPackage, with nothing written, if a step of a job needs a package that is not installed.
    """
    for job in jobs:
        require_networks(job.config)
    with ExitStack() as stack:
        tokens = {}
        for job in jobs:
            stack.enter_context(writing(Path(job.out)))
            tokens[job.name] = stack.enter_context(locked(Path(job.out), job.name))
            finish(Path(job.out), job.name)  # a reshard that was interrupted in its swap
        runs = {job.name: Run(job, Counts(), tokens[job.name]) for job in jobs}
        record = stack.enter_context(
            recording(runs, executor)
        )  # before the plans, which may take long or fail
        for entry in runs.values():
            entry.counts = ensure_plan(entry.job, Planning(progress, entry), replan=replan)
        for entry in runs.values():
            prepare(entry, replan)
        record.planned(lambda job: fused(job.config).stages.versions)
        if (
            getattr(executor, "in_flight", 1) > 1
        ):  # its workers hold many clips each, in one machine's memory
            os.environ["SPARROW_WORKERS"] = str(executor.workers)
        _execute(runs, executor, progress, record.saw)
        record.enter("reporting")
        for entry in runs.values():
            record_run(entry, executor, record.id(entry.job))
        with progress.stage("index", unit="catalogs") as tick:
            for out in sorted({job.out for job in jobs}):
                build_catalog(Path(out))
                tick(1)
        for out in sorted({job.out for job in jobs}):
            changed = replan or any(
                entry.shards_done for entry in runs.values() if entry.job.out == out
            )
            after_run(Path(out), progress, changed=changed)
    return list(runs.values())


def _execute(
    runs: dict[str, Run], executor: Executor, progress: Progress, saw: Callable[[Outcome], None]
) -> None:
    left: dict[str, set[str]] = {}  # shard -> clips that are not staged yet
    shards: dict[str, ShardPlan] = {}
    total = sum(r.counts.clips for r in runs.values())
    with (
        progress.stage("curate", unit="clips", total=total) as clips,
        progress.stage(
            "commit", unit="shards", total=sum(r.counts.shards for r in runs.values())
        ) as commits,
    ):

        def commit(job: Job, shard: ShardPlan) -> Task:
            return Task(f"commit {shard.name}", ("commit", job, runs[job.name].token, shard))

        def tasks() -> Iterator[Task]:
            for entry in runs.values():
                out = Path(entry.job.out)
                job = entry.job.model_copy(
                    update={"exclude": None}
                )  # it has done its part, and may be long
                for shard in pending(entry, clips, commits):
                    todo = [
                        p
                        for p in shard.clips
                        if not is_current(job, p, staged_path(out, shard, p.clip.clip_id))
                    ]
                    entry.clips_resumed += len(shard.clips) - len(todo)
                    clips(len(shard.clips) - len(todo))
                    if not todo:
                        yield commit(job, shard)
                        continue
                    shards[shard.name], left[shard.name] = shard, {p.clip.clip_id for p in todo}
                    for planned in todo:
                        path = str(staged_path(out, shard, planned.clip.clip_id))
                        yield Task(
                            planned.clip.clip_id, ("clip", job, (planned, path), entry.token)
                        )

        def done(outcome: Outcome) -> list[Task]:
            saw(outcome)
            kind, job, item, shard = outcome.task.payload
            entry = runs[job.name]
            if kind == "commit":
                if outcome.kind != "ok":
                    raise RuntimeError(f"{outcome.task.label}: {outcome.message}")
                finish_requeued(Path(job.out), shard.name)
                entry.shards_done += 1
                entry.committed.append(shard.name)
                commits(1, note=shard.name)
                return []
            planned, path = item
            if outcome.kind != "ok":
                give_up(job, planned, Path(path), outcome)
            entry.clips_done += 1
            clips(1, note=planned.clip.clip_id)
            name = Path(path).parent.name.rsplit("-", 1)[0]
            left[name].discard(planned.clip.clip_id)
            if left[name]:
                return []
            del left[name]
            return [commit(job, shards.pop(name))]

        executor.run(work, tasks(), done)


def prepare(entry: Run, replan: bool) -> None:
    """Refuse to replace committed shards of another config unasked; then sweep what no plan wants."""
    job, out = entry.job, Path(entry.job.out)
    entry.have, entry.shards = (
        committed(out, job),
        list(outlines(job, fused(job.config).stages.digest)),
    )
    hashes = {shard.name: shard.hash for shard in entry.shards}
    other = [name for name, hash_ in entry.have.items() if hashes.get(name) != hash_]
    if other and not replan:
        raise PlanConflict(
            f"{out} holds {len(other)} shards of {job.name} that were made with another config or code version. "
            "Choose another --out, or pass --replan to replace them"
        )
    requeue(out, other)
    for name in other:
        withdraw(out, name)
        del entry.have[name]
    for name in requeued(out):
        if split_of(name) == job.name and name not in hashes:
            finish_requeued(out, name)
    sweep(out, job, {f"{name}-{hash_}" for name, hash_ in hashes.items()}, live=entry.have)


def wanted(job: Job) -> dict[str, str]:
    """Names of the shards of the saved plan, each with the hash that it has with this config and code."""
    return {shard.name: shard.hash for shard in outlines(job, fused(job.config).stages.digest)}


def pending(entry: Run, clips: Any, commits: Any) -> Iterator[ShardPlan]:
    """Shards that are not committed, or are to be made again, or whose source files have changed since they were.

    Rows of the plan are read only for those, and for shards whose own rows cannot tell (see `unchanged`).
    """
    job, out = entry.job, Path(entry.job.out)
    staged, again, left = has_staging(out), requeued(out), set[str]()

    def skip(name: str, n: int) -> None:
        if name in staged:
            discard(out, name)  # a kill after the commit left them; they must not be used again
        entry.shards_skipped += 1
        clips(n)
        commits(1)

    for shard in entry.shards:
        is_there = entry.have.get(shard.name) == shard.hash and shard.name not in again
        if is_there and unchanged(job, shard.name):
            skip(shard.name, shard.clips)
        else:
            left.add(shard.name)
    for plan in read_plan(job, fused(job.config).stages.digest, only=left) if left else ():
        is_there = entry.have.get(plan.name) == plan.hash and plan.name not in again
        if is_there and not changed_clips(job, plan):
            skip(plan.name, len(plan.clips))
        else:
            yield plan


def retry(out: Path, where: str, executor: Executor, progress: Progress) -> list[Run]:
    """Plan again and curate the shards of the quarantine rows that match `where` (SQL), and those that an earlier retry
    had begun with when it was interrupted.

    A shard stays as it is until its successor takes its place. Planning again finds media that have appeared since; only
    these shards, and those whose plan has changed, are work. After a reshard the new plan is cut as the old one was.
    """
    begun = requeued(out)
    matching = set[str]()
    if part_names(out) or not begun:  # the only shard may have been between two commits
        matching = {row["shard"] for row in dropped(out, where, columns="DISTINCT shard")}
    splits = sorted({split_of(name) for name in begun | matching})
    plans = [out / "plan" / f"{name}.parquet" for name in splits]
    for path in plans:
        require_networks(read_plan_header(path)[0].config)
    with ExitStack() as stack:  # all of them, or none: a shard that somebody works on is left alone
        for name in splits:
            stack.enter_context(locked(out, name))
        for name in matching - begun:
            discard(out, name)
        requeue(out, matching)
    runs = []
    for again in (True, False):
        chosen = [path for path in plans if again != is_resharded(path)]
        jobs = [
            read_plan_header(path)[0].model_copy(update={"out": str(out.resolve())})
            for path in chosen
        ]
        for job in () if again else jobs:
            with locked(out, job.name):
                recut(job)
                hashes = wanted(job)
                there = committed(out, job)
                other = [name for name, hash_ in there.items() if hashes.get(name) != hash_]
                requeue(out, other)
                for name in other:
                    withdraw(out, name)
        runs += run(jobs, executor, progress, replan=again) if jobs else []
    return runs


def give_up(job: Job, planned: Planned, path: Path, outcome: Outcome) -> None:
    """A clip that killed its worker again and again, or overran its deadline, is staged as quarantine rows."""
    reason = Reason.WORKER_DIED if outcome.kind == "died" else Reason.DEADLINE
    message = f"{planned.clip.clip_id}: {outcome.message}"
    if outcome.stacks:
        kept = Path(job.out) / "runs" / "stacks" / f"{planned.clip.clip_id}.txt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(outcome.stacks)
        message += f"; stacks: {kept.relative_to(job.out)}"
    problem = Quarantined(reason, message, stage="worker")
    rows = [
        quarantine_row(job, problem, planned.clip.clip_id, r.referent_id, outcome.task.attempt)
        for r in planned.referents
    ]
    stage_clip(path, ClipResult(quarantine=rows))


def staged_clips(out: Path) -> dict[str, int]:
    """Staged, uncommitted clips per shard name: what `sparrow status` shows of a live or interrupted run."""
    folder = out / ".staging"
    found: dict[str, int] = {}
    for place in sorted(folder.glob("*-*")):
        found[place.name.rsplit("-", 1)[0]] = sum(1 for f in place.iterdir() if f.suffix == ".clip")
    return found
