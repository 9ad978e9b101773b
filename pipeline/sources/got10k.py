"""GOT-10k: tracking sequences with class, motion and adverb labels instead of sentences.

- Boxes are `x,y,w,h`, floats, 1-based (the trackers' convention).
- Absent frames have `absence.label` 1, or `cover.label` 0, or a box of -1 or of no size. Two sequences (000385, 000602)
  have an all-zero `cover.label`, which then says nothing.
- Sequences 008623 to 008637, 009058 and 009059 have repeated frames and wrong boxes; images 43 to 53 of 001636 and
  25 to 33 of 001638 are wrong.
- Some boxes reach beyond the image; the image size changes inside some sequences (007947). So boxes stay in the pixels
  of their own image, and are clipped to that, not to `resolution`; whoever resizes the images scales the boxes.
- `meta_info.ini` is read by key, since not all files have the same lines. Images count from 00000001.jpg.
- Split `test` has a box for its first frame only, so it is not curated.
- The full download has its sequences in `full_data/train_data/GOT-10k_Train_split_XX` and `full_data/val_data`.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from pipeline.sources.base import (
    DataRoot,
    Rules,
    SourceConfig,
    box_lines,
    clean,
    clip_key,
    countable,
    decimal,
    digits,
    invalid,
    need_split,
    with_found_suffix,
    with_target,
)
from schemas.geometry import clip_boxes, from_xywh, is_box
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

KNOWN_BAD = frozenset(f"GOT-10k_Train_{n:06d}" for n in (*range(8623, 8638), 9058, 9059))
"""Sequences with repeated frames and wrong boxes."""

_TOPS = ("", "GOT-10k/", "got10k/", "GOT10k/")
_PART = re.compile(r"GOT-10k_(Train|Val)_split_\d+")
_OPENED = ("meta_info.ini", "groundtruth.txt", "absence.label", "cover.label")
_CLASSES = ("object_class", "major_class", "root_class")

BAD_IMAGES = {"GOT-10k_Train_001636": (43, 53), "GOT-10k_Train_001638": (25, 33)}
"""Sequence -> first and last wrong image, by the number in the file name."""


class GOT10kConfig(SourceConfig):
    """rules: the dataset's boxes are kept, masks are segmented from them (Appendix A)."""

    rules: Rules = Rules(boxes="annotation", masks="segment", min_iou=None)


class GOT10k:
    """See `pipeline.sources.base.Source`. One clip per sequence."""

    name: ClassVar[str] = "got10k"
    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    licence: ClassVar[str] = "CC BY-NC-SA 4.0"
    expected: ClassVar[str] = """\
<root>/                                     (or GOT-10k/ below it)
  {train,val}/list.txt
  {train,val}/GOT-10k_{Train,Val}_%06d/{%08d.jpg, groundtruth.txt, meta_info.ini, absence.label, cover.label}
    or, as downloaded, full_data/{train,val}_data, with or without folders GOT-10k_Train_split_XX between"""
    Config = GOT10kConfig
    sizes_vary: ClassVar[bool] = True

    def __init__(self, config: GOT10kConfig | None = None):
        self.config = config or GOT10kConfig()

    def available(self, root: DataRoot) -> list[str]:
        return [split for split in self.splits if _sequences(root, split)]

    def annotation_files(self, root: DataRoot, split: str) -> list[str]:
        names = ("groundtruth.txt", "meta_info.ini")
        folders = _sequences(root, split).values()
        files = [f"{folder}/{name}" for folder in folders for name in names]
        return [file for file in [f"{_base(root, split)}/list.txt", *files] if root.has(file)]

    def plan(self, root: DataRoot, split: str) -> Iterator[Planned | Rejected]:
        need_split(self, root, split)
        for sequence, folder in _sequences(root, split).items():
            if sequence in KNOWN_BAD:
                message = "repeated frames and wrong boxes, according to users of the dataset"
                yield Rejected(self.name, split, sequence, Reason.KNOWN_BAD, message, folder)
                continue
            yield self._planned(root, folder, split, sequence)

    def _planned(self, root: DataRoot, folder: str, split: str, sequence: str) -> Planned:
        try:
            labels = parse_meta(root.read_text(f"{folder}/meta_info.ini"))
            stop = sum(
                1
                for line in root.read_bytes(f"{folder}/groundtruth.txt").split(b"\n")
                if line.strip()
            )
        except Quarantined:  # a file is missing: `annotate` will say which
            labels, stop = {}, 0
        rate = re.match(r"\d{1,9}(\.\d+)?(?!\d)", labels.get("anno_fps", ""))
        size = re.fullmatch(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", labels.get("resolution", ""))
        width, height = map(decimal, size.groups()) if size else (None, None)
        clip = Clip(
            clip_id=clip_key(self.name, split, sequence, 0, stop),
            source=self.name,
            split=split,
            video_id=sequence,
            media=with_found_suffix(root, Media("frames", folder, "%08d.jpg", first=1), 0),
            start=0,
            stop=stop,
            fps=float(rate[0]) if rate and float(rate[0]) else None,
            height=height if countable(height) else None,
            width=width if countable(width) else None,
            frame_count=stop or None,
            licence=self.licence,
        )
        raw = " / ".join(
            labels.get(key, "") for key in ("object_class", "motion_class", "motion_adverb")
        )
        referent_id = clip_key(self.name, split, sequence, 0, stop, "target")
        category = labels.get("object_class", "")
        referent = Referent(
            referent_id, clip.clip_id, sentence(labels), ("0",), category, raw, {"folder": folder}
        )
        return Planned(clip, (referent,))

    def opens(self, root: DataRoot, referent: Referent) -> list[str]:
        return [f"{referent.pointer['folder']}/{name}" for name in _OPENED]

    def annotate(self, root: DataRoot, clip: Clip, referent: Referent) -> Annotation:
        """Boxes in the pixels of their own images. A wrong image is not known; an absent target is."""
        folder = referent.pointer["folder"]
        labels = parse_meta(root.read_text(f"{folder}/meta_info.ini"))
        if "\ufffd" in sentence(labels):
            raise invalid(f"{folder}/meta_info.ini: {sentence(labels)!r:.200} is not UTF-8 text")
        if not any(clean(labels.get(key, "")) for key in _CLASSES):  # no caption without a class
            raise invalid(
                f"{folder}/meta_info.ini: says of no class what the object is ({', '.join(_CLASSES)})"
            )
        raw = box_lines(
            root.read_text(f"{folder}/groundtruth.txt"), f"{folder}/groundtruth.txt"
        ).astype(np.float32)
        absence = digits(root.read_bytes(f"{folder}/absence.label"), f"{folder}/absence.label")
        cover = digits(root.read_bytes(f"{folder}/cover.label"), f"{folder}/cover.label", highest=8)
        if not len(raw) == len(absence) == len(cover) == len(clip):
            found = f"{len(raw)} boxes, {len(absence)} absence labels, {len(cover)} cover labels"
            raise Quarantined(Reason.FRAME_MISMATCH, f"{folder}: {found} for {len(clip)} frames")
        gone = absence == 1
        if cover.any():
            gone |= cover == 0
        known = np.asarray(np.isfinite(raw).all(1))
        if clip.video_id in BAD_IMAGES:
            first, last = BAD_IMAGES[clip.video_id]
            known[first - 1 : last] = False
        boxes = from_xywh(raw, base=1)
        boxes[gone | ~known | ~is_box(boxes)] = np.nan
        for t in np.flatnonzero(is_box(boxes)):
            if size := _image_size(root, clip.media.image(int(t))):
                boxes[t] = clip_boxes(boxes[t], *size)
        return with_target(Annotation(boxes, known, None, raw, "xywh pixels 1-based"), referent)


def parse_meta(text: str) -> dict[str, str]:
    """`key: value` lines of a meta_info.ini; values may hold colons, and section lines are skipped."""
    pairs = (line.partition(":") for line in text.split("\n"))
    return {key.strip(): value.strip() for key, colon, value in pairs if colon and key.strip()}


def sentence(labels: dict[str, str]) -> str:
    """Labels as a short sentence: "a bear is slowly walking" (Appendix A).

    Without an adverb "a bear is walking"; without a motion, to which an adverb would belong, "a bear"; without a class
    its parent classes stand in, and "object" last. Underscores become spaces; case is the dataset's.
    """
    keys = ("object_class", "motion_class", "motion_adverb", "major_class", "root_class")
    noun, motion, adverb, major, top = (
        clean(labels.get(key, "").replace("_", " ")) for key in keys
    )
    noun = noun or major or top or "object"
    words = [article(noun), noun, *(["is", adverb, motion] if motion else [])]
    return " ".join(word for word in words if word)


def article(noun: str) -> str:
    """ "a" or "an", by sound as far as a prefix tells: an owl, an hourglass, a unicycle, a euphonium."""
    word = noun.lower()
    if word.startswith(("hour", "honest", "honor", "heir")):
        return "an"
    if word.startswith(("uni", "use", "usu", "eu", "ewe", "one")) and not word.startswith("unin"):
        return "a"
    return "an" if word[:1] in "aeiou" and word else "a"


def _base(root: DataRoot, split: str) -> str:
    """The folder of a split: the official one, or one of the full download."""
    tops = [f"{top}{full}" for top in _TOPS for full in ("", "full_data/")]
    names = [f"{top}{name}" for name in (split, f"{split}_data") for top in tops]
    there = [name for name in names if root.has(name)]
    with_sequences = (name for name in there if any(_on_disk(root, name)))
    return next(with_sequences, there[0] if there else split)


def _sequences(root: DataRoot, split: str) -> dict[str, str]:
    """Sequence -> its folder, in the order of `list.txt`, or of their numbers where there is no list."""
    base = _base(root, split)
    on_disk = dict(sorted(_on_disk(root, base)))
    if not root.has(f"{base}/list.txt"):
        return on_disk
    listed = root.read_text(f"{base}/list.txt").split()
    return {name: on_disk.get(name, f"{base}/{name}") for name in listed}


def _on_disk(root: DataRoot, base: str) -> Iterator[tuple[str, str]]:
    """(name, folder) of the sequences in the folder of a split, or one folder deeper."""
    for name in root.listdir(base):
        if _PART.fullmatch(name):
            inner = root.listdir(f"{base}/{name}")
            yield from ((one, f"{base}/{name}/{one}") for one in inner)
        elif name.startswith("GOT-10k_") and "." not in name:
            yield name, f"{base}/{name}"


def _image_size(root: DataRoot, path: str) -> tuple[int, int] | None:
    """(height, width) from the header of an image; None for one that cannot be read, which decoding will report."""
    from PIL import Image

    try:
        with Image.open(root.file(path)) as header:
            return header.height, header.width
    except (OSError, Image.DecompressionBombError):
        return None
