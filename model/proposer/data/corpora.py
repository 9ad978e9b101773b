"""A detection dataset without its classes: a compact table of images and boxes, and an account of what was left out."""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model.proposer.config import Head
from pipeline.sources.base import DataRoot
from schemas.geometry import Boxes, is_box
from schemas.records import Quarantined, Reason
from schemas.video.errors import TooLargeError, VideoError
from schemas.video.pictures import decode_picture, picture_size

FORMAT = 1
ORIENTATION = 0x0112
"""EXIF's tag."""
SAME_SHAPE = 0.02
"""An image of another size than the annotation says is the same picture, resized, if height / width agree to this."""
_ARRAYS = ("files", "sizes_n2", "starts", "boxes_m4")


class Example(NamedTuple):
    """One image of a corpus. boxes: xyxy, pixels of an image of `size` (height, width), float32."""

    path: Path
    boxes_n4: Boxes
    size: tuple[int, int]


class BoxSet(Protocol):
    """What batches are made of; `Corpus` is one. Items are numbered from 0."""

    @property
    def name(self) -> str: ...
    @property
    def head(self) -> Head: ...
    @property
    def fingerprint(self) -> str:
        """16 hex digits of which images it has and of their boxes; not of pixels."""
        ...

    def __len__(self) -> int: ...
    def key(self, index: int) -> str: ...
    def load(self, index: int) -> tuple[Image.Image, Boxes]:
        """The RGB image and its boxes in its pixels. Quarantined if it cannot be used."""
        ...


IMAGE_REASONS = (
    "duplicate_image",
    "no_boxes",
    "media_missing",
    "known_bad",
    "unsafe_path",
    "malformed_image",
)
"""Why a reader leaves out an image; all other reasons are of boxes."""


def _reasons(dropped: Mapping[str, int]) -> str:
    words = ", ".join(f"{n:,} {reason}" for reason, n in dropped.items())
    return f" (dropped: {words})" if words else ""


@dataclass(frozen=True)
class Corpus:
    """N images with M boxes, N + M numbers and N names in memory (or mapped from disk: `save`, `open`).

    files, annotations (what the table was made of): relative to `root`. sizes_n2: (height, width) as annotated, 0
    where the dataset does not say.
    starts: [N + 1], the boxes of image i are `boxes_m4[starts[i] : starts[i + 1]]`; xyxy in pixels, or, with
    `relative`, in [0, 1]. dropped, mended: what the reader left out, or changed, by reason.
    """

    name: str
    head: Head
    root: DataRoot
    files: NDArray[np.bytes_]
    sizes_n2: NDArray[np.int32]
    starts: NDArray[np.int64]
    boxes_m4: Boxes
    relative: bool
    annotations: str
    dropped: Mapping[str, int]
    mended: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def fingerprint(self) -> str:
        """As in `BoxSet`."""
        text = hashlib.sha256()
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(self, name))
            text.update(f"{name} {array.dtype} {array.shape}\n".encode())
            text.update(array.data)
        return text.hexdigest()[:16]

    @property
    def annotated(self) -> int:
        """Images that the annotations list, those included that were dropped."""
        return len(self) + sum(self.dropped.get(reason, 0) for reason in IMAGE_REASONS)

    @property
    def missing(self) -> float:
        """Of the annotated images, the share that is not there or may not be opened."""
        lost = sum(self.dropped.get(reason, 0) for reason in ("media_missing", "unsafe_path"))
        return lost / self.annotated if lost else 0.0

    def __str__(self) -> str:
        """What is kept and what was dropped, in a line."""
        lost = {name: n for name, n in self.dropped.items() if name in IMAGE_REASONS}
        boxes = {name: n for name, n in self.dropped.items() if name not in IMAGE_REASONS}
        return (
            f"{self.name}: {len(self):,} of {self.annotated:,} images{_reasons(lost)}; "
            f"{len(self.boxes_m4):,} boxes{_reasons(boxes)}"
        )

    def key(self, index: int) -> str:
        """Unique among all corpora: the corpus and the file in it."""
        return f"{self.name}/{self._file(index)}"

    def example(self, index: int) -> Example:
        """Without decoding pixels; only where the dataset does not give sizes, the image's header is read."""
        path, (height, width) = self.root.file(self._file(index)), self.sizes_n2[index].tolist()
        if not height:
            height, width = self._size(index)
        return Example(path, self._boxes(index, height, width), (height, width))

    def load(self, index: int) -> tuple[Image.Image, Boxes]:
        """RGB image, boxes in its pixels. All four datasets annotate pixels as stored, without EXIF rotation.

        Where the annotated size is another: an image whose EXIF rotation makes it fit is rotated; one of the same
        shape was resized, and its boxes are scaled. Quarantined: media_missing, media_unreadable, too_large, and
        frame_mismatch for any other size.
        """
        height, width = self.sizes_n2[index].tolist()
        data = self._read(index)
        try:
            pixels = Image.fromarray(decode_picture(data))
        except TooLargeError as error:
            raise Quarantined(Reason.TOO_LARGE, f"{self.key(index)}: {error}") from error
        except VideoError as error:
            raise Quarantined(Reason.MEDIA_UNREADABLE, f"{self.key(index)}: {error}") from error
        if height and pixels.size != (width, height):
            with Image.open(io.BytesIO(data)) as stored:
                if _turned(stored) == (width, height):
                    pixels = ImageOps.exif_transpose(_with_exif(pixels, stored))
        height, width = height or pixels.height, width or pixels.width
        if abs(pixels.height * width / (pixels.width * height) - 1) > SAME_SHAPE:
            sizes = f"{pixels.width} x {pixels.height}, annotated {width} x {height}"
            raise Quarantined(Reason.FRAME_MISMATCH, f"{self.key(index)}: {sizes}")
        scale = np.array([pixels.width / width, pixels.height / height] * 2, np.float32)
        return pixels, self._boxes(index, height, width) * scale

    def save(self, folder: str | Path) -> None:
        """Write the table, so that `open` maps it in a moment instead of reading the annotations again. It is there as
        a whole or not at all, even if several processes do this at once; what was there is replaced."""
        folder = Path(folder)
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        for name in _ARRAYS:
            np.save(part / f"{name}.npy", getattr(self, name), allow_pickle=False)
        about = {
            name: getattr(self, name)
            for name in ("name", "head", "relative", "annotations", "dropped", "mended")
        }
        about |= {"format": FORMAT, "stamp": _stamp(self.root, self.annotations)}
        (part / "corpus.json").write_text(json.dumps(about, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        try:
            part.rename(folder)
        except OSError:  # another process has just put the same there
            shutil.rmtree(part)

    @classmethod
    def open(cls, folder: str | Path, root: DataRoot) -> "Corpus":
        """A saved table over the images under `root`. Its arrays stay on disk. ValueError if it is not a whole one, or
        the annotations are others by now."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "corpus.json").read_text())
            if about.pop("format") != FORMAT:
                raise ValueError("written by other code")
            if about.pop("stamp") != _stamp(root, about["annotations"]):
                raise ValueError(f"{about['annotations']} has changed since")
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in _ARRAYS
            }
            return cls(root=root, **arrays, **about)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{folder}: not a saved corpus: {error}; read the dataset again and save it"
            ) from error

    def _file(self, index: int) -> str:
        return self.files[index].decode()

    def _read(self, index: int) -> bytes:
        try:
            return self.root.file(self._file(index)).read_bytes()
        except FileNotFoundError as error:
            raise Quarantined(Reason.MEDIA_MISSING, self.key(index)) from error
        except OSError as error:
            message = f"{self.key(index)}: {error.strerror or type(error).__name__}"
            raise Quarantined(Reason.MEDIA_UNREADABLE, message) from error

    def _size(self, index: int) -> tuple[int, int]:
        """(height, width) as stored, from the header."""
        try:
            return picture_size(self._read(index))
        except VideoError as error:
            raise Quarantined(Reason.MEDIA_UNREADABLE, f"{self.key(index)}: {error}") from error

    def _boxes(self, index: int, height: int, width: int) -> Boxes:
        boxes_n4 = np.array(self.boxes_m4[self.starts[index] : self.starts[index + 1]])
        return (
            boxes_n4 * np.array([width, height, width, height], np.float32)
            if self.relative
            else boxes_n4
        )


def _stamp(root: DataRoot, annotations: str) -> list[int]:
    about = root.file(annotations).stat()
    return [about.st_size, about.st_mtime_ns]


def _with_exif(pixels: Image.Image, stored: Image.Image) -> Image.Image:
    pixels.getexif()[ORIENTATION] = stored.getexif().get(ORIENTATION, 1)
    return pixels


def _turned(image: Image.Image) -> tuple[int, int]:
    """Size after the rotation that EXIF asks for."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (width, height)


@dataclass
class Table:
    """What a reader has read, before anything is left out. Rows of images and of boxes in any order.

    files: "" where the image is not there; ids, box_ids: which image a box is of; boxes: xyxy, NaN if malformed.
    flagged: reason -> boxes that the dataset itself says to be no single object.
    """

    annotations: str
    files: list[str]
    ids_n: NDArray[np.int64]
    sizes_n2: NDArray[np.int32]
    box_ids_m: NDArray[np.int64]
    boxes_m4: NDArray[np.float32]
    flagged: dict[str, NDArray[np.bool_]]
    dropped: Counter[str]


def tidy(table: Table, name: str, head: Head, root: DataRoot, *, relative: bool = False) -> Corpus:
    """Leave out and mend, counting by reason; images in the order of the annotation file, each box once.

    dropped, of images: duplicate_image (id used before), no_boxes (none at all, or none left); readers add
    media_missing, known_bad, unsafe_path and malformed_image. Of boxes: malformed, crowd or group_of, unknown_image,
    of_dropped_image, degenerate (no area), outside, duplicate (same box of the same image to the nearest pixel, or
    1/1000 of the frame: one object under several labels). mended: clipped (boxes that reached over the border).
    """
    dropped, mended = Counter(table.dropped), Counter[str]()
    usable = np.array([bool(file) for file in table.files], bool)
    order = np.argsort(table.ids_n, kind="stable")
    again = np.zeros(len(order), bool)
    again[order[1:]] = table.ids_n[order[1:]] == table.ids_n[order[:-1]]
    dropped["duplicate_image"] += int((again & usable).sum())
    usable &= ~again
    order = order[~again[order]]

    keep = np.ones(len(table.boxes_m4), bool)

    def leave_out(reason: str, wrong: NDArray[np.bool_]) -> None:
        dropped[reason] += int((keep & wrong).sum())
        keep[wrong] = False

    leave_out("malformed", np.asarray(~np.isfinite(table.boxes_m4).all(1)))
    for reason, flags in table.flagged.items():
        leave_out(reason, flags)
    places = np.searchsorted(table.ids_n[order], table.box_ids_m).clip(max=max(0, len(order) - 1))
    image_m = order[places] if len(order) else np.zeros(len(keep), np.int64)
    known = len(order) > 0
    leave_out(
        "unknown_image",
        np.asarray(table.ids_n[image_m] != table.box_ids_m) if known else keep.copy(),
    )
    leave_out("of_dropped_image", ~usable[image_m] if known else keep.copy())
    boxes = table.boxes_m4
    leave_out("degenerate", ~is_box(boxes))
    sizes = np.ones((len(keep), 2), np.float32)
    if known and not relative:
        sizes = table.sizes_n2[image_m].astype(np.float32)
    limits = np.concatenate([sizes[:, ::-1]] * 2, 1)
    cut = np.clip(boxes, 0, limits)
    leave_out("outside", ~is_box(cut))
    mended["clipped"] += int((keep & (cut != boxes).any(1)).sum())

    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image_m[rows], kind="stable")]
    grid = np.rint(cut[rows] * (1000 if relative else 1)).astype(np.int64)
    _, first = np.unique(np.concatenate([image_m[rows, None], grid], 1), axis=0, return_index=True)
    dropped["duplicate"] += len(rows) - len(first)
    rows = rows[np.sort(first)]

    counts = np.bincount(image_m[rows], minlength=len(usable))
    dropped["no_boxes"] += int((usable & (counts == 0)).sum())
    kept = np.flatnonzero(usable & (counts > 0))
    starts = np.concatenate([[0], np.cumsum(counts[kept])]).astype(np.int64)
    files = np.array([table.files[i].encode() for i in kept], np.bytes_)
    reasons = ({k: v for k, v in sorted(counter.items()) if v} for counter in (dropped, mended))
    boxes = cut[rows].astype(np.float32)
    return Corpus(
        name,
        head,
        root,
        files,
        table.sizes_n2[kept],
        starts,
        boxes,
        relative,
        table.annotations,
        *reasons,
    )
