"""Curated shards as one more corpus: frames of clips, with the boxes of all referents of the clip."""

import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from model.data.index import Index
from model.data.online import read_track
from model.data.read import Reader
from model.data.record import NONSENSE, decode_frames
from model.proposer.config import Head
from pipeline.select import evenly_spaced
from schemas.geometry import Boxes, clip_boxes, is_box
from schemas.records import Quarantined, Reason

HELD_OUT = 10
"""One of so many clips is for validation; which, the clips' names decide."""


class ShardBoxes:
    """`per_clip` frames of each clip: of those that show most of its targets, evenly spaced. A `BoxSet`.

    An object is a target only if an expression is about it alone: what nobody spoke of is in the picture and taught as
    background, unlike in detection datasets. Boxes are the tracks' kept ones, one per object however many expressions
    it has. Items of a clip with fewer such frames repeat them. split: "train", or "val" for the clips held out.
    ValueError if fewer than two clips have a referent about one object.
    """

    name = "shards"
    head: Head = "coco"

    def __init__(self, index: Index, split: str = "train", per_clip: int = 16):
        self.index, self.per_clip = index, per_clip
        self._reader: Reader | None = None
        objects = index.referents["object_ids"].to_pylist()
        clips: list[tuple[str, list[int]]] = []
        for clip, rows in index.clips.items():
            alone = [row for row in rows if len(objects[row] or ()) <= 1]
            targets = {(objects[row] or [f"referent {row}"])[0]: row for row in reversed(alone)}
            if targets:
                clips.append((clip, sorted(targets.values())))
        if len(clips) < 2:
            raise ValueError(
                f"{index.out}: {len(clips)} clips have expressions about single objects; the proposer needs at least "
                "two, as one is for validation"
            )
        clips.sort(key=lambda clip: (zlib.crc32(clip[0].encode()), clip[0]))
        cut = max(1, len(clips) // HELD_OUT)
        self._clips = clips[:cut] if split == "val" else clips[cut:]

    def __len__(self) -> int:
        return len(self._clips) * self.per_clip

    @property
    def fingerprint(self) -> str:
        """As in `BoxSet`; the pixels are in the shards, so theirs too."""
        return self.index.fingerprint

    def key(self, index: int) -> str:
        """The clip, and the number of the item in it."""
        which, item = divmod(index, self.per_clip)
        return f"{self.name}/{self._clips[which][0]}/{item}"

    def load(self, index: int) -> tuple[Image.Image, Boxes]:
        """The RGB frame and its boxes in its pixels. Quarantined: media_unreadable, for members that make no sense."""
        which, item = divmod(index, self.per_clip)
        rows = self._clips[which][1]
        try:
            boxes_nt4 = self._tracks(rows)
            there_nt = ~np.isnan(boxes_nt4).any(2)
            seen_t = there_nt.sum(0)
            most = np.flatnonzero(seen_t == seen_t.max())
            chosen = most[evenly_spaced(len(most), min(self.per_clip, len(most)))]
            t = int(chosen[item % len(chosen)])
            entry = self.index.entry(rows[0])
            media = next(m.name for m in entry.members if m.name in ("mp4", "frames.tar"))
            frames = decode_frames(entry, self._read().members(entry, media), np.array([t]))
        except (*NONSENSE, StopIteration) as error:
            raise Quarantined(Reason.MEDIA_UNREADABLE, f"{self.key(index)}: {error}") from error
        boxes_n4 = clip_boxes(boxes_nt4[there_nt[:, t], t], entry.height, entry.width)
        return Image.fromarray(frames[t]), boxes_n4[is_box(boxes_n4)]

    def _tracks(self, rows: Sequence[int]) -> np.ndarray:
        """[N, T, 4], NaN where a referent has no kept box."""
        found = []
        for row in rows:
            track = read_track(
                self._read().members(self.index.entry(row), "track.npy")["track.npy"]
            )
            boxes_t4 = np.stack([track[c] for c in ("x1", "y1", "x2", "y2")], 1)
            found.append(np.where(track["kept"][:, None], boxes_t4, np.nan))
        return np.stack(found)

    def _read(self) -> Reader:
        self._reader = self._reader or Reader(self.index.out)
        return self._reader
