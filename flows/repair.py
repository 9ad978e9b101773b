"""`sparrow repair`: what `sparrow verify` finds wrong is made again, and nothing else.

A shard whose tables are sound and whose tar is not keeps every clip that still reads back whole: those are staged as if
they had just been curated, and only the others are work. A shard whose tables are wrong is curated again as a whole.
Then the driver runs as it does after a kill. The plan, the config and the code are those of the run, so the bytes are
those that an undamaged run would have.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.extras import require_networks
from flows.text import say
from schemas.members import MemberError, open_regular, read_range
from schemas.parts import part_names, part_paths, plan_paths

if TYPE_CHECKING:
    from flows.executors import Executor
    from flows.progress import Progress
    from manifests.verify import Problem
    from pipeline.curate import ClipResult
    from pipeline.plan import Job, ShardPlan

SAMPLE_TABLES = ("referents", "tracks", "masks", "tsf", "tsf_features", "qa")


@dataclass(slots=True)
class Repair:
    """What was wrong and what was done. `kept`: clips taken over from a damaged tar; `curated`: clips made again;
    `removed`: files that nothing named; `left`: what could not be mended."""

    problems: "list[Problem]"
    shards: list[str] = field(default_factory=list)
    kept: int = 0
    curated: int = 0
    removed: list[str] = field(default_factory=list)
    left: "list[Problem]" = field(default_factory=list)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("repair", epilog="Example: sparrow repair outputs/demo")(command)


def command(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    fast: Annotated[
        bool, typer.Option("--fast", help="Look for what the fast check finds; bytes are not read.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what is damaged; change nothing.")
    ] = False,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", help="Where the dataset is now, if it has moved (one source)."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 2,
    executor: Annotated[
        str, typer.Option(help="ray, or inline: everything in this process (debugging).")
    ] = "ray",
) -> None:
    """Curate again just what `sparrow verify --deep` finds damaged or missing. Exits 0 only if all is whole then."""
    from flows.executors import make_executor
    from flows.progress import Bars

    progress = Bars()
    if dry_run:
        problems = examine(out, progress, deep=not fast)
        for problem in problems:
            say(f"problem: {problem}")
        say(
            f"{out}: {len(problems)} problems; shards to make again: {', '.join(damaged(problems)) or 'none'}"
        )
        raise typer.Exit(1 if problems else 0)
    engine = make_executor(executor, workers)
    try:
        done = repair(out, engine, progress, deep=not fast, data_root=data_root)
    finally:
        engine.close()
    for problem in done.problems:
        say(f"problem: {problem}")
    for path in done.removed:
        say(f"removed: {path}")
    say(
        f"{out}: {len(done.problems)} problems, {len(done.shards)} shards made again: {done.curated} clips curated, "
        f"{done.kept} clips kept; {len(done.left)} problems left"
    )
    for problem in done.left:
        say(f"left: {problem}")
    if done.left:
        raise typer.Exit(1)


def examine(
    out: Path, progress: "Progress", *, deep: bool, only: Iterable[str] | None = None
) -> "list[Problem]":
    """The problems of an output, with progress."""
    from manifests.verify import verify

    total = len(part_names(out))
    with progress.stage("verify", unit="shards", total=total) as tick:
        return verify(out, deep=deep, tick=tick, only=None if only is None else set(only)).problems


def damaged(problems: "Iterable[Problem]") -> list[str]:
    """Names of the shards to be made again."""
    return sorted({p.shard for p in problems if p.kind in ("rows", "bytes")})


def repair(
    out: Path,
    executor: "Executor",
    progress: "Progress",
    *,
    deep: bool = True,
    data_root: Path | None = None,
) -> Repair:
    """See the module. Refuses, with nothing changed, where another result than the run's would come out: ValueError if
    a shard has no plan and no run that says how it was made, or its data root is gone; PlanConflict if the annotations,
    the config or the code are others now.
    """
    from flows import driver
    from flows.locks import sweep_output
    from manifests.catalog import build_catalog
    from pipeline.shards import withdraw

    _finish_reshards(out)
    done = Repair(examine(out, progress, deep=deep))
    if not done.problems:
        sweep_output(out)
        if not (out / "catalog.duckdb").exists():  # a repair was killed before its end
            build_catalog(out)
        return done
    for problem in done.problems:
        if (
            problem.kind == "history"
        ):  # no run could end beside it; the file stays for whoever wants to look into it
            path = out / problem.where
            path.rename(path.with_suffix(".damaged"))
            done.removed.append(problem.where)
    wrong: dict[str, list[Problem]] = defaultdict(list)
    for problem in done.problems:
        wrong[problem.shard].append(problem)
    shards = damaged(done.problems)
    jobs = _jobs(out, done.problems, data_root)
    for job in jobs:
        _may_be_repaired(out, job, set(shards), progress)
    for job in jobs:
        with driver.locked(out, job.name):
            plans = {shard.name: shard for shard in _plans(job)}
            for name in (n for n in shards if _job_name(n) == job.name):
                if name in plans and all(p.kind == "bytes" for p in wrong[name]):
                    done.kept += salvage(job, plans[name])
                withdraw(out, name)
                done.shards.append(name)
    garbage = [p.where for p in done.problems if p.kind == "garbage"]
    runs = driver.run(jobs, executor, progress) if jobs else []
    done.curated = sum(run.clips_done for run in runs)
    done.shards = sorted({*done.shards, *(name for run in runs for name in run.committed)})
    done.removed += [where for where in garbage if not (out / where).exists()]
    left = examine(out, progress, deep=False)
    left += examine(out, progress, deep=True, only=done.shards) if deep else []
    done.left = list(dict.fromkeys(left))
    if not done.left:
        build_catalog(out)
    return done


def _finish_reshards(out: Path) -> None:
    """Reshards that were interrupted in the middle of their swap."""
    from flows.locks import locked
    from manifests.reshard import finish, pending

    for path in plan_paths(out):
        if pending(out, path.stem):
            with locked(out, path.stem):
                finish(out, path.stem)


def _job_name(shard: str) -> str:
    """`<source>-<split>` of a shard's or a run's name; a plan's problem has that name itself."""
    return re.sub(r"-(\d{6,}|[0-9a-f]{12})$", "", shard)


def _jobs(out: Path, problems: "list[Problem]", data_root: Path | None) -> "list[Job]":
    """The jobs that have something to mend."""
    found: dict[str, Job] = {}
    for name in sorted({_job_name(p.shard) for p in problems}):
        job = job_of(out, name)
        if job is not None:
            found[name] = job
        elif any(
            _job_name(p.shard) == name and p.kind not in ("garbage", "history") for p in problems
        ):
            raise ValueError(
                f"{out}: how {name} was made is not known: it has no plan that can be read, and no run. Curate it "
                "again into this folder with `sparrow curate ... --replan`"
            )
    if data_root is None:
        return list(found.values())
    if len(found) > 1:
        raise ValueError(f"--data-root is for one source and split; damaged are {', '.join(found)}")
    return [
        job.model_copy(update={"data_root": str(data_root.resolve())}) for job in found.values()
    ]


def job_of(out: Path, name: str) -> "Job | None":
    """How `<source>-<split>` was made: by its plan, or by the last run that says so, whose plan is then made again.
    None for files of no known job."""
    import pyarrow.parquet as pq

    from pipeline.plan import Job, read_plan_header

    path = out / "plan" / f"{name}.parquet"
    try:
        job = read_plan_header(path)[0]
    except (OSError, ValueError, KeyError):
        rows = [
            row
            for part in part_paths(out, "runs", name)
            for row in pq.read_table(
                part, columns=["ended", "config"], partitioning=None
            ).to_pylist()
        ]
        if not rows:
            return None
        job = Job.model_validate_json(max(rows, key=lambda row: row["ended"])["config"])
        path.unlink(missing_ok=True)
    return job.model_copy(update={"out": str(out.resolve())})


def _plans(job: "Job") -> "list[ShardPlan]":
    from flows.work import fused
    from pipeline.plan import read_plan

    return list(read_plan(job, fused(job.config).stages.digest))


def _may_be_repaired(out: Path, job: "Job", shards: set[str], progress: "Progress") -> None:
    """Before anything is touched: the data are there, and what is sound was made as it would be made now."""
    from flows.driver import PlanConflict, ensure_plan

    require_networks(job.config)
    if not Path(job.data_root).is_dir():
        raise ValueError(
            f"{job.name}: its data root {job.data_root} is not there, and its damaged clips have to be curated again. "
            "Mount it, or say where it is with --data-root"
        )
    ensure_plan(job, progress)
    import pyarrow.parquet as pq

    for shard in _plans(job):
        part = out / "manifests" / "shards" / f"{shard.name}.parquet"
        if shard.name in shards or not part.is_file():
            continue
        if (
            pq.read_table(part, columns=["plan_hash"], partitioning=None)["plan_hash"][0].as_py()
            != shard.hash
        ):
            raise PlanConflict(
                f"{out}: {shard.name}, which is sound, was made with another config, code version or weights than are "
                "here now: what would be repaired would not fit. Use those it was made with, or make all anew with "
                "`sparrow curate ... --replan`"
            )


def salvage(job: "Job", shard: "ShardPlan") -> int:
    """Stage the clips of a damaged tar that read back whole; returns how many. The shard's tables must be sound."""
    from pipeline.shards import is_staged, stage_clip, staged_path

    out = Path(job.out)
    kept = 0
    for clip_id, result in _read_back(out, job, shard).items():
        path = staged_path(out, shard, clip_id)
        if not is_staged(path):
            stage_clip(path, result)
        kept += 1
    return kept


def _read_back(out: Path, job: "Job", shard: "ShardPlan") -> "dict[str, ClipResult]":
    """The clips of a shard all of whose members have the sha256 that was written, as they were before their commit."""
    from manifests.parts import grouped, read_rows
    from pipeline.curate import ClipResult
    from pipeline.shards import shard_path
    from schemas.records import Sample

    of_referent = {
        t: grouped(read_rows(out, t, shard.name), "referent_id")
        for t in (*SAMPLE_TABLES, "members")
    }
    of_clip = {
        t: grouped(read_rows(out, t, shard.name), "clip_id")
        for t in ("clips", "referents", "quarantine", "timings")
    }
    tar, results = shard_path(out, job, shard.name), {}
    for planned in shard.clips:
        clip_id = planned.clip.clip_id
        samples = []
        for referent in of_clip["referents"].get(clip_id, []):
            key = referent["referent_id"]
            members = _members(tar, of_referent["members"].get(key, []))
            if members is None:
                break
            samples.append(
                Sample(key, members, {t: of_referent[t].get(key, []) for t in SAMPLE_TABLES})
            )
        else:
            dropped = [
                row for row in of_clip["quarantine"].get(clip_id, []) if row["stage"] != "plan"
            ]
            clip_row = next(iter(of_clip["clips"].get(clip_id, [])), None)
            results[clip_id] = ClipResult(
                samples, clip_row, dropped, of_clip["timings"].get(clip_id, [])
            )
    return results


def _members(tar: Path, rows: list[dict]) -> dict[str, bytes] | None:
    """The members of a key, in order; None if one is not what was written."""
    members = {}
    try:
        with open_regular(tar) as file:
            for row in rows:
                data = read_range(file, row["offset"], row["size"], row["name"])
                members[row["name"]] = data
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    return None
    except (OSError, MemberError):
        return None
    return members
