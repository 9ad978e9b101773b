"""Ref-YouTube-VOS: expressions about single objects, annotated every fifth frame.

- `meta_expressions/valid/meta_expressions.json` lists 507 videos, 305 of them also in `meta_expressions/test/`: those
  are left out, which leaves the benchmark's 202 videos (834 expressions).
- The official files hold no truth for them; it is taken where a user has it, as palette PNGs: one per frame and
  expression (`valid/Annotations/<video>/<expression>/<frame>.png`, any index is the object), or one per frame
  (`valid/Annotations/<video>/<frame>.png`) if the expressions carry an `obj_id`, as in the train file.
- J and F are means over the listed frames, then over expressions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from model.evaluate.benchmarks.base import (
    base_folder,
    expression_of,
    expression_rows,
    interval,
    mean,
    object_id_of,
    read_index_masks,
    read_json,
    target_accuracies,
)
from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import Interval
from pipeline.sources.base import DataRoot
from schemas.records import Media
from schemas.video.order import in_picture_order, stems

_META = "meta_expressions/valid/meta_expressions.json"
_TEST = "meta_expressions/test/meta_expressions.json"
_EXPECTED = """\
  <root>/                                     (or ref-youtube-vos/ below it)
    meta_expressions/{valid,test}/meta_expressions.json
    valid/JPEGImages/<video>/<frame>.jpg
    valid/Annotations/<video>/...png          (only if you have the truth)"""


class _Entry(TypedDict):
    frames: list[str]
    expressions: dict[str, Any]  # {exp, obj_id}; each is checked when it is its turn


class _Meta(TypedDict):
    videos: dict[str, _Entry]


class RefYTVOS:
    """See `model.evaluate.task.Benchmark`. Without the test list all videos of the file are asked about, and `settings`
    says so. With truth for some of the videos only, only those are."""

    name = "ref-ytvos"
    splits = ("val",)
    headline = ("J", "F", "J&F")

    def __init__(self, root: DataRoot, split: str = "val"):
        self.split, self.root = split, root
        folders = ("", "ref-youtube-vos/", "ref_youtube_vos/", "Ref-YouTube-VOS/", "refytvos/")
        self.base = base_folder(root, folders, _META, _EXPECTED)
        self._file = self.base + _META
        videos: dict[str, _Entry] = read_json(root, self.base + _META, _Meta)["videos"]
        self.settings: dict[str, str] = {}
        if root.has(self.base + _TEST):
            test = read_json(root, self.base + _TEST, dict[str, dict[str, Any]])["videos"]
            videos = {name: entry for name, entry in videos.items() if name not in test}
        else:
            self.settings["videos"] = f"all {len(videos)}, as {_TEST} is not there"
        masks = set(root.listdir(f"{self.base}valid/Annotations")) & videos.keys()
        folders_of_masks = (
            self._masks(name, key) for name in masks for key in videos[name]["expressions"]
        )
        self._per_expression = any(map(root.has, folders_of_masks))
        by_object = any(
            isinstance(one, Mapping) and "obj_id" in one
            for entry in videos.values()
            for one in entry["expressions"].values()
        )
        self._truth = masks if self._per_expression or by_object else set()
        self._meta = {
            name: entry for name, entry in videos.items() if not self._truth or name in self._truth
        }
        if self._truth and len(self._truth) < len(videos):
            self.settings["videos"] = f"{len(self._truth)} of {len(videos)}, which have truth"

    @property
    def scored(self) -> bool:
        return bool(self._truth)

    @property
    def truth_places(self) -> tuple[str, ...]:
        """None: the official files hold no truth."""
        return ()

    def videos(self) -> list[Video]:
        return [self._video(name, entry["frames"]) for name, entry in self._meta.items()]

    def _video(self, name: str, frames: list[str]) -> Video:
        names = tuple(in_picture_order(f"{frame}.jpg" for frame in frames))
        images = Media("frames", f"{self.base}valid/JPEGImages/{name}", names=names)
        return Video(name, stems(names), None, self.root, images)

    def queries(self, video: Video) -> list[Query]:
        expressions = self._meta[video.id]["expressions"]
        return [expression_of(key, video.id, one, self._file) for key, one in expressions.items()]

    def _masks(self, video: str, key: str = "") -> str:
        return f"{self.base}valid/Annotations/{video}" + (f"/{key}" if key else "")

    def truth(self, video: Video, query: Query, size: tuple[int, int]) -> NDArray[np.bool_]:
        """[T, H, W] of the expression's object."""
        folder = self._masks(video.id, query.id if self._per_expression else "")
        masks_thw = read_index_masks(self.root, (f"{folder}/{frame}.png" for frame in video.frames))
        if self._per_expression:
            return masks_thw != 0
        entry = self._meta[video.id]["expressions"][query.id]
        return masks_thw == object_id_of(query.id, video.id, entry, self._file)

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        return expression_rows(video, self.queries(video), predictions, self.truth)

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {key: mean(rows, key) for key in self.headline} | target_accuracies(rows)

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        return {key: interval(rows, key) for key in self.headline}
