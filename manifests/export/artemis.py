"""Artemis records (artemis/train/train.py): a folder of json arrays, an item per question about a region.

    annotations/<source>-<split>.json     items
    frames/<clip_id>/%06d.jpg             pictures, once per clip

`frame_path` is relative to the export. `track_list` has an entry for each picture: a box xyxy in pixels, or [] where
there is none to trust. Artemis reads a pickled clip feature from `clip_path`; nothing is pickled here, so the path says
where your extractor has to put it.
"""

from pathlib import Path

import numpy as np

from manifests.export.read import Clip, Target
from manifests.export.stream import Array


class Artemis:
    """See the module."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._files: dict[str, Array] = {}

    def add(self, clip: Clip) -> dict[str, str]:
        """Write a clip's pictures, and the items of its targets; none is left out."""
        pictures = clip.pictures()
        names = [f"{t:06d}.jpg" for t in range(len(pictures))]
        place = self.folder / "frames" / clip.key
        place.mkdir(parents=True)
        for name, picture in zip(names, pictures, strict=True):
            (place / name).write_bytes(picture)
        part = f"{clip.row['source']}-{clip.row['split']}"
        if part not in self._files:
            self._files[part] = Array(self.folder / "annotations" / f"{part}.json")
        for target in clip.targets:
            for item in _items(clip, target, names):
                self._files[part].add(item)
        return {}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _items(clip: Clip, target: Target, names: list[str]) -> list[dict]:
    boxes = [
        box.tolist() if kept else []
        for box, kept in zip(target.boxes_t4, target.kept_t, strict=True)
    ]
    key = target.info["key_frame"]
    key_box = (
        [] if key is None or np.isnan(target.boxes_t4[key]).any() else target.boxes_t4[key].tolist()
    )
    record = {
        "clip_path": f"features/{clip.key}.pkl",
        "caption": target.info["caption"],
        "frame_path": f"frames/{clip.key}",
        "frame_id": names,
        "track_list": boxes,
        "key_frame_id": names[key] if key_box else "",
        "key_frame_box": key_box,
        "video_name": clip.row["video_id"],
        "referent_id": target.key,
    }
    asked = [qa for qa in target.qa if "<region>" in qa["question"]]
    if not asked:
        return [record]  # Artemis draws a question from its own pool
    return [
        {
            **record,
            "caption": qa["answer"],
            "question": qa["question"].replace("<region>", "<bbox>"),
        }
        for qa in asked
    ]
