"""`sparrow reshard`: larger or smaller shards of what has been curated. Member bytes and their hashes stay.

The saved plan is cut as the shards are, so that the `curate` that made the output finds it finished, and
`quarantine retry` and `repair` work on the new shards.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas import checksum
from schemas.files import sync
from schemas.parts import part_names, plan_paths, split_of

if TYPE_CHECKING:
    from flows.progress import Progress
    from manifests.reshard import Unit
    from pipeline.plan import Job, ShardPlan

UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 1 << 10,
    "mi": 1 << 20,
    "gi": 1 << 30,
}


@dataclass(frozen=True, slots=True)
class Done:
    """One source and split: shards before and after, samples, bytes of its tars. before = 0: an interrupted reshard
    was finished."""

    name: str
    before: int
    after: int
    samples: int
    bytes: int


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("reshard", epilog="Example: sparrow reshard outputs/demo --size 1GB")(command)


def command(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    size: Annotated[str, typer.Option(help="Largest tar: 500MB, 1GB, 256MiB.")] = "",
    count: Annotated[int | None, typer.Option(help="Most samples in a shard.", min=1)] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only this source (repeatable).")] = None,
) -> None:
    """Cut the shards anew by size or count. Clips stay whole, members keep their bytes. Needs room for a copy."""
    from flows.jobs import normal
    from flows.progress import Bars
    from flows.show import table

    limit = parse_size(size) if size else None
    done = reshard(
        out, size=limit, count=count, sources=[normal(s) for s in source or []], progress=Bars()
    )
    rows: list[list[object]] = [
        [d.name, d.before or None, d.after, d.samples, d.bytes / 1e6] for d in done
    ]
    table("Resharded", ["source and split", "shards before", "now", "samples", "MB"], rows)


def parse_size(text: str) -> int:
    """`500MB`, `1.5 GiB`, `1000000` -> bytes. ValueError shows how."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?)b?\s*", text.lower())
    if not match or match[2] not in UNITS or float(match[1]) <= 0:
        raise ValueError(f"--size {text!r} is no size: write it as 500MB, 1GB or 256MiB")
    return int(float(match[1]) * UNITS[match[2]])


def reshard(
    out: Path,
    *,
    size: int | None = None,
    count: int | None = None,
    sources: list[str],
    progress: "Progress",
) -> list[Done]:
    """Every source and split of an output, or those of `sources`, one after the other, each in one atomic step.

    size: bytes of a tar; count: samples; at least one. ValueError, with nothing changed, if a source is not finished or
    not whole, or was made with another code version.
    """
    from flows.driver import locked
    from manifests.catalog import build_catalog
    from manifests.reshard import finish
    from pipeline.plan import read_plan_header

    if size is None and count is None:
        raise ValueError("say how: --size 1GB, --count 1000, or both (a shard closes at the first)")
    plans = plan_paths(out)
    if not plans:
        raise FileNotFoundError(
            f"{out} holds no plan (nothing under {out / 'plan'}): it is not an output of sparrow"
        )
    names = [path.stem for path in plans if not sources or path.stem.rsplit("-", 1)[0] in sources]
    if not names:
        raise ValueError(
            f"{out} has nothing of {', '.join(sources)}: it has {', '.join(p.stem for p in plans)}"
        )
    done = []
    for name in names:
        with locked(out, name):
            again = finish(out, name)
            job = read_plan_header(out / "plan" / f"{name}.parquet")[0].model_copy(
                update={"out": str(out.resolve())}
            )
            done.append(_reshard(out, job, size, count, progress, again))
    build_catalog(out)
    return done


def _reshard(
    out: Path, job: "Job", size: int | None, count: int | None, progress: "Progress", again: bool
) -> Done:
    from manifests.reshard import Group, build, finish, group, measure, ready, stage_of
    from manifests.verify import verify
    from pipeline.plan import read_plan
    from pipeline.requeue import requeued
    from schemas.records import Planned

    started = datetime.now(UTC)
    if any(split_of(shard) == job.name for shard in requeued(out)):
        raise ValueError(
            f"{job.name}: shards of it are to be made again, by a command that was interrupted: run "
            f"`sparrow quarantine retry {out}`, or curate again"
        )
    digest, old = _whole(out, job)
    units = [
        unit
        for shard in old
        for unit in measure(
            out,
            shard.name,
            (
                (i.clip.clip_id, len(i.referents)) if isinstance(i, Planned) else ("", 0)
                for i in shard.items
            ),
        )
    ]
    cut = group(units, size=size, count=count)
    if [len(units) for units in cut] == [len(shard.items) for shard in old]:
        return _said(out, job, 0 if again else len(old), cut)
    stage = stage_of(out, job.name)
    shutil.rmtree(stage, ignore_errors=True)
    _write_plan(
        job.plan_path, job, stage, [len(units) for units in cut], {"size": size, "count": count}
    )
    staged = job.model_copy(update={"out": str(stage)})
    groups = [
        Group(shard.name, shard.index, shard.hash, units)
        for shard, units in zip(read_plan(staged, digest), cut, strict=True)
    ]
    with progress.stage(f"reshard {job.name}", unit="shards", total=len(groups)) as tick:
        build(out, stage, groups, tick)
    if problems := verify(stage).problems:
        raise RuntimeError(
            f"{job.name}: the new shards are not whole, nothing was changed: {problems[0]}"
        )
    ready(stage, [shard.name for shard in groups])
    finish(out, job.name)
    _record(job, started, len(groups))
    return _said(out, job, len(old), cut)


def _record(job: "Job", started: datetime, shards: int) -> None:
    """A row of `runs`: it says how many shards there are from now on."""
    from flows.driver import Run
    from flows.executors import Inline
    from flows.run_record import record_run
    from flows.runlog import new_id
    from pipeline.plan import Counts

    entry = Run(job, Counts(), started=started, shards_done=shards)
    record_run(entry, Inline(), new_id(), status="resharded")


def _said(out: Path, job: "Job", before: int, cut: "list[tuple[Unit, ...]]") -> Done:
    samples = sum(unit.samples for units in cut for unit in units)
    size = sum(
        path.stat().st_size for path in (out / job.source / job.split / "shards").glob("*.tar")
    )
    return Done(job.name, before, len(cut), samples, size)


def _whole(out: Path, job: "Job") -> "tuple[str, list[ShardPlan]]":
    """The digest of the models that made the shards, and the plan. ValueError unless all is committed and sound."""
    from manifests.parts import read_rows
    from manifests.verify import verify
    from pipeline.plan import read_plan

    names = set(part_names(out, "shards", job.name))
    for problem in verify(out, only=names).problems:
        if problem.shard.startswith(f"{job.name}-") or problem.shard == job.name:
            raise ValueError(
                f"{problem}. Mend it first: `sparrow curate` again to finish a run, `sparrow repair {out}`"
            )
    digests, hashes = set[str](), dict[str, str]()
    for name in names:
        digests.update(row["weights_hash"] for row in read_rows(out, "clips", name))
        hashes[name] = read_rows(out, "shards", name)[0]["plan_hash"]
    if len(digests) != 1:
        raise ValueError(
            f"{job.name}: "
            + ("nothing in it was kept" if not digests else "made by several models")
        )
    digest = digests.pop()
    plan = list(read_plan(job, digest))
    if {shard.name: shard.hash for shard in plan} != hashes:
        raise ValueError(
            f"{out}: the shards of {job.name} are not those of its plan, or were made with another code version. "
            "Reshard with the version that made them"
        )
    return digest, plan


def recut(job: "Job") -> None:
    """Plan a resharded source and split again, in one atomic step, and cut it as it is cut now. ValueError if the plan
    has more or fewer rows than it had."""
    from itertools import groupby

    import pyarrow.parquet as pq

    from manifests.reshard import stage_of
    from pipeline.plan import build_plan

    stage = stage_of(Path(job.out), job.name)
    shutil.rmtree(stage, ignore_errors=True)
    old = pq.read_table(job.plan_path, columns=["shard"], partitioning=None)["shard"].to_pylist()
    sizes = [sum(1 for _ in group) for _, group in groupby(old)]
    fresh = job.model_copy(update={"out": str(stage / "fresh")})
    build_plan(fresh)
    found = pq.read_metadata(fresh.plan_path).num_rows
    if found != len(old):
        raise ValueError(
            f"{job.name}: the plan has {found} rows now and had {len(old)}, so it cannot be cut as its shards are. "
            "Curate again with --replan, which cuts them as the config says"
        )
    mark = json.loads(pq.read_metadata(job.plan_path).metadata[b"resharded"])
    path = _write_plan(fresh.plan_path, job, stage, sizes, mark)
    os.replace(path, job.plan_path)
    sync(job.plan_path.parent)
    shutil.rmtree(stage)


def _write_plan(source: Path, job: "Job", stage: Path, sizes: list[int], mark: dict) -> Path:
    """The plan at `source` with the same rows, cut after `sizes` items each, under `stage`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = stage / "plan" / f"{job.name}.parquet"
    path.parent.mkdir(parents=True)
    with pq.ParquetFile(source) as file:
        form, words = file.schema_arrow.remove_metadata(), dict(file.metadata.metadata)
        place = form.get_field_index("shard")
        shards = pa.array(
            [index for index, n in enumerate(sizes) for _ in range(n)], form.field(place).type
        )
        counts = json.loads(words[b"counts"]) | {"shards": len(sizes)}
        with pq.ParquetWriter(path, form, compression="zstd") as writer:
            start = 0
            for batch in file.iter_batches(2048):
                writer.write_batch(
                    batch.set_column(place, form.field(place), shards.slice(start, len(batch)))
                )
                start += len(batch)
            words |= {
                b"counts": _json(counts),
                b"resharded": _json(mark),
                b"job": job.model_dump_json().encode(),
            }
            del words[b"ARROW:schema"]
            checksum.add_metadata(writer, {k.decode(): v.decode() for k, v in words.items()})
    checksum.stamp(path)
    sync(path)
    return path


def _json(value: dict) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
