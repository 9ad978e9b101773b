"""Reshard: the same members and rows in other shards. Bytes are copied and hashed, nothing is decoded or made anew.

The new shards are built whole in `.staging/reshard-<source>-<split>/`, laid out as an output is, with its plan.
A file `ready` there says that they are complete and on disk. From then on `finish` can be called at any time, again and
again: it withdraws the old shards' commits, moves tars, parts and plan into place, then commits the new ones, and only
then removes what is left of the old. Nobody ever reads an old row with new bytes.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from manifests.parts import grouped, read_rows
from schemas import tables
from schemas.files import sync, write_whole
from schemas.parts import part_names

PARTS = tuple(t for t in tables.TABLES if t not in ("runs", "shards"))
OF_REFERENT = ("tracks", "masks", "tsf", "tsf_features", "qa", "members")


@dataclass(frozen=True, slots=True)
class Unit:
    """What stays together: a clip with its samples, or (clip_id "") one row that the plan rejected.

    shard: where it is now; referents: planned; samples, bytes: what they became, tar headers and padding included
    """

    shard: str
    clip_id: str
    referents: int
    samples: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Group:
    """One shard to be."""

    name: str
    index: int
    plan_hash: str
    units: tuple[Unit, ...]


def stage_of(out: Path, name: str) -> Path:
    """Where the reshard of `<source>-<split>` is built."""
    return out / ".staging" / f"reshard-{name}"


def measure(out: Path, shard: str, items: Iterable[tuple[str, int]]) -> Iterator[Unit]:
    """The units of a shard. items: (clip_id, or "" for a rejected row; planned referents), in the plan's order."""
    manifests = out / "manifests"
    referents = pq.read_table(
        manifests / "referents" / f"{shard}.parquet",
        columns=["referent_id", "clip_id"],
        partitioning=None,
    ).to_pylist()
    sizes: dict[str, int] = {}
    members = pq.read_table(
        manifests / "members" / f"{shard}.parquet", columns=["key", "size"], partitioning=None
    )
    for row in members.to_pylist():
        sizes[row["key"]] = sizes.get(row["key"], 0) + tarfile.BLOCKSIZE * (
            1 + -(-row["size"] // tarfile.BLOCKSIZE)
        )
    of_clip = grouped(referents, "clip_id")
    for clip_id, planned in items:
        mine = of_clip.get(clip_id, []) if clip_id else []
        yield Unit(shard, clip_id, planned, len(mine), sum(sizes[r["referent_id"]] for r in mine))


def group(
    units: Iterable[Unit], *, count: int | None = None, size: int | None = None
) -> list[tuple[Unit, ...]]:
    """Units in order, cut where a shard would have more than `count` samples or a tar of more than `size` bytes. A clip
    that is over a limit by itself gets a shard of its own."""
    groups: list[list[Unit]] = [[]]
    samples = held = 0
    for unit in units:
        if (
            samples
            and unit.samples
            and _over(samples + unit.samples, held + unit.bytes, count, size)
        ):
            groups.append([])
            samples = held = 0
        groups[-1].append(unit)
        samples, held = samples + unit.samples, held + unit.bytes
    return [tuple(units) for units in groups if units]


def _over(samples: int, held: int, count: int | None, size: int | None) -> bool:
    whole = -(-(held + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    return (count is not None and samples > count) or (size is not None and whole > size)


# --- build ---------------------------------------------------------------------------------------------------------


class _Shard:
    """A shard as it is, handed out unit by unit."""

    def __init__(self, out: Path, name: str):
        self.row = read_rows(out, "shards", name)[0]
        self.tar = out / self.row["path"]
        self.dim = _dim(out, name)
        self.referents = grouped(read_rows(out, "referents", name), "clip_id")
        self.of_referent = {t: grouped(read_rows(out, t, name), "referent_id") for t in OF_REFERENT}
        self.of_clip = {
            t: grouped(read_rows(out, t, name), "clip_id") for t in ("clips", "timings")
        }
        self.quarantine = iter(read_rows(out, "quarantine", name))
        self.next = next(self.quarantine, None)

    def take(self, unit: Unit) -> dict[str, list[dict]]:
        """The unit's rows of every table."""
        rows = {
            table: groups.get(unit.clip_id, []) if unit.clip_id else []
            for table, groups in self.of_clip.items()
        }
        rows["referents"] = self.referents.get(unit.clip_id, []) if unit.clip_id else []
        for table, groups in self.of_referent.items():
            rows[table] = [
                row for r in rows["referents"] for row in groups.get(r["referent_id"], [])
            ]
        rows["quarantine"] = []
        while self.next is not None and self._belongs(self.next, unit, bool(rows["quarantine"])):
            rows["quarantine"].append(self.next)
            self.next = next(self.quarantine, None)
        return rows

    @staticmethod
    def _belongs(row: dict, unit: Unit, has_one: bool) -> bool:
        """Rows of quarantine are in the plan's order: one for a rejected row, those of its referents for a clip."""
        if not unit.clip_id:
            return row["stage"] == "plan" and not has_one
        return row["stage"] != "plan" and row["clip_id"] == unit.clip_id


def build(out: Path, stage: Path, groups: list[Group], tick: Callable[[int], object]) -> None:
    """Write the new shards under `stage`. ValueError if a member is not what the manifest says, or rows are left."""
    current: _Shard | None = None
    name = ""
    for shard in groups:
        rows: dict[str, list[dict]] = {table: [] for table in PARTS}
        first: _Shard | None = None
        path = stage / "shard.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for unit in shard.units:
                if current is None or unit.shard != name:
                    _all_taken(current, name)
                    current, name = _Shard(out, unit.shard), unit.shard
                first = first or current
                taken = current.take(unit)
                taken["members"] = list(_copy(current.tar, taken["members"], tar))
                for table in PARTS:
                    rows[table] += taken[table]
        assert first is not None
        _write(stage, path, shard, rows, first)
        tick(1)
    _all_taken(current, name)


def _all_taken(shard: _Shard | None, name: str) -> None:
    if shard is not None and shard.next is not None:
        raise ValueError(
            f"{name}: quarantine has a row of {shard.next['clip_id']} which the plan does not explain"
        )


def _copy(source: Path, members: list[dict], tar: tarfile.TarFile) -> Iterator[dict]:
    """Append members, header and all; yields their rows with the new offsets."""
    with source.open("rb") as file:
        for member in members:
            file.seek(member["offset"] - tarfile.BLOCKSIZE)
            info = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "strict")
            data = file.read(member["size"])
            label = f"{member['key']}.{member['name']}"
            if info.name != label or hashlib.sha256(data).hexdigest() != member["sha256"]:
                raise ValueError(
                    f"{source}: {label} is not what the manifest says: `sparrow repair` first"
                )
            tar.addfile(info, io.BytesIO(data))
            yield member | {
                "offset": tar.offset - tarfile.BLOCKSIZE * -(-len(data) // tarfile.BLOCKSIZE)
            }


def _write(
    stage: Path, path: Path, shard: Group, rows: dict[str, list[dict]], first: _Shard
) -> None:
    """Move the tar to its name and write the parts. What is the run's (config, code, preset) is as it was."""
    row = first.row
    relative = f"{row['source']}/{row['split']}/shards/{shard.name}.tar"
    final = stage / relative
    final.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    os.replace(path, final)
    parts = {
        table: stage / "manifests" / table / f"{shard.name}.parquet" for table in (*PARTS, "shards")
    }
    new = row | {
        "path": relative,
        "index": shard.index,
        "bytes": final.stat().st_size,
        "sha256": sha256,
        "n_clips": len(rows["clips"]),
        "n_referents": sum(unit.referents for unit in shard.units),
        "n_samples": len(rows["referents"]),
        "n_quarantined": len(rows["quarantine"]),
        "n_qa": len(rows["qa"]),
        "plan_hash": shard.plan_hash,
    }
    for table, part in parts.items():
        part.parent.mkdir(parents=True, exist_ok=True)
        if table == "shards":  # written last: it vouches for the others
            rows["shards"] = [new | {"parts_sha256": tables.digests(parts)}]
        for entry in rows[table]:
            entry["shard"] = shard.name
        tables.write(part, table, rows[table], dim=first.dim)
        sync(part)


def _dim(out: Path, name: str) -> int:
    form = pq.read_schema(out / "manifests" / "tsf_features" / f"{name}.parquet")
    return form.field("feature").type.list_size


# --- swap ----------------------------------------------------------------------------------------------------------


def ready(stage: Path, names: list[str]) -> None:
    """All new shards are there: from now on the swap will happen."""
    write_whole(stage / "ready", json.dumps(names))


def pending(out: Path, name: str) -> bool:
    """Whether a swap of `<source>-<split>` was interrupted."""
    return any((stage_of(out, name) / mark).exists() for mark in ("ready", "moved"))


def finish(out: Path, name: str) -> bool:
    """Swap the old shards for the new ones, or go on with it; whether there was anything to do. Sweeps a reshard that
    did not get as far as being ready. Call it with the lock of `name` held.

    A marker that cannot be read is one of a full disk or of a damaged file: as long as an old shard is committed, the
    swap has not begun or is worth nothing, and the reshard is swept. ValueError if no shard at all is left.
    """
    stage, manifests = stage_of(out, name), out / "manifests"
    if not stage.is_dir():
        return False
    begun, moved = stage / "ready", stage / "moved"
    if not pending(out, name):
        shutil.rmtree(stage)
        return False
    names = _named(moved if moved.exists() else begun)
    if names is None and part_names(out, "shards", name):
        shutil.rmtree(stage)
        return False
    if names is None:
        raise ValueError(
            f"{stage}: a reshard was interrupted, and its marker cannot be read. Delete that folder, and run "
            f"`sparrow curate` again: it makes the shards of {name} anew"
        )
    if begun.exists():
        for part in manifests.glob(f"shards/{name}-[0-9]*.parquet"):
            part.unlink()
        sync(manifests / "shards")
        _move(
            stage,
            out,
            (
                p
                for p in stage.rglob("*")
                if p.is_file() and p.parent.name != "shards" and p != begun
            ),
        )
        _move(stage, out, stage.glob("*/*/shards/*.tar"))
        os.replace(begun, moved)
        sync(stage)
    _move(stage, out, sorted((stage / "manifests" / "shards").glob("*.parquet")))
    for path in [
        *out.glob(f"*/*/shards/{name}-[0-9]*.tar"),
        *manifests.glob(f"*/{name}-[0-9]*.parquet"),
    ]:
        if path.parent.name != "runs" and path.stem not in names:
            path.unlink()
    shutil.rmtree(stage)
    return True


def _named(mark: Path) -> set[str] | None:
    """Names of the new shards, of a marker; None if it is not whole."""
    try:
        names = json.loads(mark.read_text())
    except (OSError, ValueError):
        return None
    return set(names) if isinstance(names, list) and set(map(type, names)) == {str} else None


def _move(stage: Path, out: Path, files: Iterable[Path]) -> None:
    folders = set()
    for path in list(files):
        target = out / path.relative_to(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        folders.add(target.parent)
    for folder in folders:
        sync(folder)


def is_resharded(plan: Path) -> bool:
    """Whether the shards of a saved plan are those of a reshard: planning again would cut them as they were before."""
    return b"resharded" in (pq.read_metadata(plan).metadata or {})
