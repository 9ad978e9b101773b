"""COCO json of single frames, as `pycocotools.COCO` opens it: a file per source and split, an image per frame.

    annotations/<source>-<split>.json
    JPEGImages/<clip_id>/%05d.jpg

`segmentation` is compressed RLE (text counts), `area` its pixels, `bbox` x,y,w,h around it in pixels, 0-based, as COCO
has it; `track_bbox` is the box of the track (tracked, for a tracked source). A kept frame without a mask has `bbox` from
the track and an empty `segmentation`.

COCO takes an image without an annotation for one without the target. Where that is not known, because the frame was not
annotated or
the frame was dropped, the image names the target in `unknown`. Beyond the standard there are also `caption` and
`referent_id` of annotations, and `clip_id`, `frame` and `source_frame` of images.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from manifests.export.read import Clip, Target
from manifests.export.stream import Array
from manifests.export.ytvis import NO_CATEGORY, mask_box
from schemas.geometry import rle_area, rle_encode, to_xywh


@dataclass
class _Part:
    """One file being written. Images wait in a file of their own; categories and licences are numbered from 1."""

    path: Path
    annotations: Array
    images: Array
    n_images: int = 0
    n_annotations: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    licences: dict[str, int] = field(default_factory=dict)


class Coco:
    """See the module."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._parts: dict[str, _Part] = {}

    def add(self, clip: Clip) -> dict[str, str]:
        """Write a clip's pictures and the annotations of its targets; none is left out."""
        pictures = clip.pictures()
        place = self.folder / "JPEGImages" / clip.key
        place.mkdir(parents=True)
        part = self._part(f"{clip.row['source']}-{clip.row['split']}")
        licence = clip.row["licence"] or "not stated"
        height, width = clip.size
        for t, picture in enumerate(pictures):
            name = f"{t:05d}.jpg"
            (place / name).write_bytes(picture)
            part.n_images += 1
            image = {
                "id": part.n_images,
                "file_name": f"{clip.key}/{name}",
                "width": width,
                "height": height,
                "license": part.licences.setdefault(licence, len(part.licences) + 1),
                "clip_id": clip.key,
                "frame": t,
                "source_frame": clip.row["start"] + t * clip.row["step"],
                "unknown": [target.key for target in clip.targets if is_unknown(target, t)],
            }
            part.images.add(image)
            for target in clip.targets:
                if target.kept_t[t]:
                    self._annotate(part, clip, target, t)
        return {}

    def _part(self, name: str) -> _Part:
        if name not in self._parts:
            path = self.folder / "annotations" / f"{name}.json"
            images = Array(path.with_suffix(".images"))
            self._parts[name] = _Part(path, Array(path, "annotations"), images)
        return self._parts[name]

    def _annotate(self, part: _Part, clip: Clip, target: Target, t: int) -> None:
        part.n_annotations += 1
        category = target.info["category"] or NO_CATEGORY
        mask = target.masks.get(t)
        tracked = to_xywh(target.boxes_t4[t]).tolist()
        shape = mask if mask is not None else rle_encode(np.zeros(clip.size, bool))
        part.annotations.add(
            {
                "id": part.n_annotations,
                "image_id": part.n_images,
                "category_id": part.categories.setdefault(category, len(part.categories) + 1),
                "iscrowd": 0,
                "segmentation": shape,
                "area": rle_area(shape),
                "bbox": mask_box(mask) or tracked,
                "track_bbox": tracked,
                "caption": target.info["caption"],
                "referent_id": target.key,
            }
        )

    def close(self) -> None:
        for name, part in self._parts.items():
            part.images.close()
            waiting = part.path.with_suffix(".images")
            part.annotations.close(
                arrays={"images": waiting},
                info={
                    "description": f"SPARROW-TSF, {name}",
                    "bbox": "around the mask; of the track where a frame has no mask",
                    "track_bbox": "of the track",
                },
                licenses=[{"id": i, "name": text} for text, i in part.licences.items()],
                categories=[{"id": i, "name": text} for text, i in part.categories.items()],
            )
            waiting.unlink()


def is_unknown(target: Target, t: int) -> bool:
    """Whether a frame says nothing of a target: it was dropped, or is not annotated."""
    return not (target.kept_t[t] or target.absent_t[t])
