"""Shards: finished clips are staged one by one, a full shard is committed in one step.

    <out>/.staging/<shard>-<hash>/<clip_id>.clip     a finished clip, written atomically
    <out>/<source>/<split>/shards/<shard>.tar        the samples, USTAR, the same bytes for the same plan
    <out>/manifests/<table>/<shard>.parquet          its rows

A shard is built in staging, synced, read back and hashed. Then the tar and the parts are renamed into place, and the
part of the `shards` table LAST: that rename is the commit. A file that no row of `shards` names is garbage.
"""

import base64
import hashlib
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.curate import ClipResult
from pipeline.plan import Job, ShardPlan
from pipeline.sample import CODE_VERSION, add_member, rejected_row
from pipeline.video import fingerprint
from schemas import SCHEMA_VERSION, tables
from schemas.config import canonical_json
from schemas.files import sync
from schemas.parts import part_path, part_paths
from schemas.questions import TEMPLATES
from schemas.records import Planned, Quarantined, Sample

SHARD_TABLES = tuple(t for t in tables.TABLES if t not in ("runs", "shards"))
"""Tables with one part per shard, beside `shards` itself."""


def shard_path(out: Path, job: Job, name: str) -> Path:
    return out / job.source / job.split / "shards" / f"{name}.tar"


# --- staging -------------------------------------------------------------------------------------------------------


def staging(out: Path, shard: ShardPlan) -> Path:
    """Where the finished clips of a shard wait. The hash keeps clips of another config out."""
    return out / ".staging" / f"{shard.name}-{shard.hash}"


def staged_path(out: Path, shard: ShardPlan, clip_id: str) -> Path:
    return staging(out, shard) / f"{clip_id}.clip"


def stage_clip(path: Path, result: ClipResult) -> int:
    """Write a finished clip; returns its size. A line with the sha256 of the rest, a line of JSON, the members."""
    samples = [
        {
            "key": s.key,
            "rows": _packed(s.rows),
            "members": [[name, len(data)] for name, data in s.members.items()],
        }
        for s in result.samples
    ]
    header = {
        "samples": samples,
        "clip": result.clip_row,
        "quarantine": result.quarantine,
        "timings": result.timings,
    }
    body = b"".join(
        [_json(header), b"\n", *(data for s in result.samples for data in s.members.values())]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk half a clip is in everybody's way
        raise
    os.replace(temporary, path)
    return len(body)


def _json(value: object) -> bytes:
    """Compact JSON; floats keep every bit, NaN included (rows have NaN where a table will have NULL)."""
    return json.dumps(value, separators=(",", ":")).encode()


def _packed(rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Rows with each feature as base64 of its float16, which the table holds too: as decimals the features were three
    quarters of a staged clip, and of the time that its JSON took."""
    features = [row | {"feature": _base64(row["feature"])} for row in rows.get("tsf_features", [])]
    return rows | {"tsf_features": features} if features else rows


def _unpacked(rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    for row in rows.get("tsf_features", []):
        if isinstance(
            row["feature"], str
        ):  # clips that were staged before features were packed have lists
            row["feature"] = np.frombuffer(base64.b64decode(row["feature"]), "<f2").tolist()
    return rows


def _base64(feature: list[float]) -> str:
    return base64.b64encode(np.array(feature, "<f2").tobytes()).decode()


def load_staged(path: Path) -> ClipResult:
    """A staged clip. ValueError if its bytes are not what was written."""
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError(f"{path}: the staged clip is damaged; delete it and run again")
    head, _, data = body.partition(b"\n")
    header = json.loads(head)
    samples, offset = [], 0
    for s in header["samples"]:
        members = {}
        for name, size in s["members"]:
            members[name] = data[offset : offset + size]
            offset += size
        samples.append(Sample(s["key"], members, _unpacked(s["rows"])))
    return ClipResult(samples, header["clip"], header["quarantine"], header["timings"])


def is_staged(path: Path) -> bool:
    """Whether a whole staged clip is there; a damaged one is removed."""
    return _whole(path) is not None


def _whole(path: Path) -> ClipResult | None:
    if not path.exists():
        return None
    try:
        return load_staged(path)
    except (ValueError, KeyError, OSError):
        path.unlink(missing_ok=True)
        return None


def is_current(job: Job, planned: Planned, path: Path) -> bool:
    """Whether a whole staged clip is there that was made of the files that are there now; another one is removed."""
    result = _whole(path)
    if result is None:
        return False
    if result.clip_row is None or not _changed(job, planned, result.clip_row):
        return True
    path.unlink()
    return False


def has_staging(out: Path) -> set[str]:
    """Names of the shards with a staging folder."""
    folder = out / ".staging"
    return {name.rpartition("-")[0] for name in os.listdir(folder)} if folder.is_dir() else set()


def discard(out: Path, name: str) -> None:
    """Forget the staged clips of a shard: what a kill between its commit and the end left, or what is not wanted."""
    for folder in (out / ".staging").glob(f"{name}-*"):
        shutil.rmtree(folder)


# --- commit --------------------------------------------------------------------------------------------------------


def commit_shard(job: Job, shard: ShardPlan, dim: int) -> dict:
    """Turn the staged clips of a shard into its tar and its parts; returns the row of `shards`.

    Everything is ready and synced in staging before the first rename. A shard that is being replaced is withdrawn
    first (its row of `shards` is removed), so that no reader ever sees an old row with new bytes.
    """
    out = Path(job.out)
    stage = staging(out, shard)
    stage.mkdir(parents=True, exist_ok=True)
    rows, tar = _pack(job, shard, stage)
    row = rows["shards"][0]
    final = {tar: shard_path(out, job, shard.name)}
    for table in (*SHARD_TABLES, "shards"):
        for entry in rows[table]:
            entry["shard"] = shard.name
        if table == "shards":  # written last: it vouches for the others
            row["parts_sha256"] = tables.digests({t: stage / f"{t}.parquet" for t in SHARD_TABLES})
        part = stage / f"{table}.parquet"
        tables.write(part, table, rows[table], dim=dim)
        final[part] = part_path(out, table, shard.name)
    for path in final:
        sync(path)
    part_path(out, "shards", shard.name).unlink(missing_ok=True)
    for source, target in final.items():  # the part of `shards` is the last one
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.parent.name == "shards" and target.suffix == ".parquet":
            for folder in {path.parent for path in final.values()}:
                sync(folder)
        os.replace(source, target)
    sync(part_path(out, "shards", shard.name).parent)
    shutil.rmtree(stage)
    return row


def _pack(job: Job, shard: ShardPlan, stage: Path) -> tuple[dict[str, list[dict]], Path]:
    """Write the tar from the staged clips, in planned order, and gather the rows of every table."""
    rows: dict[str, list[dict]] = {table: [] for table in (*SHARD_TABLES, "shards")}
    path = stage / "shard.tar"
    n_samples = n_clips = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for item in shard.items:
            if not isinstance(item, Planned):
                rows["quarantine"].append(rejected_row(item))
                continue
            result = load_staged(stage / f"{item.clip.clip_id}.clip")
            if result.samples and result.clip_row:
                rows["clips"].append(result.clip_row)
                n_clips += 1
            rows["quarantine"] += result.quarantine
            rows["timings"] += result.timings
            for sample in result.samples:
                n_samples += 1
                for table, entries in sample.rows.items():
                    rows[table] += entries
                for name, data in sample.members.items():
                    add_member(tar, f"{sample.key}.{name}", data)
                    digest = hashlib.sha256(data).hexdigest()
                    offset = tar.offset - tarfile.BLOCKSIZE * -(-len(data) // tarfile.BLOCKSIZE)
                    rows["members"].append(
                        {
                            "key": sample.key,
                            "referent_id": sample.key,
                            "name": name,
                            "offset": offset,
                            "size": len(data),
                            "sha256": digest,
                        }
                    )
    check_members(path, rows["members"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows["shards"] = [
        {
            "path": str(shard_path(Path(), job, shard.name)),
            "source": job.source,
            "split": job.split,
            "index": shard.index,
            "bytes": path.stat().st_size,
            "sha256": sha256,
            "n_clips": n_clips,
            "n_referents": sum(len(p.referents) for p in shard.clips),
            "n_samples": n_samples,
            "n_quarantined": len(rows["quarantine"]),
            "n_qa": len(rows["qa"]),
            "templates": TEMPLATES.to_json(),
            "templates_hash": TEMPLATES.hash,
            "plan_hash": shard.hash,
            "config_hash": job.config.digest(),
            "code_version": CODE_VERSION,
            "preset": job.config.preset,
            "schema_version": SCHEMA_VERSION,
        }
    ]
    return rows, path


def check_members(path: Path, members: list[dict]) -> None:
    """Read a tar back and compare each member's place, size and sha256. ValueError names the first that differs."""
    with path.open("rb") as file:
        for member in members:
            file.seek(member["offset"])
            data = file.read(member["size"])
            if len(data) != member["size"] or hashlib.sha256(data).hexdigest() != member["sha256"]:
                raise ValueError(
                    f"{path}: member {member['key']}.{member['name']} does not read back as written"
                )


# --- what is there --------------------------------------------------------------------------------------------------


def committed(out: Path, job: Job) -> dict[str, str]:
    """Names of the committed shards of a split, each with the hash of the plan it was made from."""
    found = {}
    for path in part_paths(out, "shards", job.name):
        # No row: the claim of a publisher, in a copy of an object store.
        for name, tar, plan_hash in _columns(path, "shard", "path", "plan_hash"):
            if name == path.stem and (out / tar).exists():
                found[name] = plan_hash
    return found


def unchanged(job: Job, name: str) -> bool:
    """Whether a committed shard's source files are surely those that were curated. A quick look that needs no plan.

    False also where its rows cannot tell: clips that are folders of images, files that are links or gone. Then ask
    `changed_clips`.
    """
    root = job.root
    folders: dict[str, Path] = {}
    columns = ("media_kind", "media_path", "source_bytes", "source_mtime_ns")
    for kind, path, size, mtime in set(_columns(part_path(Path(job.out), "clips", name), *columns)):
        parent, _, file = path.rpartition("/")
        try:
            if parent not in folders:  # each is checked once: most of the time would go there
                folders[parent] = root.file(parent) if parent else root.path
            found = os.lstat(f"{folders[parent]}/{file}")
        except (OSError, Quarantined):
            return False
        if (
            kind != "video"
            or not stat.S_ISREG(found.st_mode)
            or (found.st_size, found.st_mtime_ns) != (size, mtime)
        ):
            return False
    return True


def _columns(path: Path, *names: str) -> list[tuple]:
    """Rows of some columns of a part. `pq.read_table` would take three times as long for a file this small."""
    with pq.ParquetFile(path) as file:
        data = file.read(columns=list(names), use_threads=False)
    return list(zip(*(data[name].to_pylist() for name in names), strict=True))


def changed_clips(job: Job, shard: ShardPlan) -> list[str]:
    """Clips of a committed shard whose source files are no longer those that were curated (size or mtime)."""
    names = ("clip_id", "source_bytes", "source_mtime_ns")
    rows = _columns(part_path(Path(job.out), "clips", shard.name), *names)
    known = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
    changed = []
    for planned in shard.clips:
        row = known.get(planned.clip.clip_id)
        if row is not None and _changed(job, planned, row):
            changed.append(planned.clip.clip_id)
    return changed


def _changed(job: Job, planned: Planned, row: dict) -> bool:
    try:
        now = fingerprint(job.root, planned.clip)
    except Quarantined:
        return False  # a source file that is gone does not undo what was made of it
    return (now.size, now.mtime_ns) != (row["source_bytes"], row["source_mtime_ns"])


def withdraw(out: Path, name: str) -> None:
    """Take a shard's commit back: its `shards` row goes first, the rest is garbage from then on."""
    part_path(out, "shards", name).unlink(missing_ok=True)


def sweep(out: Path, job: Job, keep: set[str], *, live: Collection[str] | None = None) -> list[str]:
    """Remove what is not committed and not about to be: tars and parts without a `shards` row, old staging folders.

    keep: names of staging folders (`<shard>-<hash>`) that the current plan still wants. live: names of the committed
    shards, by somebody who has just asked. Returns what was removed.
    """
    live, removed = committed(out, job) if live is None else live, []
    for path in _files_of(out, job):
        if path.stem not in live:
            path.unlink()
            removed.append(str(path.relative_to(out)))
    stage = out / ".staging"
    for folder in sorted(stage.glob(f"{job.name}-[0-9]*")) if stage.exists() else []:
        if folder.name not in keep:
            shutil.rmtree(folder)
            removed.append(str(folder.relative_to(out)))
    return removed


def _files_of(out: Path, job: Job) -> Iterator[Path]:
    pattern = f"{job.name}-[0-9]*"
    yield from sorted((out / job.source / job.split / "shards").glob(f"{pattern}.tar"))
    for table in SHARD_TABLES:
        yield from sorted((out / "manifests" / table).glob(f"{pattern}.parquet"))


def job_record(job: Job) -> str:
    """The job as canonical JSON, for the `runs` table."""
    return canonical_json(job.model_dump(mode="json"))
