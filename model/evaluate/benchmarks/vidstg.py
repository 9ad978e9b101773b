"""VidSTG: sentences and questions about an object in a VidOR video, answered by a box in every frame of a span.

- `temporal_gt` (the tube): begin_fid inclusive, end_fid exclusive. `used_segment` (the part of the video that a model
  may look at): its end_fid is the last frame. Frames are 0-based.
- Boxes are in VidOR's files, which the test split takes from `validation`, the others from `training`:
  `trajectories[frame]` lists {tid, bbox {xmin, ymin, xmax, ymax}}.
- Frames are taken as TubeDETR's sampler does: one a second, at most 40 evenly chosen ones of them.
- Masks become boxes after blobs under 20 px are dropped (`model.metrics.vidstg`).

clip "tube" is what SPARROW and VideoGLaMM report: the clip is the annotated tube, mIoU is the mean box IoU in it, per
kind of sentence; the paper's is the interrogative one. clip "segment" is the dataset's own task: the whole segment is
looked at, the predicted span is from the first to the last frame with a mask, and m_tIoU, m_vIoU and vIoU@R are
reported. Official vIoU is taken at the sampled frames.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from model.evaluate.benchmarks.base import (
    base_folder,
    checked,
    interval,
    mean,
    one_mask,
    read_json,
    row,
    scored_rows,
    unscored,
)
from model.evaluate.task import Prediction, Query, Row, Video
from model.metrics import Interval, VidSTGScore, vidstg_score
from model.metrics.statistics import Rules
from pipeline.sources.base import DataRoot, clean
from schemas.geometry import absent, clip_boxes, from_xyxy, is_box
from schemas.records import Media

_MAX_SIDE = 373
"""The released resizing: the short side becomes 224, unless the long one would exceed this."""
_KINDS = {"captions": "declarative", "questions": "interrogative"}
_VIDOR = {"test": "validation", "val": "training"}
_VIDOR_FOLDERS = ("vidor_annotations", "annotation")
_EXPECTED = """\
  <root>/                                     (or vidstg/ below it)
    vidstg_annotations/{test,val}_annotations.json   (or annotations/, or in the root)
    vidor_annotations/{validation,training}/<group>/<video>.json
    video/<group>/<video>.mp4"""


class _Sentence(TypedDict):
    description: str
    target_id: int


class _Span(TypedDict):
    begin_fid: int
    end_fid: int


class _Item(TypedDict):
    vid: str
    fps: float
    frame_count: int
    width: int
    height: int
    used_segment: _Span
    temporal_gt: _Span
    captions: list[Any]
    questions: list[Any]


class VidSTG:
    """See `model.evaluate.task.Benchmark`. A video is one tube: sentences about equal spans of a file share it.

    clip: see above. fps, max_frames: of the sampler. short_side: frames are resized, and boxes compared, at this size
    as in the released script; None keeps the video's own. rules: as in `model.metrics.vidstg`.
    """

    name = "vidstg"
    splits = ("test", "val")

    def __init__(
        self,
        root: DataRoot,
        split: str,
        clip: Literal["tube", "segment"] = "tube",
        fps: float = 1.0,
        max_frames: int = 40,
        short_side: int | None = 224,
        rules: Rules = "official",
    ):
        if clip not in ("tube", "segment") or rules not in get_args(Rules):
            raise ValueError(
                f"clip {clip!r} must be tube or segment, rules {rules!r} {' or '.join(get_args(Rules))}"
            )
        if not fps > 0 or max_frames < 1 or (short_side is not None and short_side < 1):
            raise ValueError(
                f"fps {fps}, max_frames {max_frames} and short_side {short_side} must be positive"
            )
        self.split, self.root, self.clip, self.rules = split, root, clip, rules
        self.fps, self.max_frames, self.short_side = fps, max_frames, short_side
        self.settings = {
            "clip": clip,
            "fps": f"{fps:g}",
            "max_frames": str(max_frames),
            "short_side": str(short_side or "own"),
            "rules": rules,
        }
        self.headline = (
            ("mIoU_interrogative",)
            if clip == "tube"
            else ("m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5")
        )
        self.base = next((f for f in ("", "vidstg/", "VidSTG/") if root.has(f + "video")), "")
        file = f"{split}_annotations.json"
        folders = (
            "vidstg_annotations/",
            "annotations/",
            "",
            "vidstg/vidstg_annotations/",
            "vidstg/annotations/",
            "vidstg/",
        )
        self.file = base_folder(root, folders, file, _EXPECTED) + file
        self._clips: dict[str, tuple[_Item, list[tuple[Query, int]]]] = {}
        self._read_entries()

    def _read_entries(self) -> None:
        """Every entry by itself: one that cannot be read has no queries, and is counted in the settings."""
        unreadable: list[str] = []
        entries = read_json(self.root, self.file, list[Any])
        for number, entry in enumerate(entries):
            try:
                item = checked(entry, _Item, f"{self.file}: entry {number}")
                self._span(item)
            except ValueError as error:
                unreadable.append(str(error))
                continue
            tube, used = item["temporal_gt"], item["used_segment"]
            video = f"{item['vid']}_{tube['begin_fid']}-{tube['end_fid']}_{used['begin_fid']}-{used['end_fid']}"
            queries = self._clips.setdefault(video, (item, []))[1]
            for field, kind in _KINDS.items():
                for sentence in item[field]:
                    key = f"{kind}-{len(queries)}"
                    queries.append(_query(key, video, kind, item["vid"], sentence, self.file))
        if unreadable:
            words = f"{len(unreadable)} of {len(entries)}, the first: {unreadable[0]}"
            self.settings["entries that cannot be read"] = words
        if not self._clips:
            first = unreadable[0] if unreadable else "it is empty"
            raise ValueError(
                f"{self.file} (under {self.root.path}) has no entry that can be read: {first}"
            )

    @property
    def scored(self) -> bool:
        return bool(self.root.listdir(self._vidor))

    @property
    def truth_places(self) -> tuple[str, ...]:
        folder = f"{_VIDOR[self.split]}/<group>/<video>.json"
        return tuple(f"{self.base}{name}/{folder}" for name in _VIDOR_FOLDERS)

    @cached_property
    def _groups(self) -> dict[str, str]:
        """VidOR keeps its files in numbered folders: video -> folder, from annotations and media."""
        return {
            name.rpartition(".")[0]: group
            for top in (f"{self.base}video", f"{self._vidor}")
            for group in self.root.listdir(top)
            for name in self.root.listdir(f"{top}/{group}")
        }

    @cached_property
    def _vidor(self) -> str:
        """The folder of VidOR's boxes; its official archive unpacks as `annotation`."""
        places = [f"{self.base}{name}/{_VIDOR[self.split]}" for name in _VIDOR_FOLDERS]
        return next((place for place in places if self.root.listdir(place)), places[0])

    def videos(self) -> list[Video]:
        return [self._video(name, item) for name, (item, _) in self._clips.items()]

    def _video(self, name: str, item: _Item) -> Video:
        start, stop = self._span(item)
        pick = sample(start, stop, item["fps"], self.fps, self.max_frames)
        media = Media(
            "video",
            f"{self.base}video/{self._groups.get(item['vid'], '<group>')}/{item['vid']}.mp4",
        )
        size = resized((item["height"], item["width"]), self.short_side)
        names = tuple(f"{i:06d}" for i in pick)
        count = item["frame_count"]
        return Video(name, names, size, self.root, media, pick, resized=True, count=count)

    def _span(self, item: _Item) -> tuple[int, int]:
        """First frame of the clip, and the one after its last."""
        tube, used = item["temporal_gt"], item["used_segment"]
        start, stop = (
            (tube["begin_fid"], tube["end_fid"])
            if self.clip == "tube"
            else (used["begin_fid"], min(used["end_fid"] + 1, item["frame_count"]))
        )
        if not 0 <= start < stop <= item["frame_count"]:
            raise ValueError(
                f"{self.file}: {item['vid']}: span {start} to {stop} leaves the video of "
                f"{item['frame_count']} frames"
            )
        return start, stop

    def queries(self, video: Video) -> list[Query]:
        return [query for query, _ in self._clips[video.id][1]]

    def boxes(self, video: Video, query: Query) -> NDArray[np.float32]:
        """[T, 4] of the query's target in the size of `Video.read`; absent (NaN) outside the tube."""
        item, sentences = self._clips[video.id]
        target = next(number for one, number in sentences if one.id == query.id)
        file = f"{self._vidor}/{self._groups.get(item['vid'], '<group>')}/{item['vid']}.json"
        frames = _trajectories(self.root, file)
        tube, size = item["temporal_gt"], video.size
        if len(frames) < tube["end_fid"]:
            raise ValueError(f"{file}: {len(frames)} frames, the tube ends with {tube['end_fid']}")
        assert size is not None
        assert video.pick is not None
        scale = np.array([size[1] / item["width"], size[0] / item["height"]] * 2)
        boxes_t4 = absent(len(video))
        for t, frame in enumerate(video.pick):
            if tube["begin_fid"] <= frame < tube["end_fid"]:
                for one in frames[frame]:
                    if isinstance(one, Mapping) and one.get("tid") == target:
                        where = f"{file}: frame {frame}, object {target}"
                        boxes_t4[t] = _corners(one, where) * scale
        boxes_t4 = clip_boxes(boxes_t4, *size)
        if not is_box(boxes_t4).any():
            raise ValueError(
                f"{file}: object {target} has no box in the tube {tube['begin_fid']} to {tube['end_fid']}"
            )
        return boxes_t4

    def score(self, video: Video, predictions: Mapping[str, Prediction]) -> list[Row]:
        assert video.size is not None
        rows = []
        for query in self.queries(video):
            prediction = predictions.get(query.id)
            columns = ("mIoU",) if self.clip == "tube" else ("mIoU", "vIoU", "tIoU")
            try:
                if query.fault:
                    raise ValueError(query.fault)
                boxes_t4 = self.boxes(video, query)
            except ValueError as error:
                rows.append(unscored(video, query, prediction, error, *columns))
                continue
            mask_thw = one_mask(prediction, video, query, video.size)
            score = None if mask_thw is None else self._score(mask_thw, boxes_t4)
            miou, viou, tiou = (
                (0.0, 0.0, 0.0) if score is None else (score.gt_viou, score.viou, score.tiou)
            )
            own = {} if self.clip == "tube" else {"vIoU": viou, "tIoU": tiou}
            rows.append(row(video, query, prediction, mIoU=miou, **own))
        return rows

    def _score(self, mask_thw: NDArray[np.bool_], boxes_t4: NDArray[np.float32]) -> VidSTGScore:
        known = np.flatnonzero(is_box(boxes_t4))
        if self.clip == "tube":  # a frame in which VidOR lost the target says nothing
            return vidstg_score(mask_thw[known], boxes_t4[known], (0, len(known) - 1), self.rules)
        seen = np.flatnonzero(mask_thw.any((1, 2)))
        span = (int(seen[0]), int(seen[-1])) if len(seen) else (-1, -1)
        return vidstg_score(mask_thw, boxes_t4, (int(known[0]), int(known[-1])), self.rules, span)

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """ "mIoU" and "mIoU@0.3", "@0.5" (share of queries above), also with "_declarative" and "_interrogative"; for
        clip "segment" "m_tIoU", "m_vIoU", "vIoU@0.3", "vIoU@0.5" likewise."""
        rows = scored_rows(rows)
        kinds = ["", *(k for k in _KINDS.values() if any(one["kind"] == k for one in rows))]
        means: dict[str, float] = {}
        for kind in kinds:
            some, end = (
                [one for one in rows if kind in ("", one["kind"])],
                f"_{kind}" if kind else "",
            )
            means[f"mIoU{end}"] = mean(some, "mIoU")
            names = [("mIoU", "mIoU")]
            if self.clip == "segment":
                means |= {f"m_tIoU{end}": mean(some, "tIoU"), f"m_vIoU{end}": mean(some, "vIoU")}
                names = [("vIoU", "vIoU")]
            for column, name in names:
                for bar in (0.3, 0.5):
                    means[f"{name}@{bar}{end}"] = float(
                        np.mean([one[column] > bar for one in some])
                    )
        return means

    def intervals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        """By VidOR video (the rows' group), which several tubes may share."""
        rows = scored_rows(rows)
        if self.clip == "tube":
            asked = [one for one in rows if one["kind"] == "interrogative"]
            return {"mIoU_interrogative": interval(asked, "mIoU", by="group")} if asked else {}
        above = [
            {**one, "vIoU@0.3": one["vIoU"] > 0.3, "vIoU@0.5": one["vIoU"] > 0.5} for one in rows
        ]
        columns = {
            "m_tIoU": "tIoU",
            "m_vIoU": "vIoU",
            "vIoU@0.3": "vIoU@0.3",
            "vIoU@0.5": "vIoU@0.5",
        }
        return {key: interval(above, column, by="group") for key, column in columns.items()}


def sample(start: int, stop: int, video_fps: float, fps: float, most: int) -> tuple[int, ...]:
    """TubeDETR's frames of [start, stop): the first, then the first of each 1 / fps seconds; at most `most` of them,
    evenly chosen. Slower videos keep all frames."""
    rate = min(fps / video_fps, 1.0) if video_fps > 0 else 1.0
    picked = [start]
    for frame in range(start + 1, stop):
        if int(picked[-1] * rate) < int(frame * rate):
            picked.append(frame)
    if len(picked) > most:
        picked = [picked[j * len(picked) // most] for j in range(most)]
    return tuple(picked)


def resized(size: tuple[int, int], short_side: int | None) -> tuple[int, int]:
    """(height, width) after the released resizing, whose factor is the same for both sides up to rounding down."""
    if short_side is None:
        return size
    short, long = sorted(size)
    if long / short * short_side > _MAX_SIDE * short_side / 224:
        short_side = round(_MAX_SIDE * short_side / 224 * short / long)
    other = int(short_side * long / short)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


class _Box(TypedDict):
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class _Target(TypedDict):
    tid: int
    bbox: _Box


class _VidOR(TypedDict):
    trajectories: list[list[Any]]


def _query(
    key: str, video: str, kind: str, group: str, entry: object, file: str
) -> tuple[Query, int]:
    """A sentence of the annotation and its target; with a fault, and target -1, where it cannot be read."""
    try:
        sentence = checked(entry, _Sentence, f"{file}: {group}, {key}")
        if not clean(sentence["description"]):
            raise ValueError(f"{file}: {group}, {key}: no sentence")
    except ValueError as error:
        return Query(key, video, "", kind, group, fault=str(error)), -1
    return Query(key, video, clean(sentence["description"]), kind, group), sentence["target_id"]


def _corners(entry: object, where: str) -> NDArray[np.float32]:
    """The box of an entry. ValueError for one that is none."""
    b = checked(entry, _Target, where)["bbox"]
    box = from_xyxy([b["xmin"], b["ymin"], b["xmax"], b["ymax"]])
    if not is_box(box):
        raise ValueError(f"{where}: its box has no area")
    return box


@lru_cache(maxsize=2)
def _trajectories(root: DataRoot, file: str) -> list[list[Any]]:
    """Per frame the boxes of all targets. One file serves all questions about a video."""
    return read_json(root, file, _VidOR)["trajectories"]
