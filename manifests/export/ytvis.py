"""YouTube-VIS json: a file per source and split, a video per clip, an annotation per target.

    annotations/<source>-<split>.json
    JPEGImages/<clip_id>/%05d.jpg

`segmentations` are compressed RLE (text counts), `areas` in pixels, boxes x,y,w,h in pixels, 0-based; null where a frame
has none. `bboxes` are the boxes of the track (tracked ones, for a tracked source), `mask_bboxes` those around the
masks; the two differ where a tracked box is not tight.

YouTube-VIS takes null for "absent". Where it is not, because the frame was not annotated or was dropped, `known` is false: a
loader that cares leaves these frames out. Beyond the standard there are also `caption` and `referent_id`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from manifests.export.read import Clip, Target
from manifests.export.stream import Array
from schemas.geometry import RLE, rle_area, rle_box, to_xywh

NO_CATEGORY = "object"
"""Of targets whose dataset names no class."""


@dataclass
class _Part:
    """One file being written. Categories are numbered from 1 in the order of their appearance."""

    annotations: Array
    n: int = 0
    videos: list[dict] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)
    licences: dict[str, int] = field(default_factory=dict)


class YouTubeVIS:
    """See the module."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._parts: dict[str, _Part] = {}

    def add(self, clip: Clip) -> dict[str, str]:
        """Write a clip's pictures and the annotations of its targets; none is left out."""
        pictures = clip.pictures()
        place = self.folder / "JPEGImages" / clip.key
        place.mkdir(parents=True)
        for t, picture in enumerate(pictures):
            (place / f"{t:05d}.jpg").write_bytes(picture)
        name = f"{clip.row['source']}-{clip.row['split']}"
        if name not in self._parts:
            self._parts[name] = _Part(
                Array(self.folder / "annotations" / f"{name}.json", "annotations")
            )
        part = self._parts[name]
        height, width = clip.size
        video = {
            "id": len(part.videos) + 1,
            "width": width,
            "height": height,
            "length": len(pictures),
            "file_names": [f"{clip.key}/{t:05d}.jpg" for t in range(len(pictures))],
            "license": part.licences.setdefault(
                clip.row["licence"] or "not stated", len(part.licences) + 1
            ),
            "clip_id": clip.key,
        }
        part.videos.append(video)
        for target in clip.targets:
            part.n += 1
            category = part.categories.setdefault(
                target.info["category"] or NO_CATEGORY, len(part.categories) + 1
            )
            part.annotations.add(
                {"id": part.n, "video_id": video["id"], "category_id": category, **_frames(target)}
            )
        return {}

    def close(self) -> None:
        for name, part in self._parts.items():
            part.annotations.close(
                info={
                    "description": f"SPARROW-TSF, {name}",
                    "bboxes": "of the track",
                    "mask_bboxes": "around the masks",
                },
                licenses=[{"id": i, "name": text} for text, i in part.licences.items()],
                videos=part.videos,
                categories=[{"id": i, "name": text} for text, i in part.categories.items()],
            )


def mask_box(mask: RLE | None) -> list[float] | None:
    """x, y, w, h around a mask; None where there is none, or it is empty."""
    box = to_xywh(rle_box(mask)) if mask is not None else None
    return box.tolist() if box is not None and np.isfinite(box).all() else None


def _frames(target: Target) -> dict:
    boxes = to_xywh(target.boxes_t4)
    kept, n = target.kept_t, len(target.kept_t)
    masks = [target.masks.get(t) for t in range(n)]
    return {
        "iscrowd": 0,
        "length": n,
        "segmentations": masks,
        "bboxes": [boxes[t].tolist() if kept[t] else None for t in range(n)],
        "mask_bboxes": [mask_box(mask) for mask in masks],
        "areas": [None if mask is None else rle_area(mask) for mask in masks],
        "known": [mask is not None or bool(target.absent_t[t]) for t, mask in enumerate(masks)],
        "caption": target.info["caption"],
        "referent_id": target.key,
    }
