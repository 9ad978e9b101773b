"""Decode: the pixels of a clip, from a video file or a folder of images.

`schemas.video.file` defines picture i, for all readers. Here a clip is compared with what its
annotation promises: another number of pictures, a lost head or too much damage is a reason to refuse it, because boxes
would lie on the wrong pictures.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.base import MACHINE_ERRORS, DataRoot
from schemas.config import Config
from schemas.geometry import MAX_PIXELS
from schemas.records import Clip, Quarantined, Reason
from schemas.video.decord_reader import decord_pictures
from schemas.video.errors import TooLargeError, VideoError
from schemas.video.file import RGBPicture, VideoFile
from schemas.video.index import VideoIndex
from schemas.video.pictures import decode_picture

Read = TypeVar("Read")
MANY = 10_000
"""Frames of a clip from which on the video's pictures are counted before any is kept."""


class DecodeConfig(Config):
    """How the pixels of a clip are read.

    decoder: "pyav" reads every file. "decord" is used for files that an earlier clip has read, and whose index proves
        that decord delivers the same pictures (`schemas.video.decord_reader`); PyAV reads the others.
    max_concealed: refuse a clip if the decoder had to cover up damage in a larger share of its pictures.
    max_bytes: refuse clips whose decoded frames are larger.
    spill_bytes: above this they live in an unlinked temporary file that the kernel pages, instead of in memory.
    """

    decoder: Literal["pyav", "decord"] = "pyav"
    max_concealed: float = 0.02
    max_bytes: int = 32 << 30
    spill_bytes: int = 1 << 30


@dataclass(slots=True)
class Fingerprint:
    """What tells whether a clip's source file has changed: bytes, newest mtime, and the sha256 of what was read."""

    size: int
    mtime_ns: int
    sha256: str = ""


@dataclass(slots=True)
class Decoded:
    """A clip's pixels.

    frames: [T, H, W, 3] uint8 RGB. scale: [T, 2] (x, y) factors from each image's own pixels to `frames`; all 1
    unless the images of a folder differ in size (GOT-10k), then later ones are resized to the first.
    times: [T] seconds on the video's clock, NaN where it has none. concealed: pictures with damage that was covered up.
    index: what a forward decode of the video has shown; None for images.
    """

    frames: NDArray[np.uint8]
    scale: NDArray[np.float32]
    decoder: str
    fps: float | None
    fingerprint: Fingerprint
    times: NDArray[np.float64]
    concealed: int = 0
    index: VideoIndex | None = None


def decode(root: DataRoot, clip: Clip, config: DecodeConfig) -> Decoded:
    """All frames of a clip. Raises Quarantined(media_missing | media_unreadable | frame_mismatch | too_large)."""
    if clip.media.kind == "video":
        return _decode_video(root, clip, config)
    return _decode_images(root, clip, config)


def fingerprint(root: DataRoot, clip: Clip) -> Fingerprint:
    """Size and mtime of a clip's media, without reading them. Raises Quarantined(media_missing | media_unreadable)."""
    total, newest = 0, 0
    for relative in media_files(clip):
        try:
            found = os.stat(root.file(relative))
        except OSError as error:
            raise Quarantined(Reason.MEDIA_MISSING, root.blame(relative, error)) from error
        if not stat.S_ISREG(found.st_mode):  # a pipe would keep a reader waiting for ever
            raise _unreadable(f"{relative}: not a regular file")
        total, newest = total + found.st_size, max(newest, found.st_mtime_ns)
    return Fingerprint(total, newest)


def media_files(clip: Clip) -> list[str]:
    """Relative paths of everything that a clip's pixels are read from."""
    if clip.media.kind == "video":
        return [clip.media.path]
    names = clip.media.names
    if names is not None and clip.source_frames and clip.source_frames[-1] >= len(names):
        needed = f"needs frame {clip.source_frames[-1]} of {len(names)} images"
        raise Quarantined(Reason.FRAME_MISMATCH, f"{clip.clip_id}: {needed}")
    return [clip.media.image(i) for i in clip.source_frames]


# --- video files -----------------------------------------------------------------------------------------------------


def _decode_video(root: DataRoot, clip: Clip, config: DecodeConfig) -> Decoded:
    path, relative = root.file(clip.media.path), clip.media.path
    mark = fingerprint(root, clip)

    def content() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    mark.sha256 = _twice(content, root, relative)
    try:
        with VideoFile(path) as video:
            return _read_clip(video, str(path), clip, config, mark)
    except TooLargeError as error:
        raise Quarantined(Reason.TOO_LARGE, f"{relative}: {error}") from error
    except VideoError as error:
        raise _unreadable(f"{relative}: {root.words(str(error))[:400]}") from error


def _read_clip(
    video: VideoFile, path: str, clip: Clip, config: DecodeConfig, mark: Fingerprint
) -> Decoded:
    if len(clip) > MANY:  # more than the video may have: ask before there is room for so many
        video.index()
    if video.known_index is not None:
        _check_index(clip, video.known_index, config)
    pictures, decoder = _chosen_decoder(video, path, clip, config)
    frames = _collect(pictures, clip, config)
    index = video.index()
    concealed = _check_index(clip, index, config)
    if frames is None:
        raise Quarantined(
            Reason.FRAME_MISMATCH, f"{clip.clip_id}: the clip has no frames", stage="decode"
        )
    return Decoded(
        frames=frames,
        scale=np.ones((len(clip), 2), np.float32),
        decoder=decoder,
        fps=index.fps,
        fingerprint=mark,
        times=index.times[list(clip.source_frames)],
        concealed=concealed,
        index=index,
    )


def _chosen_decoder(
    video: VideoFile, path: str, clip: Clip, config: DecodeConfig
) -> tuple[Iterable[tuple[int, RGBPicture]], str]:
    """The pictures of the clip by number, ascending, and the name of the decoder that gives them."""
    index = video.known_index
    if config.decoder == "decord" and index is not None:
        pictures = decord_pictures(path, index, clip.source_frames)
        if pictures is not None:
            return pictures, "decord"
    available = range(index.count) if index is not None else None
    wanted = [i for i in clip.source_frames if available is None or i in available]
    return _within(video, wanted), "pyav"


def _within(video: VideoFile, wanted: list[int]) -> Iterator[tuple[int, RGBPicture]]:
    """The wanted pictures, as far as the video has them: `_check_index` says better what is missing."""
    try:
        yield from video.pictures(wanted)
    except VideoError:
        index = video.known_index
        if index is None or not wanted or wanted[-1] < index.count:
            raise


def _collect(
    pictures: Iterable[tuple[int, RGBPicture]], clip: Clip, config: DecodeConfig
) -> NDArray[np.uint8] | None:
    """The pictures in the clip's own order, in one array; None if none came."""
    frames: NDArray[np.uint8] | None = None
    places: dict[int, list[int]] = {}
    for place, source_frame in enumerate(clip.source_frames):
        places.setdefault(source_frame, []).append(place)
    for number, picture in pictures:
        if frames is None:
            frames = _allocate(clip, picture.shape, config)
        for place in places[number]:
            frames[place] = picture
    return frames


def _check_index(clip: Clip, index: VideoIndex, config: DecodeConfig) -> int:
    """Compare a video with its annotation. Returns the concealed pictures of the clip; Quarantined if it does not fit.

    `frame_tolerance` is for the tail: pictures that are missing before it would move every later box.
    """
    where, found, stated = clip.media.path, index.count, clip.frame_count
    if stated is not None and abs(found - stated) > clip.frame_tolerance:
        raise _mismatch(f"{where}: {found} pictures decode, the annotation counts {stated}")
    elsewhere = index.missing_before_the_tail()
    if stated is not None and found < stated and elsewhere:
        raise _mismatch(
            f"{where}: {found} of {stated} annotated pictures decode, and {elsewhere}: "
            "later ones would be numbered wrong"
        )
    frames = clip.source_frames
    last = frames[-1] if isinstance(frames, range) else max(frames)
    if last >= found:
        raise _mismatch(f"{where}: the clip needs frame {last}, the video has {found}")
    wanted = set(frames)
    concealed = len(wanted.intersection(index.concealed))
    if concealed > config.max_concealed * len(wanted):
        share = f"{concealed} of the clip's {len(wanted)} pictures"
        raise _unreadable(f"{where}: {share} are damaged, max_concealed allows less")
    return concealed


def _mismatch(message: str) -> Quarantined:
    return Quarantined(Reason.FRAME_MISMATCH, message, stage="decode")


def _unreadable(message: str) -> Quarantined:
    return Quarantined(Reason.MEDIA_UNREADABLE, message, stage="decode")


def _allocate(clip: Clip, picture: tuple[int, ...], config: DecodeConfig) -> NDArray[np.uint8]:
    """Room for a clip of pictures of shape [H, W, 3]. Raises Quarantined(too_large) before anything is allocated."""
    height, width = picture[:2]
    if height * width > MAX_PIXELS:
        size = f"{width}x{height} is over {MAX_PIXELS} pixels"
        raise Quarantined(Reason.TOO_LARGE, f"{clip.media.path}: {size}")
    shape = (len(clip), height, width, 3)
    size_bytes = int(np.prod(shape, dtype=np.int64))
    if size_bytes > config.max_bytes:
        message = f"{clip.clip_id}: {size_bytes >> 20} MiB decoded, max_bytes allows less"
        raise Quarantined(Reason.TOO_LARGE, message)
    if size_bytes > config.spill_bytes:
        with tempfile.TemporaryFile() as scratch:
            return np.memmap(scratch, np.uint8, "w+", shape=shape)
    return np.empty(shape, np.uint8)


def _twice(read: Callable[[], Read], root: DataRoot, relative: str) -> Read:
    """What `read` returns, the second time if the disk fails once. Raises Quarantined(media_unreadable) for a file that
    cannot be read while others can, else the OSError: behind a lost mount every clip would be dropped."""
    try:
        return read()
    except OSError as first:
        if first.errno not in MACHINE_ERRORS:
            raise
    try:
        return read()
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        message = f"{root.blame(relative, error)} (twice; the file after it can be read)"
        raise _unreadable(message) from error


# --- folders of images -----------------------------------------------------------------------------------------------


def _decode_images(root: DataRoot, clip: Clip, config: DecodeConfig) -> Decoded:
    mark, content = fingerprint(root, clip), hashlib.sha256()
    frames, scale = None, np.ones((len(clip), 2), np.float32)
    for i, relative in enumerate(media_files(clip)):
        data = _twice(root.file(relative).read_bytes, root, relative)
        content.update(hashlib.sha256(data).digest())
        picture = _decode_image(data, relative)
        if frames is None:
            frames = _allocate(clip, picture.shape, config)
        height, width = frames.shape[1:3]
        if picture.shape[:2] != (height, width):
            scale[i] = width / picture.shape[1], height / picture.shape[0]
            smaller = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            picture = np.asarray(smaller, np.uint8)
        frames[i] = picture
    if frames is None:
        raise _mismatch(f"{clip.clip_id}: the clip has no frames")
    mark.sha256 = content.hexdigest()
    unknown = np.full(len(clip), np.nan)
    return Decoded(frames, scale, "opencv", clip.fps, mark, unknown)


def _decode_image(data: bytes, relative: str) -> RGBPicture:
    try:
        return decode_picture(data)
    except TooLargeError as error:
        raise Quarantined(Reason.TOO_LARGE, f"{relative}: {error}") from error
    except VideoError as error:
        raise _unreadable(f"{relative}: {error}") from error
