"""Ref-DAVIS17: 30 videos, 61 objects, four texts about each (two annotators, first frame and full video).

Two layouts are read: DAVIS 2017 with the four text files, and the conversion that ReferFormer and VideoGLaMM use
(`meta_expressions/valid/meta_expressions.json`, expression 4 k + a = annotator a about object k + 1).

- Text files: `video obj_id "text"`; those of the second annotator are latin-1; three videos are misspelt in them.
- obj_id is the palette index of the truth; 255 is void.

Two scorers, whose numbers do not compare, so `settings` names the one in use:
- "official": per annotator the objects' masks are merged into one index mask (the lowest object wins), which DAVIS's
  unsupervised protocol matches with the truth (Hungarian, all frames, void left out); mean over objects, then over
  annotators. A failed query is an empty mask, as in the archive: frames without the object still count for it.
- "expression": every expression alone against its object's mask, as UniPixel and GLUS do; a failed query is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

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
    one_mask,
    read_index_masks,
    read_json,
    row,
    scored_rows,
    unscored,
)
from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import Interval, davis
from pipeline.sources.base import DataRoot, clean, first_of
from schemas.records import Media
from schemas.video.order import in_picture_order, stems

Scorer = Literal["official", "expression"]

ANNOTATORS = (
    "Davis17_annot1",
    "Davis17_annot1_full_video",
    "Davis17_annot2",
    "Davis17_annot2_full_video",
)
"""Text files, in the order in which results are saved: anno_0 to anno_3."""
_SPELLING = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_META = "meta_expressions/valid/meta_expressions.json"
_LIST = "ImageSets/2017/val.txt"
_EXPECTED = """\
  <root>/                                     (or DAVIS/ or ref-davis/ below it)
    ImageSets/2017/val.txt
    JPEGImages/480p/<video>/%05d.jpg
    Annotations_unsupervised/480p/<video>/%05d.png
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt
  or, as ReferFormer converts it,
    meta_expressions/valid/meta_expressions.json
    valid/JPEGImages/<video>/%05d.jpg
    valid/Annotations/<video>/%05d.png"""
_FOLDERS = ("", "DAVIS/", "ref-davis/", "ref_davis/", "davis/")


class _Entry(TypedDict):
    frames: list[str]
    expressions: dict[str, Any]  # {exp, obj_id}; each is checked by itself


class _Meta(TypedDict):
    videos: dict[str, _Entry]


class RefDAVIS17:
    """See `model.evaluate.task.Benchmark`. scorer: see above."""

    name = "ref-davis17"
    splits = ("val",)
    headline = ("J", "F", "J&F")

    def __init__(self, root: DataRoot, split: str = "val", scorer: Scorer = "official"):
        if scorer not in get_args(Scorer):
            raise ValueError(f"scorer {scorer!r}: one of {', '.join(get_args(Scorer))}")
        self.split, self.root, self.scorer = split, root, scorer
        self.settings = {"scorer": scorer}
        self._texts: dict[str, list[tuple[Query, int]]] = {}
        if any(root.has(folder + _META) for folder in _FOLDERS):
            base = base_folder(root, _FOLDERS, _META, _EXPECTED)
            self._images, self._masks = f"{base}valid/JPEGImages", f"{base}valid/Annotations"
            self._read_meta(read_json(root, base + _META, _Meta)["videos"])
        else:
            base = base_folder(root, _FOLDERS, _LIST, _EXPECTED)
            self._images, self._masks = (
                f"{base}JPEGImages/480p",
                f"{base}Annotations_unsupervised/480p",
            )
            self._read_texts(base)

    def _read_meta(self, videos: Mapping[str, _Entry]) -> None:
        for video, entry in videos.items():
            expressions = entry["expressions"].items()
            self._texts[video] = [_meta_query(key, video, one) for key, one in expressions]

    def _read_texts(self, base: str) -> None:
        listed = self.root.read_text(base + _LIST).split()
        folder = first_of(
            self.root,
            [
                f"{at}{name}/{ANNOTATORS[0]}.txt"
                for at in (base, "")
                for name in ("davis_text_annotations", "text_annotations", ".")
            ],
        )
        if folder is None:
            raise ValueError(
                f"davis_text_annotations/{ANNOTATORS[0]}.txt is not under {self.root.path}. Expected:\n"
                f"{_EXPECTED}"
            )
        self._texts = {video: [] for video in listed}
        for a, annotator in enumerate(ANNOTATORS):
            file = folder.replace(ANNOTATORS[0], annotator)
            for line in _lines(self.root, file):
                name, number, text = _fields(line, file)
                if name in self._texts:
                    query = Query(str(4 * (number - 1) + a), name, text, group=f"anno_{a}")
                    if any(query.id == known.id for known, _ in self._texts[name]):
                        raise ValueError(f"{file}: two texts about object {number} of {name}")
                    self._texts[name].append((query, number))
        if silent := [video for video, texts in self._texts.items() if not texts]:
            raise ValueError(
                f"{folder} and its three fellows say nothing about {', '.join(silent[:5])}: they are not "
                "complete, or not the official files"
            )
        for texts in self._texts.values():
            texts.sort(key=lambda pair: int(pair[0].id))

    @property
    def scored(self) -> bool:
        return any(self.root.has(f"{self._masks}/{video}") for video in self._texts)

    @property
    def truth_places(self) -> tuple[str, ...]:
        return (f"{self._masks}/<video>/<frame>.png",)

    def videos(self) -> list[Video]:
        return [self._video(name) for name in self._texts]

    def _video(self, name: str) -> Video:
        """Every frame that has an image or a mask: a mask that is missing is a fault of the truth, not a shorter video."""
        listed = (
            *stems(in_picture_order(self.root.listdir(f"{self._images}/{name}"))),
            *stems(in_picture_order(self.root.listdir(f"{self._masks}/{name}"))),
        )
        names = tuple(in_picture_order(f"{frame}.jpg" for frame in dict.fromkeys(listed)))
        frames = stems(names)
        return Video(
            name, frames, None, self.root, Media("frames", f"{self._images}/{name}", names=names)
        )

    def queries(self, video: Video) -> list[Query]:
        return [query for query, _ in self._texts[video.id]]

    def object_id(self, query: Query) -> int:
        """The palette index of the object that a query is about."""
        return next(number for one, number in self._texts[query.video] if one.id == query.id)

    def _truth(self, video: Video) -> NDArray[np.uint8]:
        return read_index_masks(
            self.root, (f"{self._masks}/{video.id}/{frame}.png" for frame in video.frames)
        )

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        queries, zero = self.queries(video), dict.fromkeys(self.headline, 0.0)
        try:
            truth_thw = self._truth(video)
        except ValueError as error:
            return [
                unscored(video, query, predictions.get(query.id), error, *self.headline)
                for query in queries
            ]
        if self.scorer == "expression":
            return expression_rows(
                video,
                queries,
                predictions,
                lambda _, query, __: self._object(query, truth_thw),
            )
        faults = {query.id: self._fault(query, truth_thw) for query in queries}
        rows = {
            query.id: row(video, query, predictions.get(query.id), **zero)
            | {
                "error": "the truth's first frame lacks this object, so the official tool does not score it"
            }
            for query in queries
        }
        for group in sorted({query.group for query in queries}):
            texts = {
                number: query for query, number in self._texts[video.id] if query.group == group
            }
            merged_thw = self.merged(video, group, predictions, truth_thw.shape[1:])
            for k, score in davis(merged_thw, truth_thw, "unsupervised")["per_object"].items():
                query = texts.get(int(k)) or Query(f"{group}-object-{k}", video.id, "", group=group)
                j, f = score["J_mean"], score["F_mean"]
                one = row(video, query, predictions.get(query.id), J=j, F=f, **{"J&F": (j + f) / 2})
                rows[query.id] = one if query.text else one | {"error": "no text about this object"}
        for query in queries:
            if fault := faults[query.id]:
                given = predictions.get(query.id)
                rows[query.id] = unscored(video, query, given, fault, *self.headline)
        return list(rows.values())

    def _fault(self, query: Query, truth_thw: NDArray[np.uint8]) -> str:
        """What is wrong with the annotation of a query; empty for nothing."""
        number = self.object_id(query)
        if query.fault or (truth_thw == number).any():
            return query.fault
        return f"object {number} of {query.video} is in none of its masks"

    def _object(self, query: Query, truth_thw: NDArray[np.uint8]) -> NDArray[np.bool_]:
        if fault := self._fault(query, truth_thw):
            raise ValueError(fault)
        return truth_thw == self.object_id(query)

    def merged(
        self, video: Video, group: str, predictions: Mapping[str, Prediction], size: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        """An annotator's objects in one index mask [T, H, W]: where masks meet, the lowest index stays."""
        merged_thw = np.zeros((len(video), *size), np.uint8)
        texts = [pair for pair in self._texts[video.id] if pair[0].group == group]
        for query, number in sorted(texts, key=lambda pair: -pair[1]):
            mask_thw = one_mask(predictions.get(query.id), video, query, size)  # type: ignore[arg-type]
            if mask_thw is not None:
                merged_thw[mask_thw] = number
        return merged_thw

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Means over objects per annotator ("anno_0 J&F", ...) and their mean, the headline."""
        groups = sorted({one["group"] for one in scored_rows(rows)})
        if not groups:
            raise ValueError("rows: no query to average over")
        each = {
            (group, key): mean([one for one in rows if one["group"] == group], key)
            for group in groups
            for key in self.headline
        }
        means = {
            key: float(np.mean([each[group, key] for group in groups])) for key in self.headline
        }
        return means | {f"{group} {key}": value for (group, key), value in each.items()}

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        return {key: interval(rows, key) for key in self.headline}


def _meta_query(key: str, video: str, entry: object) -> tuple[Query, int]:
    """A query of the annotation file in ReferFormer's form, and its object; with a fault, object 0."""
    group = f"anno_{int(key) % 4}" if key.isdecimal() else "anno_0"
    query = expression_of(key, video, entry, _META, group=group)
    try:
        return query, object_id_of(key, video, entry, _META)
    except ValueError as error:
        return replace(query, fault=query.fault or str(error)), 0


def _lines(root: DataRoot, file: str) -> list[str]:
    """Lines of a text file that is UTF-8 or, as the second annotator's, in the older code of Windows."""
    if not root.has(file):
        raise ValueError(
            f"{file} is not under {root.path}: all four of {', '.join(ANNOTATORS)} are needed"
        )
    data = root.read_bytes(file)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    # Not `splitlines`: byte 0x85 of latin-1 would end a line in the middle of a text.
    return [line.strip() for line in text.split("\n") if line.strip()]


def _fields(line: str, file: str) -> tuple[str, int, str]:
    """`video obj_id "text"` -> video as DAVIS spells it, palette index, text."""
    name, number, text = [*line.split(maxsplit=2), "", "", ""][:3]
    text = clean(text.strip().strip('"'))
    if not number.isdigit() or not int(number) or not text:
        raise ValueError(f'{file}: {line!r:.80} is not `video object "text"`')
    return _SPELLING.get(name, name), int(number), text
