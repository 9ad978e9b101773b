"""How videos look: 64-bit difference hashes of a few frames, which survive resizing and another codec.

They are kept in a Parquet file, so that a second check looks only at what is new.
"""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.catalog import rows_of
from manifests.leaks import LOOKS
from schemas.contents import files_in
from schemas.files import replacing
from schemas.members import read_member
from schemas.video.errors import VideoError
from schemas.video.file import RGBPicture, VideoFile
from schemas.video.pictures import decode_picture
from schemas.video.stored import stored_key_frames, stored_pictures

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PLACE = "report/looks.parquet"
PER_CLIP = 8
"""Frames of a clip that are looked at, evenly spread."""
STEP, PER_VIDEO = 12, 64
"""Of an evaluation video: every so manyeth frame, so that each of a clip's frames has a near one; at most so many."""
FAINT = 2
"""Grey levels by which neighbours must differ to count: less is what codecs make of a flat surface."""
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    cv2.error,
    tarfile.TarError,
)

_STORED = pa.schema([*LOOKS, ("stamp", pa.string())])
_BATCH = 512

Pictures = Iterable[tuple[int, NDArray[np.uint8]]]
"""(frame, picture [H, W, 3] or [H, W])."""


@dataclass(frozen=True, slots=True)
class Footage:
    """Something to look at. key: see `LOOKS`. stamp: changes when the pixels may have. read: its pictures."""

    key: str
    stamp: str
    read: Callable[[], Pictures]


def dhash(picture: NDArray[np.uint8]) -> int:
    """Difference hash: 8 x 8 bits, each says whether a cell is darker than its neighbour at the right."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits((cells[:, 1:] - cells[:, :-1]) > FAINT).tobytes(), "big")


def look(
    footage: Iterable[Footage], cache: Path, *, tick: Callable[[int], Any] | None = None
) -> tuple[pa.Table, dict[str, str]]:
    """`LOOKS` of everything that can be read, and why the rest cannot: key -> reason. What is in `cache` under the same
    stamp is not read again; the rest goes there, in steps, so that an interrupted check goes on."""
    stored = pq.read_table(cache, schema=_STORED) if cache.exists() else _STORED.empty_table()
    known = set(zip(stored["key"].to_pylist(), stored["stamp"].to_pylist(), strict=True))
    wanted: dict[str, str] = {}
    problems: dict[str, str] = {}

    def new() -> Iterator[Footage]:
        for one in footage:
            wanted[one.key] = one.stamp
            if (one.key, one.stamp) in known:
                if tick:
                    tick(1)
            else:
                yield one

    left = new()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(left, _BATCH)):
            rows = []
            for one, hashes in zip(batch, pool.map(_hashes, batch), strict=True):
                if isinstance(hashes, str):
                    problems[one.key] = hashes
                else:
                    rows += [
                        {"key": one.key, "frame": t, "hash": h, "stamp": one.stamp}
                        for t, h in hashes
                    ]
                if tick:
                    tick(1)
            stored = pa.concat_tables([stored, pa.Table.from_pylist(rows, _STORED)])
            _save(stored, cache)
    pairs = zip(stored["key"].to_pylist(), stored["stamp"].to_pylist(), strict=True)
    current = stored.filter(
        pa.array([wanted.get(key) == stamp for key, stamp in pairs], pa.bool_())
    )
    return current.select(LOOKS.names), problems


def _hashes(one: Footage) -> list[tuple[int, int]] | str:
    try:
        found = [(frame, dhash(picture)) for frame, picture in one.read()]
    except UNREADABLE as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return found or "it has no frames"


def _save(table: pa.Table, cache: Path) -> None:
    with replacing(cache) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def spread(items: list, most: int) -> list:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, most).round()]


# --- clips of an output ----------------------------------------------------------------------------------------------


def clips(
    catalogue: "DuckDBPyConnection", out: Path, *, source: str | None = None
) -> tuple[list[Footage], int]:
    """Every clip that has media in a shard, and how many have none."""
    rows = rows_of(
        catalogue,
        """
        WITH m AS (SELECT r.clip_id, m.name, m.sha256, m."offset", m.size, s.path FROM members m
                   JOIN referents r USING (referent_id) JOIN shards s ON s.shard = m.shard
                   WHERE m.name IN ('mp4', 'frames.tar') AND r.source = coalesce($1, r.source)
                   QUALIFY row_number() OVER (PARTITION BY r.clip_id ORDER BY referent_id) = 1)
        FROM m ORDER BY path, "offset" """,
        [source],
    )
    [[total]] = catalogue.execute(
        "SELECT count(DISTINCT clip_id) FROM referents WHERE source = coalesce($1, source)",
        [source],
    ).fetchall()
    return [Footage(row["clip_id"], row["sha256"], _member(out, row)) for row in rows], total - len(
        rows
    )


def _member(out: Path, row: dict) -> Callable[[], Pictures]:
    def read() -> Pictures:
        data = read_member(out, row)
        if row["name"] == "mp4":
            wanted = spread(stored_key_frames(data), PER_CLIP)
            return [(t, _grey(frame)) for t, frame in stored_pictures(data, wanted)]
        files = files_in(data)
        names = spread(sorted(files), PER_CLIP)
        return [(int(name.split(".")[0]), picture(files[name], name)) for name in names]

    return read


# --- videos and folders of pictures ----------------------------------------------------------------------------------


def picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """An encoded picture, in grey. ValueError if it is none."""
    try:
        return _grey(decode_picture(data))
    except VideoError as error:
        raise ValueError(f"{name} is no picture that can be read: {error}") from error


def of_files(files: list[Path]) -> Pictures:
    """Every STEP-th picture of a video that is stored as pictures."""
    steps = list(enumerate(files))[::STEP]
    return ((t, picture(file.read_bytes(), file.name)) for t, file in spread(steps, PER_VIDEO))


def of_video(file: Path) -> Pictures:
    """Every STEP-th frame of a video file, from its start."""
    with VideoFile(file) as video:
        for t, frame in video.first_pictures(STEP * PER_VIDEO + 1, STEP):
            yield t, _grey(frame)


def _grey(picture: RGBPicture) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)
