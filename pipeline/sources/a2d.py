"""A2D-Sentences: short YouTube clips, 3 to 5 annotated frames each, sentences about several actors.

- `a2d_annotation.txt` is a CSV with a header; copies with more than its three columns occur. Instance ids are integers
  stored as text; the official file has one that is not, `1 (copy)`. It names 6,655 instances in 3,754 videos, one
  sentence each (tables elsewhere count 4,825 instances).
- `videoset.csv` has no header (a reader that assumes one loses a video). Its height and width are those of the
  original video: the clips are 320 pixels high.
- Videos in `a2d_missed_videos.txt` are not part of the dataset.
- `<vid>/<%05d>.h5` is named by the 1-based frame. Its masks are transposed, [N, W, H], and with a single instance the
  N axis is gone from `reMask` and `reBBox`.
- An instance that a frame does not list is not annotated there, which is not the same as absent.
- Boxes are those around the masks; `reBBox` is kept as raw numbers only.
- The clips folder is called clips320H or CLIPS320.
"""

import csv
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.base import (
    DataRoot,
    Rules,
    SourceConfig,
    caption_of,
    clip_key,
    countable,
    decimal,
    first_of,
    invalid,
    list_file,
    locate,
    malformed,
    need_split,
    with_target,
)
from schemas.geometry import MAX_PIXELS, RLE, absent, rle_area, rle_box, rle_encode
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

if TYPE_CHECKING:
    import h5py

_TABLES = (
    "text_annotations/a2d_annotation.txt",
    "a2d_annotation.txt",
    "a2d_annotation_with_short_query.txt",
)
# The last is a published copy with a fourth column; alone in a folder, either is enough to plan.
_MISSED = "text_annotations/a2d_missed_videos.txt"
_INSTANCES = "text_annotations/a2d_annotation_with_instances"
_VIDEOSET = "Release/videoset.csv"
_MAX_INSTANCES = 10_000  # of one frame; the dataset has a dozen


class A2DConfig(SourceConfig):
    """rules: re-tracked from the annotated boxes, up to 20 frames kept, boxes from the segmenter's masks (Appendix A;
        its IoU threshold is not printed, 0.5 is ours).
    min_frames: a clip spans its annotated frames, and is widened on both sides to so many frames where the video has
        them ("extending trajectories to up to 20 frames where possible", Appendix A).
    frame_tolerance: frames that a video may lack at its end, or have more, than `total_frames` of videoset.csv; our choice.
    """

    rules: Rules = Rules(
        boxes="tracked",
        start="annotation",
        min_iou=0.5,
        masks="segment",
        boxes_from_masks=True,
        max_kept_frames=20,
    )
    min_frames: int = 20
    frame_tolerance: int = 2


class A2D:
    """See `pipeline.sources.base.Source`. Without videoset.csv the subsets are unknown, and the only split is `all`."""

    name: ClassVar[str] = "a2d"
    splits: ClassVar[tuple[str, ...]] = ("train", "test", "all")
    licence: ClassVar[str] = "none stated; YouTube clips, academic use, do not redistribute frames"
    expected: ClassVar[str] = """\
<root>/                                     (or a2d_sentences/ below it)
  text_annotations/a2d_annotation.txt
  text_annotations/a2d_missed_videos.txt
  text_annotations/a2d_annotation_with_instances/<vid>/<%05d>.h5
  Release/videoset.csv
  Release/clips320H/<vid>.mp4"""
    Config = A2DConfig

    def __init__(self, config: A2DConfig | None = None):
        self.config = config or A2DConfig()

    def available(self, root: DataRoot) -> list[str]:
        base = _base(root)
        if not _table_file(root, base):
            return []
        return ["train", "test"] if list_file(root, [base + _VIDEOSET]) else ["all"]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        """The tables, and the h5 files, whose names give the spans."""
        base = _base(root)
        tables = [
            _table_file(root, base),
            *(base + file for file in (_MISSED, _VIDEOSET) if root.has(base + file)),
        ]
        folders = [f"{base}{_INSTANCES}/{video}" for video in root.listdir(base + _INSTANCES)]
        frames = [
            f"{folder}/{name}"
            for folder in folders
            for name in _annotated_frames(root, folder).values()
        ]
        return tables + [file for file in frames if root.has(file)]

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        need_split(self, root, split)
        base = _base(root)
        videoset = _videoset(root, base) if split != "all" else {}
        missed_file = list_file(root, [base + _MISSED])
        missed = set(root.read_text(missed_file).split()) if missed_file else set()
        clips = first_of(root, [f"{base}Release/{folder}" for folder in ("clips320H", "CLIPS320")])
        table = _table(root, base)
        if not table:
            raise invalid(f"{_table_file(root, base)}: holds no row")
        for video, rows in table.items():
            # A video that videoset.csv does not name belongs to no subset; it is reported once, with train.
            subset, frames = videoset.get(video, (split if split == "all" else "train", None))
            if subset != split:
                continue
            referents: dict[str, Referent] = {}
            file = _video_file(root, clips or f"{base}Release/clips320H", video)
            clip = self._clip(root, base, split, video, frames, file)
            for line, instance, query in rows:
                try:
                    if video in missed:
                        raise Quarantined(Reason.KNOWN_BAD, f"{video:.80} is listed in {_MISSED}")
                    if split != "all" and video not in videoset:
                        raise Quarantined(
                            Reason.ANNOTATION_MISSING, f"{video:.80} is not listed in {_VIDEOSET}"
                        )
                    referent = self._referent(base, clip, instance, query)
                    if referent.referent_id in referents:
                        raise Quarantined(
                            Reason.DUPLICATE, f"instance {instance} of {video:.80} has one already"
                        )
                    referents[referent.referent_id] = referent
                except Quarantined as problem:
                    item, where = f"{video:.80},{instance:.80}", f"{_table_file(root, base)}:{line}"
                    yield Rejected(
                        self.name,
                        split,
                        item,
                        problem.reason,
                        problem.message,
                        where,
                        clip_id=clip.clip_id,
                    )
            if referents:
                yield Planned(clip, tuple(referents.values()))

    def _clip(
        self, root: DataRoot, base: str, split: str, video: str, total: int | None, file: str
    ) -> Clip:
        annotated = _annotated_frames(root, f"{base}{_INSTANCES}/{video}")
        start, stop = _widen(annotated, self.config.min_frames, total) if annotated else (0, 0)
        return Clip(
            clip_id=clip_key(self.name, split, video, start, stop),
            source=self.name,
            split=split,
            video_id=video,
            media=Media("video", file),
            start=start,
            stop=stop,
            frame_count=total,
            frame_tolerance=self.config.frame_tolerance,
            licence=self.licence,
        )

    def _referent(self, base: str, clip: Clip, instance: str, query: str) -> Referent:
        if (number := decimal(instance)) is None:
            raise malformed(f"instance id {instance!r:.40} is not an integer")
        caption = caption_of(query, "no sentence")
        pointer = {"folder": f"{base}{_INSTANCES}/{clip.video_id}", "instance": number}
        referent_id = clip_key(
            self.name, clip.split, clip.video_id, clip.start, clip.stop, f"i{number}"
        )
        return Referent(referent_id, clip.clip_id, caption, (instance,), "", query, pointer)

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        folder = referent.pointer["folder"]
        return [f"{folder}/{name}" for name in _checked_frames(root, folder).values()]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """Masks and the boxes around them, on the frames that list the instance; nothing is known elsewhere."""
        folder, instance = referent.pointer["folder"], referent.pointer["instance"]
        annotated = _checked_frames(root, folder)
        n = len(clip)
        boxes, raw = absent(n), absent(n)
        masks: list[RLE | None] = [None] * n
        for source_frame, name in annotated.items():
            t = source_frame - clip.start
            found = _read_instance(root, f"{folder}/{name}", instance) if 0 <= t < n else None
            if found is not None:
                masks[t], raw[t] = found
                boxes[t] = rle_box(found[0])
        known = np.array([mask is not None for mask in masks])
        return with_target(
            Annotation(boxes, known, masks, raw, "reBBox xyxy pixels 1-based"), referent
        )


def _base(root: DataRoot) -> str:
    return locate(root, ("", "a2d_sentences/", "A2D-Sentences/"), list(_TABLES))


def _table_file(root: DataRoot, base: str) -> str:
    """The text table, or "" where there is none."""
    return first_of(root, [base + file for file in _TABLES]) or ""


def _table(root: DataRoot, base: str) -> dict[str, list[tuple[int, str, str]]]:
    """Video -> (line, instance id, sentence) of its rows, in the order of the table: 6,655 short rows."""
    videos: dict[str, list[tuple[int, str, str]]] = {}
    for number, line in enumerate(root.read_text(_table_file(root, base)).split("\n"), start=1):
        video, instance, query = (*_fields(line)[:3], "", "", "")[:3]
        if video and (number > 1 or video != "video_id"):
            videos.setdefault(video, []).append((number, instance, query))
    return videos


def _fields(line: str) -> list[str]:
    """One line of a CSV on its own, so that an unclosed quote cannot swallow the lines after it."""
    try:
        return next(csv.reader([line.rstrip("\r")]), [])
    except csv.Error:  # a field of more than 128 kB
        return line.split(",", 3)


def _videoset(root: DataRoot, base: str) -> dict[str, tuple[str, int | None]]:
    """Video -> (subset, total frames)."""
    videos = {}
    for row in map(_fields, root.read_text(base + _VIDEOSET).split("\n")):
        if len(row) >= 9 and row[8].strip() in ("0", "1"):
            frames = decimal(row[6].strip())
            subset = "test" if row[8].strip() == "1" else "train"
            videos[row[0]] = subset, frames if countable(frames) else None
    return videos


def _annotated_frames(root: DataRoot, folder: str) -> dict[int, str]:
    """0-based frame -> name of its h5 file, in order."""
    frames = {name: decimal(name[:-3]) for name in root.listdir(folder) if name.endswith(".h5")}
    return dict(
        sorted((frame - 1, name) for name, frame in frames.items() if frame and countable(frame))
    )


def _checked_frames(root: DataRoot, folder: str) -> dict[int, str]:
    """`_annotated_frames`, or Quarantined if there are none or a file has another name than the number of a frame."""
    root.file(folder)  # raises for a link that may not be followed, where a listing would be empty
    annotated = _annotated_frames(root, folder)
    if not annotated:
        raise Quarantined(Reason.ANNOTATION_MISSING, f"{folder}: no annotated frames")
    names = set(annotated.values())
    for name in root.listdir(folder):
        if name.endswith(".h5") and name not in names:
            raise invalid(f"{folder}/{name:.80}: an .h5 file is called by its 1-based frame")
    return annotated


def _widen(annotated: dict[int, str], least: int, total: int | None) -> tuple[int, int]:
    """(start, stop) from the first to the last annotated frame, at least `least` frames where the video has them.
    Where its length is not known, nothing after the last annotated frame is assumed to exist."""
    first, stop = min(annotated), max(annotated) + 1
    end = stop if total is None else max(total, stop)
    missing = max(least - (stop - first), 0)
    start = min(max(first - missing // 2, 0), max(end - max(least, stop - first), 0))
    return start, min(max(start + least, stop), end)


def _video_file(root: DataRoot, folder: str, video: str) -> str:
    """A video: `.mp4` as it is released, or with the suffix of a copy that was converted."""
    files = [f"{folder}/{video}{suffix}" for suffix in (".mp4", ".mkv", ".avi", ".webm")]
    return first_of(root, files) or files[0]


def _read_instance(
    root: DataRoot, file: str, instance: int
) -> tuple[RLE, NDArray[np.float32]] | None:
    """(mask, raw reBBox) of one instance in one frame; None where the frame does not list it or its mask is empty."""
    import h5py

    try:
        with h5py.File(root.regular(file), "r") as frame:
            ids = _dataset(frame, "instance", most=_MAX_INSTANCES)[...].reshape(-1)
            if instance not in ids:
                return None
            index = int(np.flatnonzero(ids == instance)[0])
            stored = _dataset(frame, "reMask")
            if (
                stored.ndim not in (2, 3)
                or int(np.prod(stored.shape[-2:], dtype=np.int64)) > MAX_PIXELS
            ):
                raise invalid(f"{file}: reMask has shape {stored.shape}")
            if (1 if stored.ndim == 2 else stored.shape[0]) != len(ids):
                raise invalid(f"{file}: reMask has shape {stored.shape} for {len(ids)} instances")
            mask = (stored[...] if stored.ndim == 2 else stored[index]).T != 0
            raw4 = (
                _dataset(frame, "reBBox", most=4 * _MAX_INSTANCES)[...]
                if "reBBox" in frame
                else np.empty(0)
            )
            with np.errstate(over="ignore"):
                boxes = raw4.astype(np.float32).reshape(-1)
    except (OSError, KeyError, RuntimeError) as error:  # the last two: a header that points nowhere
        raise invalid(root.words(f"{file}: not a readable HDF5 file: {error}")) from error
    rle = rle_encode(mask)
    raw = boxes.reshape(4, -1)[:, index] if boxes.size == 4 * len(ids) else absent(1)[0]
    return (rle, raw) if rle_area(rle) else None


def _dataset(frame: "h5py.File", name: str, most: int | None = None) -> "h5py.Dataset":
    """A dataset of numbers, at most `most` of them, whose content is in this very file."""
    import h5py

    # A link inside the file, a virtual dataset and external storage can name files outside the data root.
    found = frame[name] if isinstance(frame.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise invalid(f"{frame.filename}: no dataset `{name}` of its own")
    if (
        found.dtype.kind not in "biuf"
        or found.shape is None
        or (most is not None and found.size > most)
    ):
        raise invalid(f"{frame.filename}: `{name}` has {found.dtype} {found.shape}")
    return found
