"""VID-Sentence: one sentence per object track of ILSVRC2015-VID.

- A line of `X_ann_list_v2.txt` is `<i>, <sentence>`: split at the first comma only. i is the 0-based line of
  `X_valid_list.txt`, `<video path>,<track id>`, where the path has its bucket in train and none in val and test.
- Tubes (`.js`) are plain JSON. Their `frame` is 1-based, the images are numbered from 0: `%06d.JPEG` of frame - 1.
- Test videos are val videos: `tubeGt/test` may be a folder, a link, the text file that a checkout makes of a link,
  or absent; images are always in `Data/VID/val`.
- A frame that a track skips shows the object outside the view: looked at, and absent.
- Boxes are xyxy whose right and bottom edge name the last pixel; a few reach one pixel over the picture.
- `occluded` (55 %) and `generated` (53 %, interpolated by ILSVRC) boxes are kept like all others.
- Tracks have 9 to 4,982 frames. The frame rate is not recorded.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from pipeline.sources.base import (
    DataRoot,
    LastJSON,
    Rules,
    SourceConfig,
    box_rows,
    caption_of,
    clip_key,
    countable,
    decimal,
    first_of,
    invalid,
    locate,
    malformed,
    need_split,
    with_found_suffix,
    with_target,
)
from schemas.geometry import absent, clip_boxes, from_xyxy
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

_FOLDERS = ("data/ILSVRC/", "", "ILSVRC/", "VID-Sentence/data/ILSVRC/")
_LISTS = "Data/VID/annSamples/"
_TUBES = "Annotations/VID/tubeGt/"


class VIDSentenceConfig(SourceConfig):
    """rules: tracks are regenerated from a single annotated frame (Appendix A; its IoU threshold is not printed, 0.5 is
        ours).
    max_frames: longer tracks are cut to so many frames around their middle annotated one; our bound, for tracks of up
        to 4,982 frames that would not fit in memory. The paper only trims to the annotated span.
    """

    rules: Rules = Rules(boxes="tracked", min_iou=0.5, masks="segment")
    max_frames: int = 1000


class VIDSentence:
    """See `pipeline.sources.base.Source`. One clip per sentence: each has its track's span."""

    name: ClassVar[str] = "vid_sentence"
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    licence: ClassVar[str] = (
        "annotations CC BY-NC 4.0; images under ImageNet terms, no redistribution"
    )
    expected: ClassVar[str] = """\
<root>/data/ILSVRC/
  Data/VID/annSamples/{train,val,test}_{valid_list,ann_list_v2}.txt
  Data/VID/train/ILSVRC2015_VID_train_000X/<video>/%06d.JPEG
  Data/VID/val/<video>/%06d.JPEG            (val and test)
  Annotations/VID/tubeGt/train/ILSVRC2015_VID_train_000X/<video>.js
  Annotations/VID/tubeGt/val/<video>.js     (val and test)"""
    Config = VIDSentenceConfig

    def __init__(self, config: VIDSentenceConfig | None = None):
        self.config = config or VIDSentenceConfig()
        self._tubes = LastJSON()

    def available(self, root: DataRoot) -> list[str]:
        base = _base(root)
        return [s for s in self.splits if root.has(f"{base}{_LISTS}{s}_ann_list_v2.txt")]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        base = _base(root)
        lists = [f"{base}{_LISTS}{split}_{kind}.txt" for kind in ("valid_list", "ann_list_v2")]
        videos = {line.rsplit(",", 1)[0]: None for line in _lines(root, lists[0]) if "," in line}
        return [
            file
            for file in [*lists, *(_tube_file(root, base, split, v) for v in videos)]
            if root.has(file)
        ]

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        need_split(self, root, split)
        base = _base(root)
        tracks = _lines(root, f"{base}{_LISTS}{split}_valid_list.txt")
        file = f"{base}{_LISTS}{split}_ann_list_v2.txt"
        lines = _lines(root, file)
        if not any(map(str.strip, lines)):
            raise invalid(f"{file}: holds no sentence")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield self._planned(root, base, split, tracks, line)
            except Quarantined as problem:
                yield Rejected(
                    self.name, split, line[:80], problem.reason, problem.message, f"{file}:{number}"
                )

    def _planned(
        self, root: DataRoot, base: str, split: str, tracks: list[str], line: str
    ) -> Planned:
        index, comma, sentence = line.partition(",")
        number = decimal(index.strip())
        expected = "expected `<line of the valid list>, <sentence>`"
        if not comma or number is None:
            raise malformed(expected)
        caption = caption_of(sentence, expected)
        if number >= len(tracks):
            raise malformed(f"names line {number} (0-based) of a valid list of {len(tracks)} lines")
        path, comma, track_id = (part.strip() for part in tracks[number].rpartition(","))
        if not comma or not path or not track_id:
            raise malformed(
                f"line {number} of the valid list, {tracks[number]!r:.80}, is not `<video>,<track>`"
            )

        pointer = {"file": _tube_file(root, base, split, path), "track": track_id}
        start = stop = 0
        height = width = None
        category = ""
        try:
            track = self._track(root, pointer)
            start, stop = _window([box["frame"] - 1 for box in track], self.config.max_frames)
            height, width = track[0]["frame_size"]
            named = track[0].get("class")
            category = named if isinstance(named, str) else ""
        except Quarantined:
            pass  # the tube is missing or broken: `annotate` will say so, the plan stays the same size
        video = path.rsplit("/", 1)[-1]
        folder = f"{base}Data/VID/{'train' if split == 'train' else 'val'}/{path}"
        clip = Clip(
            clip_id=clip_key(self.name, split, video, f"t{track_id}", start, stop),
            source=self.name,
            split=split,
            video_id=video,
            media=with_found_suffix(root, Media("frames", folder, "%06d.JPEG"), start),
            start=start,
            stop=stop,
            height=height,
            width=width,
            licence=self.licence,
        )
        referent_id = clip_key(self.name, split, video, f"t{track_id}", start, stop, f"s{number}")
        referent = Referent(
            referent_id, clip.clip_id, caption, (track_id,), category, sentence, pointer
        )
        return Planned(clip, (referent,))

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        return [referent.pointer["file"]]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """Every frame of the track's span is known: it has a box, or the object is out of view."""
        track = self._track(root, referent.pointer)
        raw = absent(len(clip))
        frames = np.array([box["frame"] - 1 - clip.start for box in track])
        inside = (frames >= 0) & (frames < len(clip))
        raw[frames[inside]] = box_rows([box["bbox"] for box in track], referent.pointer["file"])[
            inside
        ]
        boxes = from_xyxy(raw, inclusive=True)
        if clip.height and clip.width:
            boxes = clip_boxes(boxes, clip.height, clip.width)
        known = np.ones(len(clip), bool)
        return with_target(
            Annotation(boxes, known, None, raw, "xyxy pixels 0-based inclusive"), referent
        )

    def _track(self, root: DataRoot, pointer: dict) -> list[dict]:
        """The non-empty box records of one track, checked, in order of their frames."""
        file, track_id = pointer["file"], pointer["track"]
        tube = self._tubes.read(root, file)
        try:
            [track] = [a["track"] for a in tube["annotations"] if str(a["id"]) == track_id]  # type: ignore[index]
            track = sorted(track, key=lambda box: box["frame"])
            for box in track:
                height, width = box["frame_size"]
                numbers = (box["frame"], height, width)
                if not all(map(countable, numbers)) or len(box["bbox"]) != 4:
                    raise ValueError(f"frame {box['frame']!r:.20}")
            if len({box["frame"] for box in track}) < len(track):
                raise ValueError("it has two boxes for one frame")
        except (KeyError, TypeError, ValueError) as error:
            raise invalid(
                f"{file}: track {track_id!r:.20} cannot be read: {type(error).__name__} {error}"
            ) from error
        if not track:
            raise Quarantined(Reason.NO_TARGET, f"{file}: track {track_id!r:.20} is empty")
        return track


def _base(root: DataRoot) -> str:
    return locate(
        root, _FOLDERS, [f"{_LISTS}{split}_ann_list_v2.txt" for split in VIDSentence.splits]
    )


def _lines(root: DataRoot, file: str) -> list[str]:
    return [line.rstrip("\r") for line in root.read_text(file).rstrip("\n").split("\n")]


def _tube_file(root: DataRoot, base: str, split: str, video: str) -> str:
    folders = ("test", "val") if split == "test" else (split,)
    files = [f"{base}{_TUBES}{folder}/{video}.js" for folder in folders]
    return first_of(root, files) or files[-1]


def _window(frames: list[int], most: int) -> tuple[int, int]:
    """(start, stop) of the track's span, cut to `most` frames around the middle one of its annotated frames."""
    start, stop = frames[0], frames[-1] + 1
    if stop - start > most:
        start = min(max(frames[len(frames) // 2] - most // 2, start), stop - most)
        stop = start + most
    return start, stop
