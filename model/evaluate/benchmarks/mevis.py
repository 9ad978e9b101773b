"""MeViS: motion expressions about one or several objects.

- `val_u` (folder `valid_u`, 50 videos, 793 expressions) has masks; `val` (`valid`, 140 videos, 2,236 expressions) has
  none: scored by the server (Codabench), which takes an archive.
- In MeViS v2 an expression may have no target: its `obj_id` and `anno_id` are empty, and so is its truth.
- An expression's truth is the union of the masks of its `anno_id`; `mask_dict.json` has one RLE or null a frame, in
  the order of the sorted `frames`.
- J and F are means over all frames, then over expressions (tools/eval_mevis.py).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
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
    read_json,
    target_accuracies,
)
from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import Interval, merge_objects
from pipeline.sources.base import DataRoot
from schemas.geometry import RLE, rle_check
from schemas.records import Media, Quarantined
from schemas.video.order import in_picture_order, stems

_FOLDERS = {"val_u": "valid_u", "val": "valid"}
V2 = "meta_expressions_v2.json"
NAMES = ("meta_expressions.json", V2)
"""Of the annotation file in the two versions of the dataset; the first that is there is read."""
HIDDEN = ("val",)
"""Splits whose masks only the server has (Codabench)."""
_EXPECTED = """\
  <root>/                                     (or mevis/ below it)
    {valid_u,valid}/meta_expressions.json   (MeViS v2: meta_expressions_v2.json)
    {valid_u,valid}/JPEGImages/<video>/%05d.jpg
    valid_u/mask_dict.json"""


class _Entry(TypedDict):
    frames: list[str]
    expressions: dict[str, Any]  # {exp, obj_id, anno_id}; each is checked when it is its turn


class _Meta(TypedDict):
    videos: dict[str, _Entry]


def _find(root: DataRoot, folders: Sequence[str], folder: str) -> tuple[str, str]:
    """The split's folder under the root, and the name of its annotation file. ValueError if there is none."""
    for name in NAMES:
        for base in folders:
            if root.has(f"{base}{folder}/{name}"):
                return f"{base}{folder}", name
    base = base_folder(root, folders, f"{folder}/{NAMES[0]}", _EXPECTED)
    return base + folder, NAMES[0]


class MeViS:
    """See `model.evaluate.task.Benchmark`."""

    name = "mevis"
    splits = tuple(_FOLDERS)
    headline = ("J", "F", "J&F")

    def __init__(self, root: DataRoot, split: str):
        self.split, self.root = split, root
        folder = _FOLDERS[split]
        folders = ("", "mevis/", "MeViS/", "MeViS_release/")
        self.base, name = _find(root, folders, folder)
        self._file = f"{self.base}/{name}"
        self._meta: dict[str, _Entry] = read_json(root, self._file, _Meta)["videos"]
        count = sum(len(entry["expressions"]) for entry in self._meta.values())
        version = "2" if name == V2 else "1"
        self.settings = {"version": version, "expressions": str(count)}

    @property
    def scored(self) -> bool:
        return self.root.has(f"{self.base}/mask_dict.json")

    @property
    def truth_places(self) -> tuple[str, ...]:
        return () if self.split in HIDDEN else (f"{self.base}/mask_dict.json",)

    def videos(self) -> list[Video]:
        return [self._video(name, entry["frames"]) for name, entry in self._meta.items()]

    def _video(self, name: str, frames: list[str]) -> Video:
        names = tuple(in_picture_order(f"{frame}.jpg" for frame in frames))
        images = Media("frames", f"{self.base}/JPEGImages/{name}", names=names)
        return Video(name, stems(names), None, self.root, images)

    def queries(self, video: Video) -> list[Query]:
        expressions = self._meta[video.id]["expressions"]
        return [expression_of(key, video.id, one, self._file) for key, one in expressions.items()]

    @cached_property
    def _ranges(self) -> dict[str, tuple[int, int]]:
        """Where each object's masks are in the file, which may be too large to keep."""
        try:
            return {
                key: (at, size)
                for key, at, size in self.root.json_members(f"{self.base}/mask_dict.json")
            }
        except (Quarantined, OSError) as error:
            raise ValueError(
                f"{self.base}/mask_dict.json (under {self.root.path}): {error}"
            ) from error

    def _object(self, anno_id: str, frames: int) -> list[RLE | None]:
        where = f"{self.base}/mask_dict.json: mask {anno_id}"
        if anno_id not in self._ranges:
            raise ValueError(f"{where} is not in the file: it is damaged or of another split")
        try:
            layer = self.root.read_json(f"{self.base}/mask_dict.json", *self._ranges[anno_id])
            if not isinstance(layer, list) or len(layer) != frames:
                raise ValueError(f"expected a list of {frames} masks, one per frame")
            return [rle_check(rle) if rle is not None else None for rle in layer]
        except (Quarantined, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error

    def truth(self, video: Video, query: Query, size: tuple[int, int]) -> NDArray[np.bool_]:
        """[T, H, W]: the union of the expression's objects; empty and of `size` if they are in no frame."""
        row = self._meta[video.id]["expressions"][query.id]
        ids = row.get("anno_id")
        if not isinstance(ids, list) or not all(type(one) in (int, str) for one in ids):
            where = f"{self._file}: {video.id}/{query.id}"
            raise ValueError(f"{where} has no `anno_id` that is a list of mask ids: {ids!r:.40}")
        if not ids and row.get("obj_id"):
            raise ValueError(f"{self._file}: {video.id}/{query.id} has objects and no masks")
        if not ids:  # MeViS v2: nothing in the video fits
            return np.zeros((len(video), *size), bool)
        return self._union(video, ids, size)

    def objects(self, video: Video, ids: Sequence[str], size: tuple[int, int]) -> NDArray[np.bool_]:
        """[T, H, W]: the union of objects by their `obj_id`, which is theirs within the video."""
        expressions = self._meta[video.id]["expressions"].values()
        masks = {str(obj): anno for one in expressions for obj, anno in _pairs(one)}
        if unknown := [one for one in ids if one not in masks]:
            raise ValueError(
                f"{self.base}: {video.id} has no object {', '.join(unknown)}, only {', '.join(masks)}"
            )
        return self._union(video, [masks[one] for one in ids], size)

    def _union(
        self, video: Video, ids: Sequence[int | str], size: tuple[int, int]
    ) -> NDArray[np.bool_]:
        if not ids:
            raise ValueError(f"{self.base}: an expression of {video.id} names no masks")
        layers = [self._object(str(one), len(video)) for one in ids]
        sizes = [tuple(rle["size"]) for layer in layers for rle in layer if rle is not None]
        return merge_objects(layers, sizes[0] if sizes else size)  # type: ignore[arg-type]

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        return expression_rows(video, self.queries(video), predictions, self.truth)

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {key: mean(rows, key) for key in self.headline} | target_accuracies(rows)

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        return {key: interval(rows, key) for key in self.headline}


def _pairs(entry: object) -> list[tuple[Any, Any]]:
    """(object, mask id) of an expression; none where it cannot be read."""
    found = (
        [entry.get(name) for name in ("obj_id", "anno_id")] if isinstance(entry, Mapping) else []
    )
    if len(found) != 2 or not all(isinstance(one, list) for one in found):
        return []
    return list(zip(*found, strict=False))
