"""HC-STVG: movie clips of 20 s, one sentence about one person each, with boxes inside a time span (the tube).

- `st_frame` is 1-based; the end is not stored: the tube has one box per frame without gaps.
- `img_num` is the number of frames; the frame rate is not stored: img_num / 20.
- v1 has `width`, `height`, `caption`; v2 has `img_size` = [H, W, 3], `English`, `Chinese` and no width or height. A
  missing English sentence may be in `query_v2.json`.
- Videos are .mkv or .mp4, in one subfolder per downloaded archive, and are found by name, or else by name without
  suffix (copies that were converted). Some are missing or broken, some play without their first second: fewer frames
  than `img_num`.
- Releases of CG-STVG and TA-STVG have v2 as `annos/hcstvg_v2/{train,test}.json`, where `test` is v2's `val`.
- Some boxes have negative coordinates, no size, or a size beyond the picture's: such a frame counts as not annotated.
  Boxes that merely reach over the right or bottom border are clipped.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np

from pipeline.sources.base import (
    DataRoot,
    Rules,
    SourceConfig,
    box_rows,
    caption_of,
    clip_key,
    countable,
    first_of,
    invalid,
    malformed,
    need_split,
    with_target,
)
from schemas.geometry import absent, clip_boxes, from_xywh, is_box
from schemas.records import (
    Annotation,
    Clip,
    Media,
    Planned,
    Quarantined,
    Reason,
    Referent,
    Rejected,
)

SECONDS = 20
"""Length of every clip of the dataset."""

_VIDEO = (".mp4", ".mkv")
_V2 = [
    f"{top}{folder}"
    for top in ("", "HC-STVG/", "hcstvg/")
    for folder in ("anno_v2/", "annotations/", "")
]
_V1 = [
    f"{top}{folder}"
    for top in ("", "HC-STVG/", "hcstvg/")
    for folder in ("annos/hcstvg_v1/", "hcstvg_v1/")
]
_V2_OF_OTHERS = [
    f"{top}{folder}"
    for top in ("", "HC-STVG/", "hcstvg/")
    for folder in ("annos/hcstvg_v2/", "hcstvg_v2/")
]
_FILES = {
    "train": [folder + name for folder in _V2 for name in ("train_v2.json", "trainv2.json")]
    + [folder + "train.json" for folder in _V2_OF_OTHERS],
    "val": [folder + name for folder in _V2 for name in ("val_v2.json", "valv2.json")]
    + [folder + name for folder in _V2_OF_OTHERS for name in ("val.json", "test.json")],
    "v1_train": [folder + "train.json" for folder in _V1],
    "v1_test": [folder + "test.json" for folder in _V1],
}
_QUERIES = [folder + name for folder in _V2 for name in ("query_v2.json", "queryv2.json")]


class HCSTVGConfig(SourceConfig):
    """rules: boxes are noisy, so they are regenerated and compared with the annotation (Appendix A; its threshold is
        not printed, 0.5 is ours).
    span: "video" tracks across the whole 20 s ("across the whole clip", Appendix A), "tube" cuts to the annotated
        span. The annotation knows nothing outside the tube.
    frame_tolerance: frames that a video may lack at its end, or have more, than `img_num`; our choice.
    """

    rules: Rules = Rules(boxes="tracked", key_frames=3, min_iou=0.5, masks="segment")
    span: Literal["video", "tube"] = "video"
    frame_tolerance: int = 2


class HCSTVG:
    """See `pipeline.sources.base.Source`. Splits train and val are of v2, v1_train and v1_test of v1."""

    name: ClassVar[str] = "hcstvg"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "v1_train", "v1_test")
    licence: ClassVar[str] = (
        "none stated; movie clips from YouTube, research use, do not redistribute frames"
    )
    expected: ClassVar[str] = """\
<root>/
  anno_v2/{train_v2,val_v2,query_v2}.json   v2 (or trainv2.json, valv2.json; or annos/hcstvg_v2/{train,test}.json)
  annos/hcstvg_v1/{train,test}.json         v1
  **/<n>_<youtube id>.{mkv,mp4}             videos, in any subfolder"""
    Config = HCSTVGConfig

    def __init__(self, config: HCSTVGConfig | None = None):
        self.config = config or HCSTVGConfig()

    def available(self, root: DataRoot) -> list[str]:
        return [split for split in self.splits if first_of(root, _FILES[split])]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        """The json files. A video that turns up later changes only its own shard (`sparrow quarantine retry`)."""
        return _json_files(root, split)

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        need_split(self, root, split)
        file, *queries = _json_files(root, split)
        media = _videos(root)
        sentences: dict | None = None
        video = None
        for video, offset, size in root.json_members(file):
            try:
                row = root.read_json(file, offset, size)
                if not isinstance(row, dict):
                    raise malformed("the entry is not an object")
                _check_version(file, split, row)
                caption = row.get("English") or row.get("caption")
                if not caption and queries:
                    sentences = _sentences(root, queries[0]) if sentences is None else sentences
                    caption = sentences.get(video)
                pointer = {"file": file, "offset": offset, "size": size}
                path = media.get(video) or media.get(_stem(video), video)
                yield self._planned(split, video, row, caption, path, pointer)
            except Quarantined as problem:
                yield Rejected(
                    self.name, split, video, problem.reason, problem.message, f"{file}@{offset}"
                )
        if video is None:
            raise invalid(f"{file}: holds no video")

    def _planned(
        self, split: str, video: str, row: dict, caption: object, path: str, pointer: dict
    ) -> Planned:
        sentence = caption_of(caption, "no English sentence")
        first, count, boxes = row.get("st_frame"), row.get("img_num"), row.get("bbox")
        if not isinstance(boxes, list) or not boxes:
            raise malformed("`bbox` is not a list of boxes")
        if not countable(first) or not countable(count) or first > count:
            raise malformed(
                f"`st_frame` {first!r:.20} is not a 1-based frame of `img_num` {count!r:.20}"
            )
        if first - 1 + len(boxes) > count + self.config.frame_tolerance:
            message = f"{len(boxes)} boxes from frame {first} on, in a video of `img_num` {count}"
            raise Quarantined(Reason.FRAME_MISMATCH, message)
        tube_start, tube_stop = first - 1, min(first - 1 + len(boxes), count)
        if self.config.span == "tube":
            start, stop = tube_start, tube_stop
        else:  # the last frames, which a video within the tolerance may lack, are not asked for
            start, stop = 0, max(tube_stop, count - self.config.frame_tolerance)
        height, width = _size(row)
        clip = Clip(
            clip_id=clip_key(self.name, split, video, start, stop),
            source=self.name,
            split=split,
            video_id=video,
            media=Media("video", path),
            start=start,
            stop=stop,
            fps=count / SECONDS,
            height=height,
            width=width,
            frame_count=count,
            frame_tolerance=self.config.frame_tolerance,
            licence=self.licence,
        )
        referent_id = clip_key(self.name, split, video, start, stop, "person")
        referent = Referent(
            referent_id, clip.clip_id, sentence, ("0",), "person", str(caption), pointer
        )
        return Planned(clip, (referent,))

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        return [referent.pointer["file"]]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """Boxes inside the tube; nothing is known outside it."""
        pointer = referent.pointer
        row = root.read_json(pointer["file"], pointer["offset"], pointer["size"])
        if not isinstance(row, dict) or type(row.get("st_frame")) is not int:
            raise invalid(
                f"{pointer['file']}: the entry of {clip.video_id} has changed since it was planned"
            )
        tube_n4 = box_rows(row.get("bbox"), f"{pointer['file']}: {clip.video_id}")
        offset = row["st_frame"] - 1 - clip.start  # of the tube in the clip
        inside = slice(max(offset, 0), min(offset + len(tube_n4), len(clip)))
        raw = absent(len(clip))
        raw[inside] = tube_n4[inside.start - offset : inside.stop - offset]
        with np.errstate(invalid="ignore"):
            good = np.asarray((raw >= 0).all(1))  # NaN is not
            if clip.height and clip.width:
                good &= (raw[:, 2] <= clip.width) & (raw[:, 3] <= clip.height)
        boxes = np.where(good[:, None], from_xywh(raw), np.nan).astype(np.float32)
        if clip.height and clip.width:
            boxes = clip_boxes(boxes, clip.height, clip.width)
        known = is_box(boxes)
        boxes[~known] = np.nan
        return with_target(Annotation(boxes, known, None, raw, "xywh pixels 0-based"), referent)


def _json_files(root: DataRoot, split: str) -> list[str]:
    """The split's file and, for v2, the file of test captions: those that exist."""
    found = [
        first_of(root, _FILES[split]),
        None if split.startswith("v1") else first_of(root, _QUERIES),
    ]
    return [path for path in found if path]


def _videos(root: DataRoot) -> dict[str, str]:
    """Where each video is, by its name, and by its name without suffix (`_stem`)."""
    places: dict[str, str] = {}
    for path in root.walk(*_VIDEO):
        name = path.rsplit("/", 1)[-1]
        for key in (name, _stem(name)):
            if key not in places or not root.has(places[key]):  # a broken link hides no copy
                places[key] = path
    return places


def _stem(video: str) -> str:
    """The name of a video without suffix, and with a slash, so that it is no name of a file."""
    return f"{video.rsplit('.', 1)[0]}/"


def version_of(root: DataRoot, file: str) -> str:
    """ "1" or "2" for an annotation file whose first entries tell its version, else "". Only its start is read."""
    try:
        start = root.read_bytes(file, 0, 1 << 16)
    except Quarantined:
        return ""
    if b'"English"' in start:
        return "2"
    return "1" if b'"caption"' in start and b'"bbox"' in start else ""


def _check_version(file: str, split: str, row: dict) -> None:
    """Raises ValueError if an entry has the fields of the other version of the dataset than its file's place says."""
    is_v1 = "caption" in row and "English" not in row
    is_v2 = "English" in row and "caption" not in row
    if is_v2 and split.startswith("v1"):
        raise ValueError(
            f"{file} has the entries of HC-STVG v2 (`English`), and lies where v1 is expected: "
            "move it to anno_v2/train_v2.json or anno_v2/val_v2.json, as it is one or the other"
        )
    if is_v1 and not split.startswith("v1"):
        raise ValueError(
            f"{file} has the entries of HC-STVG v1 (`caption`), and lies where v2 is expected: "
            "move it to annos/hcstvg_v1/train.json or annos/hcstvg_v1/test.json, as it is one or the other"
        )


def _size(row: dict) -> tuple[int | None, int | None]:
    """(height, width) of v1's two fields or v2's `img_size`, which puts the height first."""
    size = row.get("img_size")
    pair = (
        (size[0], size[1])
        if isinstance(size, list) and len(size) >= 2
        else (row.get("height"), row.get("width"))
    )
    return pair if all(map(countable, pair)) else (None, None)


def _sentences(root: DataRoot, file: str) -> dict[str, str]:
    """Video -> English sentence of `query_v2.json`, whose entries are sentences or objects that hold one."""
    queries = root.read_json(file)
    if not isinstance(queries, dict):
        return {}
    found = {
        k: (v.get("English") or v.get("caption")) if isinstance(v, dict) else v
        for k, v in queries.items()
    }
    return {video: sentence for video, sentence in found.items() if isinstance(sentence, str)}
