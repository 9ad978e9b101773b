"""Ref-SAV: long machine-written descriptions (Sa2VA) of SA-V's manual masklets.

- Paths in the text file repeat a directory, `sav_000/sav_train/sav_000/sav_000002.mp4`; the file is in
  `sav_train/sav_000/`.
- The key of an object is its 0-based index in the masklet's inner list. An index beyond it is an error, not the last.
- Label k belongs to video frame 4k: 24 fps video, 6 fps labels.
- `video_frame_count` is a float, and decoders may find a frame or two more or fewer. A video that would give another
  number of labelled frames does not line up and is dropped.
- An object out of view has an RLE without foreground, never null.
- The validation set (MeViS form) is not curated.
"""

import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import ClassVar

import numpy as np

from pipeline.sources.base import (
    DataRoot,
    LastJSON,
    Rules,
    SourceConfig,
    caption_of,
    checked_mask,
    clip_key,
    decimal,
    first_of,
    invalid,
    locate,
    malformed,
    need_split,
    with_target,
)
from schemas.geometry import absent, rle_box
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

STEP = 4
"""Video frames per labelled frame."""
FPS = 24.0
"""Of the videos."""

_TEXT = ("Ref-SAV.json", "sam_v_final_v3.json")
_PATHS = ("video_path", "anno_path")
_TOPS = ("sam_v_full/", "", "sam_v_full/sav_train/", "sav_train/")
# The second is for archives of SA-V that were unpacked beside the text file; the last two for their content alone.
_HEAD = 4096  # the header of a masklet file, before masks of several MB


class RefSAVConfig(SourceConfig):
    """rules: boxes around the masks, which are kept, without any tracking (Appendix A)."""

    rules: Rules = Rules(boxes="masks", masks="annotation", min_iou=None)


class RefSAV:
    """See `pipeline.sources.base.Source`. One clip per video, with all its described objects."""

    name: ClassVar[str] = "refsav"
    splits: ClassVar[tuple[str, ...]] = ("train",)
    licence: ClassVar[str] = "SA-V CC BY 4.0; expressions under the terms of Sa2VA's training data"
    expected: ClassVar[str] = """\
<root>/                                     (or video_datas/ below it)
  Ref-SAV.json                              (or sam_v_final_v3.json)
  sam_v_full/sav_train/sav_000/{<id>.mp4, <id>_manual.json}"""
    Config = RefSAVConfig

    def __init__(self, config: RefSAVConfig | None = None):
        self.config = config or RefSAVConfig()
        self._masklets = LastJSON()

    def available(self, root: DataRoot) -> list[str]:
        return ["train"] if _text_file(root) else []

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        """The text file, and the masklets it names, whose lengths decide the spans."""
        base, file = _base(root), _text_file(root) or ""
        files = [file]
        for _, offset, size in root.json_members(file):
            row = root.read_json(file, offset, size)
            path = row.get("anno_path") if isinstance(row, dict) else None
            files += [_find(root, base, path)] if isinstance(path, str) and path else []
        return [path for path in files if root.has(path)]

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        need_split(self, root, split)
        base, file = _base(root), _text_file(root) or ""
        video = None
        for video, offset, size in root.json_members(file):
            where = f"{file}@{offset}"
            try:
                clip, masklets, objects = self._clip(
                    root, base, split, video, root.read_json(file, offset, size)
                )
            except Quarantined as problem:
                yield Rejected(self.name, split, video, problem.reason, problem.message, where)
                continue
            referents: list[Referent] = []
            for key, row in objects.items():
                try:
                    referent = self._referent(clip, masklets, key, row)
                    if any(referent.referent_id == r.referent_id for r in referents):
                        raise Quarantined(
                            Reason.DUPLICATE,
                            f"object {referent.pointer['index']} has a text already",
                        )
                    referents.append(referent)
                except Quarantined as problem:
                    yield Rejected(
                        self.name,
                        split,
                        f"{video}/{key}",
                        problem.reason,
                        problem.message,
                        where,
                        clip_id=clip.clip_id,
                    )
            if referents:
                yield Planned(clip, tuple(referents))
        if video is None:
            raise invalid(f"{file}: holds no video")

    def _clip(
        self, root: DataRoot, base: str, split: str, video: str, row: object
    ) -> tuple[Clip, str, dict]:
        objects = row.get("objects") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(objects, dict) or not objects:
            raise malformed("`objects` is not an object with descriptions")
        paths = [row.get(key) for key in _PATHS]
        if not all(isinstance(path, str) and path for path in paths):
            raise malformed(f"{' or '.join(_PATHS)} is missing")
        media, masklets = (_find(root, base, str(path)) for path in paths)
        count, height, width = self._header(root, masklets)
        labelled = math.ceil(count / STEP)
        clip = Clip(
            clip_id=clip_key(self.name, split, video, 0, count),
            source=self.name,
            split=split,
            video_id=video,
            media=Media("video", media),
            start=0,
            stop=STEP * (labelled - 1) + 1 if labelled else 0,
            step=STEP,
            fps=FPS,
            height=height,
            width=width,
            # Any of 4n-3 .. 4n frames gives n labelled ones. Centred there, +-1 tolerates what decoders miscount and
            # accepts nothing else.
            frame_count=min(max(count, STEP * labelled - 2), STEP * labelled - 1)
            if labelled
            else None,
            frame_tolerance=1,
            licence=self.licence,
        )
        return clip, masklets, objects

    def _header(self, root: DataRoot, masklets: str) -> tuple[int, int | None, int | None]:
        """(frames, height, width) of a masklet file, from its first bytes; zero frames if there is no such file."""
        keys = ("video_frame_count", "video_height", "video_width")
        try:
            head = root.read_bytes(masklets, 0, _HEAD).decode("utf-8", "replace")
            found = [re.search(rf'"{key}"\s*:\s*(\d+(?:\.\d+)?)\s*[,}}]', head) for key in keys]
            numbers: list = [match and float(match[1]) for match in found]
            if None in numbers:  # another order of keys: the whole file, then
                data = self._masklets.read(root, masklets)
                numbers = [data.get(key) for key in keys] if isinstance(data, dict) else [None]
        except Quarantined:  # `annotate` will say what is wrong
            return 0, None, None
        if not all(isinstance(n, int | float) and 0 < n < 1e7 for n in numbers):
            return 0, None, None
        count, height, width = (round(n) for n in numbers)
        return count, height, width

    def _referent(self, clip: Clip, masklets: str, key: str, row: object) -> Referent:
        text = row.get("formated") if isinstance(row, dict) else None
        if (index := decimal(key)) is None:
            raise malformed(f"object key {key!r:.40} is not an index")
        caption = caption_of(text, "no description (`formated`)")
        pointer = {"file": masklets, "index": index}
        referent_id = clip_key(self.name, clip.split, clip.video_id, f"o{index}")
        return Referent(referent_id, clip.clip_id, caption, (key,), "", str(text), pointer)

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        return [referent.pointer["file"]]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """The object's masks on the labelled frames, and the boxes around them. Every labelled frame is known."""
        file, index = referent.pointer["file"], referent.pointer["index"]
        data = self._masklets.read(root, file)
        masklet = data.get("masklet") if isinstance(data, dict) else None
        if not isinstance(masklet, list) or not all(isinstance(frame, list) for frame in masklet):
            raise invalid(f"{file}: `masklet` is not a list of lists")
        if len(masklet) != len(clip) or not masklet:
            raise Quarantined(
                Reason.FRAME_MISMATCH,
                f"{file}: {len(masklet)} labelled frames for {len(clip)} of the clip",
            )
        if index >= min(len(frame) for frame in masklet):
            raise invalid(f"{file}: object {index} of {min(len(frame) for frame in masklet)}")
        size = (clip.height, clip.width) if clip.height and clip.width else None
        masks = [
            checked_mask(frame[index], f"{file}, label {t}", size)
            for t, frame in enumerate(masklet)
        ]
        boxes = absent(len(clip))
        for t, mask in enumerate(masks):
            if mask is not None:
                boxes[t] = rle_box(mask)
        return with_target(Annotation(boxes, np.ones(len(clip), bool), masks), referent)


def _base(root: DataRoot) -> str:
    return locate(root, ("", "video_datas/", "data/video_datas/"), _TEXT)


def _text_file(root: DataRoot) -> str | None:
    return first_of(root, [_base(root) + name for name in _TEXT])


def _find(root: DataRoot, base: str, path: str) -> str:
    """Where a path of the text file leads: with its repeated directory removed, as given, or by its last two parts.
    The first where none exists."""
    parts = PurePosixPath(path).parts
    repeated = len(parts) > 1 and parts[0] in parts[1:-1]
    spellings = [parts[1:] if repeated else parts, parts, parts[-2:]]
    files = [f"{base}{top}{'/'.join(spelling)}" for top in _TOPS for spelling in spellings]
    return first_of(root, files) or files[0]
