"""Verify: is what the `shards` table promises really there, and is nothing there that it does not name?

Fast: files, sizes, schemas, counts, keys, references between tables. Deep: every byte of every tar, every member
decoded, boxes inside frames, representatives inside tracks. Problems are values; nothing here repairs or deletes.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from schemas import SCHEMA_VERSION
from schemas.geometry import rle_check
from schemas.tables import TABLES, schema

PER_SHARD = tuple(t for t in TABLES if t != "runs")
COUNTED = ("tracks", "masks", "tsf", "tsf_features")
"""Long tables of which the fast check needs nothing but whose rows they are."""
REQUIRED = ("json", "track.npy", "tsf.npy", "masks.json")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: which shard, what file or table, what about it."""

    shard: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.where}: {self.what}"


@dataclass(slots=True)
class Report:
    """What was looked at, and what was found."""

    shards: int = 0
    samples: int = 0
    members: int = 0
    bytes: int = 0
    deep: bool = False
    problems: list[Problem] | None = None

    def as_dict(self) -> dict:
        return asdict(self)


def verify(out: Path, *, deep: bool = False, tick: Callable[[int], None] | None = None) -> Report:
    """Check an output. FileNotFoundError if it holds no manifests at all."""
    folder = out / "manifests" / "shards"
    if not folder.is_dir():
        raise FileNotFoundError(f"{out} is not an output of sparrow: there is no {folder}")
    report = Report(deep=deep, problems=[])
    problems = report.problems
    assert problems is not None
    names, keys = [], Counter[str]()
    for part in sorted(folder.glob("*.parquet")):
        name = part.stem
        names.append(name)
        loaded = _load_parts(out, name, deep, problems)
        if loaded is None:
            continue
        row = loaded["shards"][0]
        report.shards += 1
        report.samples += row["n_samples"]
        report.members += len(loaded["members"])
        report.bytes += row["bytes"]
        keys.update({m["key"] for m in loaded["members"]})
        problems += _check_tables(name, row, loaded)
        tar = out / row["path"]
        if not tar.is_file():
            problems.append(Problem(name, row["path"], "the tar is missing"))
        elif tar.stat().st_size != row["bytes"]:
            problems.append(Problem(name, row["path"], f"{tar.stat().st_size} bytes, the manifest says {row['bytes']}"))
        elif deep:
            problems += _check_tar(name, tar, row, loaded)
        if tick:
            tick(1)
    problems += [Problem("*", key, f"the key is in {n} shards") for key, n in keys.items() if n > 1]
    problems += _check_plans(out, names)
    problems += _garbage(out, set(names))
    return report


def _load_parts(out: Path, name: str, deep: bool, problems: list[Problem]) -> dict[str, list[dict]] | None:
    """The rows of a shard's parts, or None when one of them cannot be read."""
    rows: dict[str, list[dict]] = {}
    for table in PER_SHARD:
        path = out / "manifests" / table / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                form = file.schema_arrow
                short = ["referent_id", "shard"] if table in COUNTED and not deep else None
                data = file.read(columns=[c for c in short if c in form.names] if short else None)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            problems.append(Problem(name, f"manifests/{table}", f"cannot be read: {str(error).splitlines()[0][:160]}"))
            return None
        written = (form.metadata or {}).get(b"schema_version", b"none").decode()
        if written != str(SCHEMA_VERSION):
            problems.append(
                Problem(name, f"manifests/{table}", f"schema version {written}, this code reads {SCHEMA_VERSION}")
            )
            return None
        feature = form.field("feature").type if "feature" in form.names else None
        dim = getattr(feature, "list_size", 1)  # of tsf_features; other tables do not use it
        if not form.equals(schema(table, dim=dim)):
            problems.append(Problem(name, f"manifests/{table}", "columns differ from the schema"))
            return None
        rows[table] = data.to_pylist()
        strangers = {r["shard"] for r in rows[table]} - {name}
        if strangers:
            problems.append(Problem(name, f"manifests/{table}", f"rows of another shard: {sorted(strangers)[:3]}"))
    if len(rows["shards"]) != 1:
        problems.append(Problem(name, "manifests/shards", f"{len(rows['shards'])} rows, expected 1"))
        return None
    return rows


def _check_tables(name: str, row: dict, rows: dict[str, list[dict]]) -> Iterator[Problem]:
    referents = {r["referent_id"]: r for r in rows["referents"]}
    clips = {c["clip_id"] for c in rows["clips"]}
    counts = {
        "n_clips": len(rows["clips"]), "n_samples": len(rows["referents"]),
        "n_qa": len(rows["qa"]), "n_quarantined": len(rows["quarantine"]),
    }  # fmt: skip
    for column, found in counts.items():
        if row[column] != found:
            yield Problem(name, "manifests/shards", f"{column} is {row[column]}, the part has {found} rows")
    for table in ("clips", "referents", "qa"):
        column = {"clips": "clip_id", "referents": "referent_id", "qa": "qa_id"}[table]
        for key, n in Counter(r[column] for r in rows[table]).items():
            if n > 1:
                yield Problem(name, f"manifests/{table}", f"{column} {key} appears {n} times")
    for referent in rows["referents"]:
        if referent["clip_id"] not in clips:
            yield Problem(
                name,
                "manifests/referents",
                f"{referent['referent_id']}: its clip {referent['clip_id']} is not in clips",
            )
    per = {
        t: Counter(r["referent_id"] for r in rows[t])
        for t in ("tracks", "masks", "tsf", "tsf_features", "qa", "members")
    }
    for table, counter in per.items():
        for orphan in sorted(counter.keys() - referents.keys()):
            yield Problem(name, f"manifests/{table}", f"{orphan}: rows without a referent")
    for key, referent in referents.items():
        expected = {
            "tracks": referent["n_frames"], "masks": referent["n_masks"], "qa": referent["n_qa"],
            "tsf": per["tsf_features"][key],
        }  # fmt: skip
        for table, n in expected.items():
            if per[table][key] != n:
                yield Problem(name, f"manifests/{table}", f"{key}: {per[table][key]} rows, expected {n}")
        if per["members"][key] < len(REQUIRED) + per["tsf"][key]:
            yield Problem(name, "manifests/members", f"{key}: only {per['members'][key]} members")
    last = None
    for member in rows["members"]:
        if last is not None and member["offset"] < last:
            yield Problem(name, "manifests/members", f"{member['key']}.{member['name']}: overlaps the one before")
        last = member["offset"] + member["size"]


def _check_tar(name: str, tar: Path, row: dict, rows: dict[str, list[dict]]) -> Iterator[Problem]:
    with tar.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != row["sha256"]:
            yield Problem(name, row["path"], "sha256 differs from the manifest")
        sizes = {c["clip_id"]: (c["height"], c["width"]) for c in rows["clips"]}
        referents = {r["referent_id"]: r for r in rows["referents"]}
        for member in rows["members"]:
            where = f"{member['key']}.{member['name']}"
            file.seek(member["offset"])
            data = file.read(member["size"])
            if hashlib.sha256(data).hexdigest() != member["sha256"]:
                yield Problem(name, where, "sha256 differs from the manifest")
                continue
            size = sizes.get(referents.get(member["key"], {}).get("clip_id", ""))
            for what in _check_member(member["name"], data, size):
                yield Problem(name, where, what)
    yield from _check_frames(name, rows, sizes)


def _check_member(name: str, data: bytes, size: tuple[int, int] | None) -> Iterator[str]:
    try:
        if name.endswith(".npy"):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if name == "tsf.npy" and not np.isfinite(array.astype(np.float32)).all():
                yield "features are not finite"
        elif name == "masks.json":
            for rle in json.loads(data).values():
                rle_check(rle, size)
        elif name.endswith("json"):
            json.loads(data)
        elif name.endswith(".jpg") and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None:
            yield "is not a JPEG"
        elif name == "mp4" and _first_frame(data) is None:
            yield "holds no decodable frame"
    except (ValueError, OSError, cv2.error) as error:
        yield f"cannot be decoded: {error}"


def _first_frame(data: bytes) -> object:
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            return next(container.decode(video=0), None)
    except (av.error.FFmpegError, IndexError):
        return None


def _check_frames(name: str, rows: dict[str, list[dict]], sizes: dict[str, tuple[int, int]]) -> Iterator[Problem]:
    """Boxes lie inside their frames; representatives are kept frames of their track."""
    kept = {(t["referent_id"], t["frame"]) for t in rows["tracks"] if t["kept"]}
    for table in ("tracks", "tsf"):
        for r in rows[table]:
            if r["x1"] is None:
                continue
            height, width = sizes.get(r["clip_id"], (0, 0))
            if not (0 <= r["x1"] < r["x2"] <= width + 0.01 and 0 <= r["y1"] < r["y2"] <= height + 0.01):
                yield Problem(
                    name, f"manifests/{table}", f"{r['referent_id']} frame {r['frame']}: box outside {width}x{height}"
                )
    for r in rows["tsf"]:
        if (r["referent_id"], r["frame"]) not in kept:
            yield Problem(
                name, "manifests/tsf", f"{r['referent_id']}: frame {r['frame']} is not a kept frame of its track"
            )


def _check_plans(out: Path, names: list[str]) -> Iterator[Problem]:
    """Every shard that a plan promises is committed: no gaps, no missing end."""
    for path in sorted((out / "plan").glob("*.parquet")):
        promised = json.loads((pq.read_metadata(path).metadata or {}).get(b"counts", b"{}")).get("shards", 0)
        missing = sorted({f"{path.stem}-{index:06d}" for index in range(promised)} - set(names))
        for name in missing:
            yield Problem(name, "manifests/shards", "is planned but not committed: the run is not finished")


def _garbage(out: Path, names: set[str]) -> Iterator[Problem]:
    tars = [p for p in out.glob("*/*/shards/*.tar") if p.stem not in names]
    parts = [
        p for t in PER_SHARD if t != "shards" for p in (out / "manifests" / t).glob("*.parquet") if p.stem not in names
    ]
    for path in sorted(tars + parts):
        yield Problem(
            path.stem, str(path.relative_to(out)), "is not committed: no row of shards names it (run again to sweep)"
        )
