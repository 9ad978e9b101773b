"""What a dataset source is: a plan (cheap, lazy, no pixels) and an annotation on demand.

A source is one file. `plan` walks the official layout and yields clips with pointers to their annotations, or
rejected rows; `annotate` follows one pointer. All conversions (bases, box conventions, absent flags, RLE) are in the
source, and nowhere after it.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.sources.json_text import json_members, loads_text, no_text
from schemas.config import Config
from schemas.geometry import RLE, rle_area, rle_check
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
from schemas.video.order import PICTURE_SUFFIXES


class Rules(Config):
    """What is done to a source's clips (paper, Appendix A). Each source file states its own and where it comes from.

    boxes: where the track comes from.
        "tracked": find the target in a key frame, track through the clip, compare with the annotation;
        "annotation": keep the dataset's boxes;
        "masks": boxes around the dataset's masks.
    start: where a tracked clip's first box comes from: "detector" asks the preset's detector for the expression,
        "annotation" takes the annotated box (A2D-Sentences).
    key_frames: annotated frames that the detector looks at; the best box of them starts the track.
    fill_gaps: longest run of frames without annotation, between two annotated ones, that the tracker bridges
        (0 = none). Only for boxes that are not tracked anyway.
    masks: "segment" makes masks from the track, "annotation" keeps the dataset's, "none" makes none.
    boxes_from_masks: after segmenting, the track's boxes become those around the masks (A2D-Sentences).
    min_iou: tracked frames below this IoU with the annotation are dropped; None drops none for their IoU. The paper
        gives no number. A box where the annotation says "absent" is dropped in any case.
    max_kept_frames: keep at most so many frames of a track, annotated ones first, then evenly spaced; None keeps all.
    """

    boxes: Literal["tracked", "annotation", "masks"] = "tracked"
    start: Literal["detector", "annotation"] = "detector"
    key_frames: int = 1
    fill_gaps: int = 0
    masks: Literal["segment", "annotation", "none"] = "segment"
    boxes_from_masks: bool = False
    min_iou: float | None = 0.5
    max_kept_frames: int | None = None


class SampleRules(Config):
    """Which samples are good enough; the others are in quarantine as `low_quality`. None switches a rule off.

    min_kept_share: least share of the frames in which the target may be (the dataset does not say that it is absent)
        that agree with the dataset. 0.2 is ours; the paper drops frames and says nothing of samples.
    min_mean_iou: least mean IoU of tracked with annotated boxes, dropped frames included. Samples of which no frame
        can be compared pass.
    max_fallback_share: largest share of a sample's masks that are fallbacks.
    """

    min_kept_share: float | None = Field(default=0.2, ge=0, le=1)
    min_mean_iou: float | None = Field(default=None, ge=0, le=1)
    max_fallback_share: float | None = Field(default=None, ge=0, le=1)


class SourceConfig(Config):
    """Base of every source's config."""

    rules: Rules = Rules()
    sample: SampleRules = SampleRules()


class Source(Protocol):
    """A dataset. `name` is its key on the command line and in every row; `splits` are its official split names.

    `sizes_vary = True` is for a dataset that changes the size of its images inside a clip and says so: boxes are then
    in the pixels of their own image. Without it a picture of another size is quarantined.
    """

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    licence: ClassVar[str]
    expected: ClassVar[str]  # the tree under the data root, shown when it is not there

    @property
    def config(self) -> SourceConfig: ...

    def available(self, root: "DataRoot") -> list[str]:
        """The splits whose annotations are under `root`, in official order."""
        ...

    def plan(self, root: "DataRoot", split: str) -> Iterator[Planned | Rejected]:
        """Clips and rejected rows of one split, in the order of the annotation files, without loading them all."""
        ...

    def annotate(self, root: "DataRoot", clip: Clip, referent: Referent) -> Annotation:
        """The annotation of one planned referent on the frames of its clip. Raises Quarantined if it is unusable."""
        ...

    def opens(self, root: "DataRoot", referent: Referent) -> list[str]:
        """Relative paths of the files that `annotate` will open for a referent.

        Names and listings of folders decide. Raises Quarantined where it is known already that `annotate` would.
        """
        ...

    def annotation_files(self, root: "DataRoot", split: str) -> list[str]:
        """Relative paths of the existing files that decide the plan: if one changes, comes or goes, so may the plan."""
        ...


MACHINE_ERRORS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ENODEV,
        errno.ENXIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""What a lost mount, a broken disk or a machine that is out of something answers, whatever file is asked for."""


_MOST_FOLDERS = 4096  # that a DataRoot remembers


class DataRoot:
    """A dataset's folder, and the only way to its files: nothing that an annotation names is opened outside it.

    follow_links: allow symbolic links inside the root that lead out of it (your own, for a dataset spread over disks).
    """

    def __init__(self, path: str | os.PathLike, *, follow_links: bool = False):
        self.path = Path(path).resolve()
        self.follow_links = follow_links
        self._folders: dict[str, str] = {}

    def file(self, relative: str) -> Path:
        """The absolute path of `relative`, which may come from an annotation. Quarantined if it leaves the root."""
        pure = PurePosixPath(relative)
        if not relative or "\0" in relative or pure.is_absolute() or ".." in pure.parts:
            raise Quarantined(
                Reason.UNSAFE_PATH, f"path {relative!r:.200} is not inside the data root"
            )
        path = self.path / pure
        if not self.follow_links:
            try:
                inside = path.resolve().is_relative_to(self.path)
            except (OSError, RuntimeError) as error:  # link loops, names too long
                raise Quarantined(
                    Reason.UNSAFE_PATH,
                    self.words(f"path {relative!r:.200} cannot be resolved: {error}"),
                ) from error
            if not inside:
                raise Quarantined(
                    Reason.UNSAFE_PATH,
                    f"{relative!r:.200} is behind a link that leaves the data root; "
                    "if the link is yours, use --follow-links",
                )
        return path

    def regular(self, relative: str) -> Path:
        """`file` of what is there and is a file. OSError for all else: opening a pipe would wait for ever."""
        path = self.file(relative)
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return path

    def blame(self, relative: str, error: OSError) -> str:
        """The words for a file that cannot be read, for a quarantine row. Raises the error itself if the machine is to
        blame, not the file: the next file of the same folder cannot be read either, or there is none."""
        if error.errno in MACHINE_ERRORS and not self._reads_on(relative):
            raise error
        return f"{relative}: {error.strerror or error}"

    def _reads_on(self, relative: str) -> bool:
        """Whether the file after `relative` in its folder (after the last one: the first) can be read."""
        folder, _, own = relative.rpartition("/")
        names = self.listdir(folder or ".")
        for name in [n for n in names if n > own] + [n for n in names if n < own]:
            try:
                path = self.file(f"{folder}/{name}" if folder else name)
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    return bool(file.read(1))
            except (OSError, Quarantined):
                return False
        return False

    def words(self, message: str) -> str:
        """An error message without what differs between machines and processes (this folder's path, addresses in
        memory), so that the same data give the same quarantine rows."""
        return re.sub(r" ?@? 0x[0-9a-f]{6,}", "", message.replace(f"{self.path}/", ""))

    def has(self, relative: str) -> bool:
        """Whether a file or folder of that name is inside the root."""
        return self.stat(relative) is not None

    def why_not(self, relative: str) -> Quarantined | None:
        """Why `relative` cannot be opened as a file, as far as `stat` shows; None for a file that is there.

        The reason is unsafe_path, or annotation_missing for what is not there or is no file.
        """
        found = self.stat(relative)
        if found is not None and stat.S_ISREG(found.st_mode):
            return None
        try:
            self.regular(relative)
        except Quarantined as problem:
            return problem
        except OSError as error:
            words = f"{relative}: {error.strerror or error}"
            return Quarantined(Reason.ANNOTATION_MISSING, words)
        return None

    def stat(self, relative: str) -> os.stat_result | None:
        """The `stat` of what is inside the root, links followed; None for all else.

        Plans ask for a million files. So a folder is resolved once, and a file in it takes one `lstat`.
        """
        folder, _, name = relative.rpartition("/")
        try:
            if name in ("", ".", ".."):
                return self.file(relative).stat()
            found = os.lstat(f"{self._resolved(folder)}/{name}")
            is_link = stat.S_ISLNK(found.st_mode)
            return self.file(relative).stat() if is_link else found
        except (Quarantined, OSError, ValueError):  # the last for a name with a zero byte
            return None

    def _resolved(self, folder: str) -> str:
        """The absolute path of a folder that may be looked into. Quarantined as `file`."""
        known = self._folders.get(folder)
        if known is None:
            if len(self._folders) >= _MOST_FOLDERS:
                self._folders.clear()
            known = self._folders[folder] = str(self.file(folder) if folder else self.path)
        return known

    def listdir(self, relative: str) -> list[str]:
        """Sorted names in a folder, without hidden ones; none where there is no such folder."""
        try:
            names = os.listdir(self.file(relative))
        except (Quarantined, OSError):
            return []
        return sorted(_spelt(name) for name in names if not is_hidden(name))

    def walk(self, *suffixes: str) -> Iterator[str]:
        """Relative paths of all files with one of the suffixes (lower case, with dot), in sorted order.

        Hidden files and folders are left out, and so are folders behind links that may not be followed.
        """
        seen: set[tuple[int, int]] = (
            set()
        )  # with follow_links, links up the tree would make it endless
        for folder, folders, names in os.walk(self.path, followlinks=self.follow_links):
            place = os.stat(folder)
            if (place.st_dev, place.st_ino) in seen:
                folders.clear()
                continue
            seen.add((place.st_dev, place.st_ino))
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                if name.lower().endswith(suffixes) and not is_hidden(name):
                    yield _spelt((Path(folder) / name).relative_to(self.path).as_posix())

    def read_bytes(self, relative: str, offset: int = 0, size: int = -1) -> bytes:
        """A byte range of a file. A file that is not there is quarantined as annotation_missing."""
        try:
            with self.regular(relative).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise Quarantined(Reason.ANNOTATION_MISSING, self.blame(relative, error)) from error

    def read_text(self, relative: str) -> str:
        """A UTF-8 text file; bytes that are not UTF-8 become U+FFFD, so that one bad caption loses nothing else.
        Quarantined(annotation_invalid) for a file that is something else as a whole."""
        data = self.read_bytes(relative)
        if other := no_text(data):
            raise Quarantined(Reason.ANNOTATION_INVALID, f"{relative}: not a text file but {other}")
        return data.decode("utf-8-sig", "replace")

    def read_json(self, relative: str, offset: int = 0, size: int = -1) -> object:
        """JSON of a file or of a byte range of it."""
        data = self.read_bytes(relative, offset, size)
        try:
            return loads_text(data)
        except (ValueError, RecursionError) as error:
            raise Quarantined(
                Reason.ANNOTATION_INVALID, f"{relative}: not JSON: {error}"
            ) from error

    def json_members(self, relative: str) -> Iterator[tuple[str, int, int]]:
        """(key, offset, size in bytes) of each value of a file that is one JSON object, without keeping the values.

        Datasets put whole splits into one object (MeViS masks, HC-STVG tubes); with the byte range a worker reads
        only its own clip's part. One pass at the speed of the C parser.
        """
        start = self.read_bytes(relative, 0, 1024)
        if start and (other := no_text(start)):
            raise Quarantined(Reason.ANNOTATION_INVALID, f"{relative}: not JSON but {other}")
        return json_members(self.file(relative), shown=relative)


def is_hidden(name: str) -> bool:
    """Whether a name on the disk is a hidden one, such as `._x.jpg` and `.DS_Store` of macOS: never data."""
    return name.startswith(".")


def _spelt(name: str) -> str:
    """A name from the disk as text for tables: bytes that are not UTF-8 become U+FFFD, which finds nothing."""
    return os.fsencode(name).decode("utf-8", "replace")


def clip_key(*parts: object) -> str:
    """A readable, stable id out of names: lower case, everything outside [a-z0-9_-] as `_`.

    Two names that would collide ("A-1", "a-1", "a.1") get a suffix from a hash of the exact text.
    """
    exact = "-".join(str(p) for p in parts)
    plain = "".join(
        c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in exact.lower()
    )[:80]
    if plain == exact:
        return plain
    return f"{plain}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}"


# --- what several sources need ---------------------------------------------------------------------------------------


def locate(root: DataRoot, folders: Sequence[str], probes: Sequence[str]) -> str:
    """Where the official tree begins: the first of `folders` ("" is the root itself, others end in a slash) that holds
    one of `probes`, "" if none does. So a root given one folder too high or too low still works."""
    return next((f for f in folders if any(root.has(f + probe) for probe in probes)), "")


def list_file(root: DataRoot, candidates: Sequence[str]) -> str | None:
    """As `first_of`, for a file that decides splits: ValueError where one is there that cannot be taken for it.

    That is a link that may not be followed, and a name in other letters. Without the list, test sequences could be
    planned as others.
    """
    for candidate in candidates:
        if root.has(candidate):
            return candidate
        if os.path.lexists(root.path / candidate):
            raise ValueError(
                f"{candidate} under {root.path} is a link that is not followed; if it is yours, use --follow-links"
            )
        folder, _, name = candidate.rpartition("/")
        for other in root.listdir(folder or "."):
            if other.lower() == name.lower():
                raise ValueError(f"{folder}/{other} under {root.path}: rename it to {name}")
    return None


def first_of(root: DataRoot, candidates: Sequence[str]) -> str | None:
    """The first of several official spellings of a path that exists."""
    return next((c for c in candidates if root.has(c)), None)


def need_split(source: Source, root: DataRoot, split: str) -> None:
    """ValueError, with what is there and what to try, unless `split` can be planned from `root`."""
    if split not in (found := source.available(root)):
        from pipeline.sources.hints import advice

        has = f"found only {', '.join(found)}" if found else "found no annotations"
        raise ValueError(
            f"{source.name}: no split {split!r} under {root.path}: {has}. Expected:\n{source.expected}\n"
            f"{advice(source, root, split)}"
        )


def clean(text: str) -> str:
    """A caption with its white space normalised and nothing else changed."""
    return " ".join(text.split())


def caption_of(text: object, missing: str) -> str:
    """A caption after `clean`. Raises Quarantined: malformed_row with the words `missing` for none, and for bytes that
    are no UTF-8, which reading has replaced by U+FFFD."""
    caption = clean(text) if isinstance(text, str) else ""
    if not caption:
        raise malformed(missing)
    if "\ufffd" in caption:
        raise malformed(f"{caption!r:.200} is not UTF-8 text: write the file in UTF-8")
    return caption


def with_found_suffix(root: DataRoot, media: Media, frame: int) -> Media:
    """`media` with the file name suffix of its pictures on the disk, where `frame` has another than the official one."""
    if not root.has(media.path) or root.has(media.image(frame)):
        return media
    official = media.image(frame).rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(official)
    names = root.listdir(media.path)
    found = [name for name in names if is_picture_of(name, stem)]
    if not found:
        return media
    own = os.path.splitext(found[0])[1]
    official_names = sum(name.endswith(suffix) for name in names)
    if official_names > sum(name.endswith(own) for name in names):
        return media  # one picture among many has another suffix: that one is missing
    if media.names is None:
        return replace(media, pattern=media.pattern.removesuffix(suffix) + own)
    return replace(media, names=tuple(name.removesuffix(suffix) + own for name in media.names))


def is_picture_of(name: str, stem: str) -> bool:
    """Whether a file name is `stem` with the suffix of a picture, in any case."""
    own, suffix = os.path.splitext(name)
    return own == stem and suffix.lower() in PICTURE_SUFFIXES


def countable(value: object) -> TypeGuard[int]:
    """Whether a value of an annotation is a number of frames or pixels: an integer from 1 to a billion. Beyond that
    sizes would not fit the machine's integers, whatever else is checked."""
    return type(value) is int and 0 < value <= 10**9


def decimal(text: str) -> int | None:
    """The number that up to 18 decimal digits spell, None for all else (Python refuses thousands of them)."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def malformed(message: str) -> Quarantined:
    """For a row that cannot be read; `plan` turns it into a Rejected."""
    return Quarantined(Reason.MALFORMED_ROW, message)


def invalid(message: str) -> Quarantined:
    """For an annotation that was planned and turns out to be unusable."""
    return Quarantined(Reason.ANNOTATION_INVALID, message)


def box_rows(rows: object, where: str) -> NDArray[np.float64]:
    """Lists of four numbers (or of their texts) -> [N, 4], unconverted. Raises Quarantined(annotation_invalid)."""
    try:
        boxes_n4 = np.array(rows, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise invalid(f"{where}: boxes are not rows of four numbers: {error}") from error
    if boxes_n4.ndim != 2 or boxes_n4.shape[1] != 4:
        raise invalid(f"{where}: boxes are not rows of four numbers: shape {boxes_n4.shape}")
    # boxes are kept as float32: what that cannot hold is infinite, and no box
    return np.where(
        np.abs(boxes_n4) > np.finfo(np.float32).max, np.copysign(np.inf, boxes_n4), boxes_n4
    )


def box_lines(text: str, where: str) -> NDArray[np.float64]:
    """Lines `a,b,c,d` (commas or white space; blank lines skipped) -> [N, 4], unconverted."""
    return box_rows(
        [line.replace(",", " ").split() for line in text.split("\n") if line.strip()], where
    )


def digits(data: bytes, where: str, highest: int = 1) -> NDArray[np.uint8]:
    """Labels of one digit each, separated by commas or white space (LaSOT and GOT-10k flags) -> [N] uint8."""
    codes = np.frombuffer(data, np.uint8)
    label = (codes >= ord("0")) & (codes <= ord("0") + highest)
    if (
        not (label | np.isin(codes, np.frombuffer(b", \t\r\n", np.uint8))).all()
        or (label[1:] & label[:-1]).any()
    ):
        raise invalid(f"{where}: expected labels 0..{highest} separated by commas or line ends")
    return codes[label] - ord("0")


def checked_mask(rle: object, where: str, size: tuple[int, int] | None = None) -> RLE | None:
    """An annotation's RLE after `rle_check`, None if it has no foreground. Raises Quarantined(annotation_invalid)."""
    try:
        mask = rle_check(rle, size)
    except ValueError as error:
        raise invalid(f"{where}: {error}") from error
    return mask if rle_area(mask) else None


def with_target(annotation: Annotation, referent: Referent) -> Annotation:
    """The annotation, or Quarantined(no_target) if it has a usable box in no frame of the clip."""
    if not annotation.visible.any():
        raise Quarantined(
            Reason.NO_TARGET, f"{referent.referent_id}: no usable box in any frame of the clip"
        )
    return annotation


class LastJSON:
    """The last JSON file that was read, and only that one: the referents of one video share a file of several MB."""

    def __init__(self) -> None:
        self._key: tuple = ()
        self._value: object = None

    def read(self, root: DataRoot, relative: str) -> object:
        """As `DataRoot.read_json`."""
        try:
            stat = root.file(relative).stat()
        except OSError as error:
            raise Quarantined(Reason.ANNOTATION_MISSING, root.blame(relative, error)) from error
        key = (root.path, relative, stat.st_size, stat.st_mtime_ns)
        if key != self._key:
            self._key, self._value = (), None  # dropped before the next one is read
            self._value = root.read_json(relative)
            self._key = key
        return self._value


@lru_cache(maxsize=4)
def load_source(name: str, config_json: str = "") -> Source:
    """The source called `name`; `config_json` overrides its defaults (the canonical JSON of its config)."""
    from pipeline.sources import SOURCES

    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    cls: Any = SOURCES[name]
    return cls(cls.Config.model_validate_json(config_json)) if config_json else cls()
