"""MeViS: motion expressions about one or several objects, with dense masks.

- `meta_expressions.json` holds the text and names masks by `anno_id`; an expression about several objects has several:
  its mask is their union. `meta_expressions_v2.json` is the second version, which adds expressions about nothing in the
  video: they have no `anno_id` and cannot be curated. Where both versions are in a folder, the second is read.
- `mask_dict.json` (about 1 GB) has one RLE or null per frame for each anno_id, in the order of the sorted `frames`.
  null, or an RLE without foreground, is an absent object.
- `frames` are image names without extension; their numbers may have gaps.
- Videos with fewer than two frames are skipped, as the official loader does.
- White space and case of expressions vary; captions get their white space normalised, their case is left alone.
- Split `valid` has no masks, so it is not curated.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pipeline.sources.base import (
    DataRoot,
    Rules,
    SourceConfig,
    caption_of,
    checked_mask,
    clip_key,
    first_of,
    invalid,
    locate,
    malformed,
    need_split,
    with_found_suffix,
    with_target,
)
from schemas.geometry import RLE, absent, is_box, rle_box, rle_union
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
from schemas.video.order import number_key

_METAS = ("meta_expressions_v2.json", "meta_expressions.json")
_MASKS = "mask_dict.json"
OFFICIAL_SHA256 = {
    "train": "f9d9b01a2a6d7a004e2e7a664ce2b9b1576218e975030f8e4df4f66111fb253f",
    "valid_u": "6e711a3f713cd95a825f536323e434b4d80f85a8e4e66d0cd662408e8779db50",
}
"""Split -> SHA-256 of its mask_dict.json, as its maintainers gave it for checking downloads."""


class MeViSConfig(SourceConfig):
    """rules: boxes around the original masks, which are kept; the tracker only bridges frames that the dataset does not
        know ("when annotations are sparse or missing in intermediate frames", Appendix A). 5 frames are our bound: a
        second of a video annotated at 5 to 6 frames per second.
    nulls: what a null mask says. "absent": the object is not there, which is the dataset's own meaning, and leaves
        nothing to bridge in the official files. "missing": the frame was not annotated, so `rules.fill_gaps` applies.
    """

    nulls: Literal["absent", "missing"] = "absent"
    rules: Rules = Rules(boxes="masks", masks="annotation", fill_gaps=5, min_iou=None)


class MeViS:
    """See `pipeline.sources.base.Source`. One clip per video, with all its expressions."""

    name: ClassVar[str] = "mevis"
    splits: ClassVar[tuple[str, ...]] = ("train", "valid_u")
    licence: ClassVar[str] = "CC BY-NC-SA 4.0, non-commercial research"
    expected: ClassVar[str] = """\
<root>/                                     (or mevis/ below it)
  {train,valid_u}/meta_expressions.json     (or meta_expressions_v2.json)
  {train,valid_u}/mask_dict.json
  {train,valid_u}/JPEGImages/<video>/%05d.jpg"""
    Config = MeViSConfig

    def __init__(self, config: MeViSConfig | None = None):
        self.config = config or MeViSConfig()

    def available(self, root: DataRoot) -> list[str]:
        base = _base(root)
        return [split for split in self.splits if _meta_file(root, base + split)]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        base = _base(root) + split
        files = [_meta_file(root, base) or "", f"{base}/{_MASKS}"]
        return [file for file in files if file and root.has(file)]

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        """The text file is small (a few MB) and read as a whole; of the masks only byte ranges are kept."""
        need_split(self, root, split)
        base = f"{_base(root)}{split}"
        file, masks = _meta_file(root, base) or "", f"{base}/{_MASKS}"
        meta = root.read_json(file)
        videos = meta.get("videos") if isinstance(meta, dict) else None
        if not isinstance(videos, dict) or not videos:
            raise invalid(f"{file}: expected an object `videos` with at least one video")
        ranges = _mask_ranges(root, masks, split)
        for video, row in videos.items():
            try:
                clip, expressions = self._clip(root, base, split, video, row)
            except Quarantined as problem:
                yield Rejected(self.name, split, video, problem.reason, problem.message, file)
                continue
            referents = []
            for key, expression in expressions.items():
                try:
                    referents.append(self._referent(masks, ranges, clip, key, expression))
                except Quarantined as problem:
                    yield Rejected(
                        self.name,
                        split,
                        f"{video}/{key}",
                        problem.reason,
                        problem.message,
                        file,
                        clip_id=clip.clip_id,
                    )
            if referents:
                yield Planned(clip, tuple(referents))

    def _clip(
        self, root: DataRoot, base: str, split: str, video: str, row: object
    ) -> tuple[Clip, dict]:
        frames = row.get("frames") if isinstance(row, dict) else None
        expressions = row.get("expressions") if isinstance(row, dict) else None
        if not isinstance(frames, list) or not all(isinstance(name, str) for name in frames):
            raise malformed("`frames` is not a list of names")
        if not isinstance(expressions, dict) or not expressions:
            raise malformed("`expressions` is not an object with expressions")
        if len(frames) < 2:
            raise malformed(
                f"{len(frames)} frames; the official loader skips videos with fewer than 2"
            )
        names = tuple(f"{name}.jpg" for name in sorted(frames, key=number_key))
        if len({number_key(name) for name in frames}) < len(names):
            raise malformed("`frames` names one frame twice")
        media = Media("frames", f"{base}/JPEGImages/{video}", names=names)
        clip = Clip(
            clip_id=clip_key(self.name, split, video, 0, len(names)),
            source=self.name,
            split=split,
            video_id=video,
            media=with_found_suffix(root, media, 0),
            start=0,
            stop=len(names),
            frame_count=len(names),
            licence=self.licence,
        )
        return clip, expressions

    def _referent(self, masks: str, ranges: dict, clip: Clip, key: str, row: object) -> Referent:
        text = row.get("exp", "") if isinstance(row, dict) else ""
        ids = row.get("anno_id") if isinstance(row, dict) else None
        objects = row.get("obj_id", ids) if isinstance(row, dict) else None
        caption = caption_of(text, "no expression")
        if ids == [] and not objects:
            message = "the expression is about no object of the video (`anno_id` is empty)"
            raise Quarantined(Reason.NO_OBJECT, message)
        if not isinstance(ids, list) or not ids or not all(type(i) in (int, str) for i in ids):
            raise malformed("`anno_id` is not a list with mask ids")
        pointer = {
            "file": masks,
            "anno_ids": [str(i) for i in ids],
            "ranges": [ranges.get(str(i)) for i in ids],
        }
        object_ids = tuple(str(i) for i in (objects if isinstance(objects, list) else ids))
        referent_id = clip_key(self.name, clip.split, clip.video_id, f"e{key}")
        return Referent(referent_id, clip.clip_id, caption, object_ids, "", text, pointer)

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        pointer = referent.pointer
        for anno_id, span in zip(pointer["anno_ids"], pointer["ranges"], strict=True):
            if span is None:
                raise _no_mask(root, pointer["file"], anno_id)
        return [pointer["file"]]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """The union of the objects' masks, and the box around it."""
        pointer, layers = referent.pointer, []
        for anno_id, span in dict(
            zip(pointer["anno_ids"], pointer["ranges"], strict=True)
        ).items():  # each mask once
            where = f"{pointer['file']}: mask {anno_id}"
            if span is None:
                raise _no_mask(root, pointer["file"], anno_id)
            layer = root.read_json(pointer["file"], *span)
            if not isinstance(layer, list) or len(layer) != len(clip):
                found = f"{len(layer)} masks" if isinstance(layer, list) else "no list"
                raise Quarantined(Reason.FRAME_MISMATCH, f"{where}: {found} for {len(clip)} frames")
            layers.append([_mask(rle, f"{where}, frame {t}") for t, rle in enumerate(layer)])
        boxes = absent(len(clip))
        masks: list[RLE | None] = []
        for t, objects in enumerate(zip(*layers, strict=True)):
            there = [mask for mask in objects if mask is not None]
            if not there:
                masks.append(None)
                continue
            try:
                union = rle_union(there)
            except ValueError as error:
                raise invalid(
                    f"{pointer['file']}: {referent.referent_id}, frame {t}: {error}"
                ) from error
            masks.append(union)
            boxes[t] = rle_box(union)
        known = np.ones(len(clip), bool) if self.config.nulls == "absent" else is_box(boxes)
        return with_target(Annotation(boxes, known, masks), referent)


def _base(root: DataRoot) -> str:
    return locate(
        root,
        ("", "mevis/", "MeViS/", "MeViS_release/"),
        [f"{split}/{name}" for split in MeViS.splits for name in _METAS],
    )


def _meta_file(root: DataRoot, folder: str) -> str | None:
    return first_of(root, [f"{folder}/{name}" for name in _METAS])


def _mask_ranges(root: DataRoot, masks: str, split: str) -> dict[str, tuple[int, int]]:
    """Mask id -> (offset, size in bytes) in the file of masks; none where there is no such file."""
    if not root.has(masks):
        return {}
    try:
        return {key: (offset, size) for key, offset, size in root.json_members(masks)}
    except Quarantined as problem:
        if problem.reason != Reason.ANNOTATION_INVALID:
            raise
        raise invalid(f"{problem.message}. {_download_again(root.file(masks), split)}") from problem


def _download_again(file: Path, split: str) -> str:
    """What to do about a file of masks that cannot be read. Broken downloads of it are common."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == OFFICIAL_SHA256[split]:
        return "Its SHA-256 is the official one: please report this as a bug"
    size = file.stat().st_size
    return (
        f"It has {size:,} bytes and the SHA-256 {found}, the official file of {split} has "
        f"{OFFICIAL_SHA256[split]}: download {_MASKS} of {split} again"
    )


def _no_mask(root: DataRoot, file: str, anno_id: str) -> Quarantined:
    """Why a mask has no place in the file of masks: the file is not there, or does not have it."""
    problem = root.why_not(file)
    if problem is None:
        return Quarantined(Reason.ANNOTATION_MISSING, f"{file}: mask {anno_id} is not in the file")
    pickle = file.removesuffix(".json") + ".pkl"
    if not root.has(pickle):
        return problem
    other = f"{pickle} is there, which is not read: download {_MASKS}"
    return Quarantined(problem.reason, f"{problem.message}; {other}")


def _mask(rle: object, where: str) -> RLE | None:
    return None if rle is None else checked_mask(rle, where)
