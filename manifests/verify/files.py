"""Files of an output: a shard's parts, read and held against their schemas and digests; plans, runs, and garbage."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.reshard import pending
from manifests.verify.problem import Problem
from schemas import SCHEMA_VERSION
from schemas.checksum import why_damaged
from schemas.members import open_regular
from schemas.parts import part_names, part_path, part_paths, plan_paths, split_of, strays
from schemas.tables import CHECKSUMMED, TABLES, schema

PER_SHARD = tuple(t for t in TABLES if t != "runs")
NARROW = {
    "tracks": ["referent_id", "clip_id", "frame", "kept", "shard"],
    "masks": ["referent_id", "clip_id", "frame", "shard"],
    "tsf_features": ["referent_id", "rank", "shard"],
}
"""Columns of the long tables that the fast check needs."""
REPLAN = "the plan cannot be read"


def load_parts(
    out: Path, name: str, *, whole: bool
) -> tuple[dict[str, pa.Table] | None, list[Problem]]:
    """A shard's tables, or None when one of them cannot be used, and what is wrong with the files.

    whole: all columns; else only NARROW ones of the long tables.
    """
    parts: dict[str, pa.Table] = {}
    problems = []
    for table in PER_SHARD:
        where = f"manifests/{table}"
        try:
            with pq.ParquetFile(out / "manifests" / table / f"{name}.parquet") as file:
                form = file.schema_arrow
                why = _other_schema(form, table)
                if why:
                    problems.append(Problem(name, where, why))
                    continue
                parts[table] = file.read(columns=None if whole else NARROW.get(table))
        except FileNotFoundError:
            problems.append(Problem(name, where, "the part is missing"))
            continue
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            problems.append(Problem(name, where, f"cannot be read: {_line(error)}"))
            continue
        strangers = set(pc.unique(parts[table]["shard"]).to_pylist()) - {name}
        if strangers:
            problems.append(
                Problem(name, where, f"rows of another shard: {sorted(map(str, strangers))[:3]}")
            )
    if "shards" in parts and len(parts["shards"]) != 1:
        problems.append(
            Problem(name, "manifests/shards", f"{len(parts['shards'])} rows, expected 1")
        )
        return None, problems
    if "shards" in parts:
        problems += _edited(out, name, parts["shards"]["parts_sha256"][0].as_py())
    for table in CHECKSUMMED:
        if table in parts and (why := why_damaged(part_path(out, table, name))):
            problems.append(Problem(name, f"manifests/{table}", why))
    return (parts if len(parts) == len(PER_SHARD) else None), problems


def check_ends(name: str, tar: Path, row: dict, members: pa.Table) -> list[Problem]:
    """Size, and the headers of the first and the last member: enough to know a tar that was cut, or is another's."""
    size = tar.stat().st_size
    found = []
    if size != row["bytes"]:
        found.append(
            Problem(
                name, row["path"], f"{size} bytes, the manifest says {row['bytes']}", kind="bytes"
            )
        )
    first, last = members.slice(0, 1), members.slice(max(1, len(members) - 1))
    ends = first.to_pylist() + last.to_pylist()
    with open_regular(tar) as file:
        for member in ends:
            label = f"{member['key']}.{member['name']}"
            if not 0 <= member["offset"] <= size:
                what = "the tar ends before the place that the manifest has"
                found.append(Problem(name, row["path"], what, (label,), 1, "bytes"))
                continue
            file.seek(max(0, member["offset"] - tarfile.BLOCKSIZE))
            try:
                header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "replace")
                there = (
                    header.name
                    if header.size == member["size"]
                    else f"{header.name} of {header.size} bytes"
                )
            except tarfile.HeaderError:
                there = "no member"
            if there != label:
                what = f"the tar has {there:.120} where the manifest has"
                found.append(Problem(name, row["path"], what, (label,), 1, "bytes"))
    return found


def feature_length(out: Path, name: str) -> int:
    """Numbers in a feature of a shard."""
    return (
        pq.read_schema(out / "manifests" / "tsf_features" / f"{name}.parquet")
        .field("feature")
        .type.list_size
    )


def _other_schema(form: pa.Schema, table: str) -> str:
    written = (form.metadata or {}).get(b"schema_version", b"none").decode(errors="replace")
    if written != str(SCHEMA_VERSION):
        return f"schema version {written}, this code reads {SCHEMA_VERSION}"
    feature = form.field("feature").type if "feature" in form.names else None
    wanted = schema(table, dim=getattr(feature, "list_size", 1))  # other tables do not use it
    if form.equals(wanted):
        return ""
    have, want = {f.name: str(f.type) for f in form}, {f.name: str(f.type) for f in wanted}
    other = [f"{n} is {have[n]}, not {want[n]}" for n in have if n in want and have[n] != want[n]]
    other += [f"no {n}" for n in want if n not in have] + [
        f"unknown {n}" for n in have if n not in want
    ]
    return f"columns differ from the schema: {', '.join(other[:4]) or 'their order'}"


def _edited(out: Path, name: str, digests: str | None) -> Iterator[Problem]:
    """Parts whose bytes are not those that were committed. (A part that is missing has been reported.)"""
    try:
        known = dict(json.loads(digests or "{}"))
    except (ValueError, TypeError):  # the second for JSON that is no object
        known = {}
    for table in PER_SHARD:
        path = out / "manifests" / table / f"{name}.parquet"
        if table in ("shards", "timings") or not path.is_file():
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != known.get(table):
            yield Problem(
                name,
                f"manifests/{table}",
                "the file has changed since it was committed (its sha256 differs)",
            )


def check_plans(out: Path, names: list[str]) -> Iterator[Problem]:
    """Every shard that a plan promises is committed: no gaps, no missing end, nothing left in the middle. Where there is
    no plan, or a damaged one, the last record of a run says how many shards there were."""
    plans = {path.stem: path for path in plan_paths(out)}
    for split in sorted({*plans, *_splits_of_runs(out)}):
        promised, what = None, "is planned but not committed: the run is not finished"
        if path := plans.get(split):
            try:
                promised = _planned_shards(path)
            except (OSError, ValueError) as error:
                what = f"{REPLAN}: {_line(error)}"
                yield Problem(split, f"plan/{path.name}", what, kind="missing")
        if promised is None:
            promised, what = _recorded_shards(out, split), "was there when the last run ended"
        if pending(out, split):
            what = "a reshard was interrupted: run `sparrow reshard` or `sparrow curate` again, which finish it"
            yield Problem(split, "manifests/shards", what, kind="missing")
        for name in sorted({f"{split}-{index:06d}" for index in range(promised)} - set(names)):
            yield Problem(name, "manifests/shards", what, kind="missing")


def _planned_shards(path: Path) -> int:
    """ValueError for a plan whose bytes are not those that were written."""
    if why := why_damaged(path):
        raise ValueError(why)
    counts = (pq.read_metadata(path).metadata or {}).get(b"counts", b"{}")
    return int(json.loads(counts)["shards"])


def _splits_of_runs(out: Path) -> set[str]:
    return {split_of(name, "runs") for name in part_names(out, "runs")} - {""}


def _recorded_shards(out: Path, split: str) -> int:
    """Shards of a split at the end of its last run; 0 if no record can be read."""
    last = (0, 0)
    columns = ["ended", "shards_done", "shards_skipped"]
    for path in part_paths(out, "runs", split):
        try:
            rows = pq.read_table(path, columns=columns, partitioning=None).to_pylist()
            found = [(row["ended"].timestamp(), sum(row[c] for c in columns[1:])) for row in rows]
        except (OSError, ValueError, TypeError, AttributeError):  # `check_runs` names it
            continue
        last = max([last, *found])
    return last[1]


def check_runs(out: Path) -> Iterator[Problem]:
    """The records of runs can be read with all others, and are those that were written."""
    for path in part_paths(out, "runs"):
        try:
            why = _other_schema(pq.read_schema(path), "runs")
            pq.read_table(path, partitioning=None)
            why = why or why_damaged(path)
        except (OSError, ValueError) as error:
            why = f"cannot be read: {_line(error)}"
        if why:
            what = f"{why}: delete the file, only the record of one run is lost"
            yield Problem(path.stem, f"manifests/runs/{path.name}", what, kind="history")


def garbage(out: Path, names: set[str]) -> Iterator[Problem]:
    """Tars and parts that no row of `shards` names."""
    tars = [p for p in out.glob("*/*/shards/*.tar") if p.stem not in names]
    folders = [out / "manifests" / table for table in PER_SHARD if table != "shards"]
    others = set(strays(out))
    parts = [
        path
        for folder in folders
        for path in folder.glob("*.parquet")
        if path.stem not in names and path not in others
    ]
    for path in sorted(tars + parts):
        what = "is not committed: no row of shards names it (run again to sweep)"
        yield Problem(path.stem, str(path.relative_to(out)), what, kind="garbage")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
