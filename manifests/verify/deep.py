"""Bytes of one shard: every member read, decoded, and compared with the rows that say the same thing."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from manifests.verify.fast import Parts
from manifests.verify.problem import Problem, some
from schemas.contents import files_in, load_array
from schemas.geometry import rle_check
from schemas.members import MemberError, open_regular, read_range
from schemas.records import FALLBACK, ORIGINS
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_pictures

EDGE = 0.01
"""Pixels that float32 may put a box outside its frame."""


def check_tar(name: str, tar: Path, row: dict, parts: Parts) -> list[Problem]:
    """What is wrong with the bytes of shard `name`, and between them and its tables."""
    problems = _walk(name, tar, row, parts)
    rows = {
        table: parts[table].to_pylist()
        for table in ("clips", "referents", "tracks", "masks", "tsf", "qa", "members")
    }
    with open_regular(tar) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != row["sha256"]:
            problems.append(
                Problem(name, row["path"], "sha256 differs from the manifest", kind="bytes")
            )
        problems += _members(name, file, rows, parts["tsf_features"])
    return problems + _frames(name, rows)


def _walk(name: str, tar: Path, row: dict, parts: Parts) -> list[Problem]:
    """The tar's own headers against `members`: what any reader of tars would find."""
    found = []
    try:
        with tarfile.open(tar, "r:") as file:
            found = [(info.name, info.offset_data, info.size) for info in file]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        return [Problem(name, row["path"], f"cannot be read as a tar: {error}", kind="bytes")]
    members = parts["members"].select(["key", "name", "offset", "size"]).to_pylist()
    wanted = [(f"{m['key']}.{m['name']}", m["offset"], m["size"]) for m in members]
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    return [
        *some(
            name,
            row["path"],
            "not in the tar where the manifest says",
            sorted(n for n, *_ in missing),
            "bytes",
        ),
        *some(
            name,
            row["path"],
            "in the tar, and not in the manifest",
            sorted(n for n, *_ in extra),
            "bytes",
        ),
    ]


def _members(
    name: str, file: Any, rows: dict[str, list[dict]], features: pa.Table
) -> list[Problem]:
    clips = {c["clip_id"]: c for c in rows["clips"]}
    samples = {r["referent_id"]: _Sample(r, clips.get(r["clip_id"], {})) for r in rows["referents"]}
    for table in ("tracks", "masks", "tsf", "qa"):
        for r in rows[table]:
            if r["referent_id"] in samples:
                getattr(samples[r["referent_id"]], table).append(r)
    wide = features.sort_by([("referent_id", "ascending"), ("rank", "ascending")])
    vectors = wide["feature"].combine_chunks()
    array = (
        vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(wide), -1)
        if len(wide)
        else None
    )
    for i, key in enumerate(wide["referent_id"].to_pylist()):
        if key in samples and array is not None:
            samples[key].features.append(array[i])
    spoilt, wrong, seen = [], dict[str, list[str]](), dict[str, list[str]]()
    for member in rows["members"]:
        label = f"{member['key']}.{member['name']}"
        try:
            data = read_range(file, member["offset"], member["size"], label)
        except MemberError:
            spoilt.append(label)
            continue
        if hashlib.sha256(data).hexdigest() != member["sha256"]:
            spoilt.append(label)
            continue
        sample = samples.get(member["key"])
        if sample is None:
            continue  # an orphan, reported by the fast check
        known = f"{member['sha256']} {sample.clip.get('clip_id')}"
        if (
            member["name"] in ("mp4", "frames.tar") and known in seen
        ):  # referents of a clip share its media
            faults = seen[known]
        else:
            faults = seen[known] = _faults(member["name"], data, sample)
        for what in faults:
            wrong.setdefault(what, []).append(label)
    problems = some(name, "members", "sha256 differs from the manifest", spoilt, "bytes")
    for what, labels in wrong.items():
        problems += some(name, "members", what, labels)
    return problems


class _Sample:
    """The rows of one referent."""

    def __init__(self, referent: dict, clip: dict) -> None:
        self.referent, self.clip = referent, clip
        self.tracks: list[dict] = []
        self.masks: list[dict] = []
        self.tsf: list[dict] = []
        self.qa: list[dict] = []
        self.features: list[np.ndarray] = []


def _faults(name: str, data: bytes, sample: _Sample) -> list[str]:
    """What is wrong with one member whose bytes are those that were written."""
    try:
        return list(_decoded(name, data, sample))
    except (
        ValueError,
        KeyError,
        TypeError,
        OSError,
        EOFError,
        tarfile.TarError,
        cv2.error,
    ) as error:
        return [f"cannot be decoded: {str(error)[:160] or type(error).__name__}"]


def _decoded(name: str, data: bytes, sample: _Sample) -> Iterator[str]:
    frames = sample.referent["n_frames"]
    if name == "track.npy":
        yield from _track(load_array(data), sample)
    elif name == "tsf.npy":
        array = load_array(data)
        if not np.isfinite(array.astype(np.float32)).all():
            yield "features are not finite"
        elif not np.array_equal(array, np.array(sample.features, array.dtype)):
            yield "features differ from tsf_features"
    elif name.endswith(".npy"):
        load_array(data)
    elif name == "masks.json":
        size = (sample.clip["height"], sample.clip["width"])
        masks = {int(t): rle_check(rle, size) for t, rle in json.loads(data).items()}
        table = {
            m["frame"]: {"size": [m["height"], m["width"]], "counts": m["counts"]}
            for m in sample.masks
        }
        if masks != table:
            yield "masks differ from the table masks"
    elif name == "json":
        yield from _description(json.loads(data), sample)
    elif name.endswith(".jpg"):
        picture = decode_picture(data)
        rank = next((r for r in sample.tsf if f"crop{r['rank']}.jpg" == name), None)
        if rank and picture.shape[:2] != (rank["crop_height"], rank["crop_width"]):
            yield "the crop's size differs from tsf"
    elif name in ("mp4", "frames.tar"):
        found = _count_video(data) if name == "mp4" else _count_pictures(data)
        if found != frames:
            yield f"{found} frames can be decoded, the clip has {frames}"


def _track(array: np.ndarray, sample: _Sample) -> Iterator[str]:
    """The `.track.npy` against `tracks` and `masks`, column by column, bit for bit."""
    rows = sample.tracks
    if len(array) != len(rows):
        yield "as many frames as tracks are expected"
        return
    fallbacks = {m["frame"] for m in sample.masks if m["origin"].endswith(FALLBACK)}
    for column in array.dtype.names or ():
        if column == "fallback":
            if not np.array_equal(array[column], [r["frame"] in fallbacks for r in rows]):
                yield "fallback differs from masks"
            continue
        values = [r[column] for r in rows]
        if column == "origin":
            table = np.array([ORIGINS.index(v) for v in values], np.uint8)
        else:
            table = np.array([np.nan if v is None else v for v in values], array.dtype[column])
        mine = array[column]
        other = np.flatnonzero(
            (mine != table) & ~((mine != mine) & (table != table))
        )  # NaN here is NULL there
        if other.size:
            yield f"{column} differs from tracks, first in frame {rows[other[0]]['frame']}"


def _description(described: dict, sample: _Sample) -> Iterator[str]:
    """The `.json` against referents, clips, tsf and qa: what it says must be what they say."""
    pairs = [
        (described["referent"], sample.referent, "referents"),
        (described["clip"], sample.clip, "clips"),
    ]
    lists = [(described["tsf"], sample.tsf, "tsf"), (described["qa"], sample.qa, "qa")]
    for entries, stored, table in lists:
        if len(entries) != len(stored):
            yield f"{len(entries)} entries, {table} has {len(stored)}"
        pairs += [(a, b, table) for a, b in zip(entries, stored, strict=False)]
    for mine, theirs, table in pairs:
        for column, value in mine.items():
            if column not in theirs or not _same(value, theirs[column]):
                yield f"{column} differs from {table}"


def _same(value: Any, stored: Any) -> bool:
    if isinstance(value, float) and isinstance(stored, float):
        return bool(np.float32(value) == np.float32(stored))
    return value == stored


def _count_video(data: bytes) -> int:
    return sum(1 for _ in stored_pictures(data))


def _count_pictures(data: bytes) -> int:
    return sum(decode_picture(picture).size > 0 for picture in files_in(data).values())


def _frames(name: str, rows: dict[str, list[dict]]) -> list[Problem]:
    """Boxes lie inside their frames; masks and representatives are of kept frames of their track."""
    sizes = {c["clip_id"]: (c["height"], c["width"]) for c in rows["clips"]}
    kept = {(t["referent_id"], t["frame"]) for t in rows["tracks"] if t["kept"]}
    problems = []
    for table in ("tracks", "tsf"):
        outside = []
        for r in rows[table]:
            box = [r[c] for c in ("x1", "y1", "x2", "y2")]
            if box == [None] * 4:
                continue
            height, width = sizes.get(r["clip_id"], (0, 0))
            x1, y1, x2, y2 = (np.nan if v is None else v for v in box)
            if not (0 <= x1 < x2 <= width + EDGE and 0 <= y1 < y2 <= height + EDGE):
                outside.append(f"{r['referent_id']} frame {r['frame']}")
        problems += some(name, f"manifests/{table}", "box outside its frame", outside)
    for table in ("tsf", "masks"):
        loose = [
            f"{r['referent_id']} frame {r['frame']}"
            for r in rows[table]
            if (r["referent_id"], r["frame"]) not in kept
        ]
        problems += some(
            name, f"manifests/{table}", "frame is not a kept frame of its track", loose
        )
    broken = []
    for r in rows["masks"]:
        try:
            rle_check(
                {"size": [r["height"], r["width"]], "counts": r["counts"]}, sizes.get(r["clip_id"])
            )
        except ValueError:
            broken.append(f"{r['referent_id']} frame {r['frame']}")
    return problems + some(name, "manifests/masks", "the RLE does not add up to its frame", broken)
