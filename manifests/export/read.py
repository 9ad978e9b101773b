"""What an exporter is given: one clip at a time with its targets, from the manifests, and its pictures from the tar."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.catalog import connect, rows_of
from schemas.contents import files_in
from schemas.geometry import RLE, Boxes, rle_check
from schemas.members import MemberError, open_regular, read_range, tar_path
from schemas.records import KEY
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import stored_pictures

JPEG_QUALITY = 95
"""Of pictures that were stored as video. Those stored as JPEG are copied."""

_MEDIA = ("mp4", "frames.tar")
_BOX = ("x1", "y1", "x2", "y2")


@dataclass(slots=True)
class Target:
    """One referent over the T frames of its clip.

    boxes_t4: xyxy pixels, half-open, 0-based, NaN without a box; also of frames that are not kept
    absent_t: the dataset looked, and the target is not there. A frame that is neither kept nor absent says nothing
    masks: frame -> RLE of the clip's size, kept frames only
    """

    info: dict[str, Any]
    boxes_t4: Boxes
    kept_t: NDArray[np.bool_]
    absent_t: NDArray[np.bool_]
    masks: dict[int, RLE] = field(default_factory=dict)
    qa: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.info["referent_id"]


@dataclass(slots=True)
class Clip:
    """A clip, its chosen targets in the order of their ids, and where its media is."""

    row: dict[str, Any]
    targets: list[Target]
    tar: Path
    media: dict[str, Any] | None
    """Row of `members`; None where the clip was curated without media."""

    @property
    def key(self) -> str:
        return self.row["clip_id"]

    @property
    def size(self) -> tuple[int, int]:
        """Height, width: of masks and pictures."""
        return self.row["height"], self.row["width"]

    def stored(self) -> bytes:
        """The media member as it was stored, whole: see `media["name"]` for what it is.

        Looks at the masks first, so that nothing is written of a clip that is wrong. ValueError where one is, where the
        clip has no media, or its media is not what the manifest says.
        """
        for target in self.targets:
            for rle in target.masks.values():
                rle_check(rle, self.size)
        if self.media is None:
            raise ValueError("it was curated without media; curate with --set media.media=mp4")
        with open_regular(self.tar) as file:
            data = read_range(file, self.media["offset"], self.media["size"], self.key)
        if hashlib.sha256(data).hexdigest() != self.media["sha256"]:
            raise ValueError(
                f"{self.tar.name}: the media is damaged (`sparrow verify --deep` looks at all of it)"
            )
        return data

    def pictures(self) -> list[bytes]:
        """All frames as JPEG, in order, of exactly the clip's size (video is padded to even sizes).

        ValueError as of `stored`, and where the number of frames is another than the manifest's.
        """
        data = self.stored()
        video = self.media is not None and self.media["name"] == "mp4"
        found = _of_video(data, *self.size) if video else _of_tar(data)
        if len(found) != self.row["n_frames"]:
            raise ValueError(
                f"{self.tar.name}: the media has {len(found)} frames, the clip {self.row['n_frames']}"
            )
        return found


def read_clips(
    out: Path, sources: Sequence[str], splits: Sequence[str], where: str
) -> tuple[int, Iterator[Clip]]:
    """How many targets match, and their clips in the order of source, split and shard.

    sources, splits: empty for all. where: an SQL condition over `referents`. ValueError where nothing matches.
    """
    with connect(out) as catalogue:
        there = [
            r["source"]
            for r in rows_of(catalogue, "SELECT DISTINCT source FROM referents ORDER BY 1")
        ]
        if unknown := sorted(set(sources) - set(there)):
            raise ValueError(
                f"{out} has no samples of {', '.join(unknown)}; it has {', '.join(there)}"
            )
        chosen = rows_of(
            catalogue,
            "SELECT r.shard, s.path, r.source, r.split, r.clip_id, r.referent_id FROM (SELECT * FROM referents WHERE "
            f"({where})) r JOIN shards s USING (shard) "
            "WHERE (len($1::VARCHAR[]) = 0 OR list_contains($1::VARCHAR[], r.source::VARCHAR)) "
            "AND (len($2::VARCHAR[]) = 0 OR list_contains($2::VARCHAR[], r.split::VARCHAR)) "
            "ORDER BY r.source, r.split, r.shard, r.clip_id, r.referent_id",
            [list(sources), list(splits)],
        )
    if not chosen:
        raise ValueError(f"{out}: no sample matches; loosen --source, --split or --where")
    for row in chosen:  # they become names of files
        for column in ("shard", "source", "split", "clip_id", "referent_id"):
            if not KEY.fullmatch(row[column]):
                raise ValueError(
                    f"{out}: {column} {row[column]!r:.80} is not a key ({KEY.pattern})"
                )
    shards = [
        (*place, {r["referent_id"] for r in rows}) for place, rows in _by(chosen, "shard", "path")
    ]
    return len(chosen), (
        clip for shard, path, keys in shards for clip in _shard(out, shard, path, keys)
    )


def safe(name: str) -> str:
    """A name out of an annotation as one folder name: it can neither leave its folder nor hide in it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:120] or "_"


def _by(rows: list[dict], *columns: str) -> Iterator[tuple[tuple, list[dict]]]:
    for key, group in groupby(rows, lambda row: tuple(row[c] for c in columns)):
        yield key, list(group)


def _shard(out: Path, shard: str, path: str, keys: set[str]) -> Iterator[Clip]:
    try:
        tar = tar_path(out, path)
    except MemberError as error:
        raise ValueError(f"{out}: the manifest of {shard}: {error}") from error
    targets = {row["referent_id"]: _target(row) for row in _part(out, "referents", shard, keys)}
    for row in _part(out, "tracks", shard, keys):
        target, t = targets[row["referent_id"]], row["frame"]
        target.boxes_t4[t] = [np.nan if row[c] is None else row[c] for c in _BOX]
        target.kept_t[t] = row["kept"]
        target.absent_t[t] = row["known"] and not row["kept"] and row["ann_x1"] is None
    for row in _part(out, "masks", shard, keys):
        rle: RLE = {"size": [row["height"], row["width"]], "counts": row["counts"]}
        targets[row["referent_id"]].masks[row["frame"]] = rle
    for row in _part(out, "qa", shard, keys):
        targets[row["referent_id"]].qa.append(row)
    clips = {row["clip_id"]: row for row in _part(out, "clips", shard)}
    media = {m["referent_id"]: m for m in _part(out, "members", shard, keys) if m["name"] in _MEDIA}
    ordered = sorted(targets.values(), key=lambda one: (one.info["clip_id"], one.key))
    for clip_id, group in groupby(ordered, lambda one: one.info["clip_id"]):
        mine = list(group)
        yield Clip(clips[clip_id], mine, tar, media.get(mine[0].key))


def _target(info: dict) -> Target:
    n = info["n_frames"]
    return Target(info, np.full((n, 4), np.nan, np.float32), np.zeros(n, bool), np.zeros(n, bool))


def _part(out: Path, table: str, shard: str, keys: set[str] | None = None) -> list[dict]:
    filters = None if keys is None else [("referent_id", "in", keys)]
    path = out / "manifests" / table / f"{shard}.parquet"
    return pq.read_table(path, partitioning=None, filters=filters).to_pylist()


def _of_video(data: bytes, height: int, width: int) -> list[bytes]:
    found = []
    for _, picture in stored_pictures(data):
        if not (0 <= picture.shape[0] - height <= 1 and 0 <= picture.shape[1] - width <= 1):
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            raise ValueError(f"the media is {size}, the clip {width}x{height}")
        found.append(encode_jpeg(picture[:height, :width], JPEG_QUALITY))
    return found


def _of_tar(data: bytes) -> list[bytes]:
    files = files_in(data)
    return [files[name] for name in sorted(files)]
