"""Decode: pixels of a clip, from a video file or a folder of images, and the mp4 that goes into a shard.

decord is the default decoder, PyAV the fallback for what decord cannot open (recorded per clip). A decoder that finds
another number of frames than the annotation promises is an error, not a guess: boxes would sit on the wrong pictures.
"""

import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.base import MACHINE_ERRORS, DataRoot
from schemas.config import Config
from schemas.geometry import MAX_PIXELS
from schemas.records import Clip, Quarantined, Reason

Read = TypeVar("Read")

cv2.setNumThreads(
    1
)  # one clip per process; OpenCV's own threads gain nothing here and cost determinism


class DecodeConfig(Config):
    """max_bytes: refuse clips whose decoded frames are larger. spill_bytes: above this they live in an unlinked
    temporary file that the kernel pages, instead of in memory."""

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
    """frames: [T, H, W, 3] uint8 RGB. scale: [T, 2] (x, y) factors from each image's own pixels to `frames`; all 1
    unless the images of a folder differ in size (GOT-10k), then later ones are resized to the first."""

    frames: NDArray[np.uint8]
    scale: NDArray[np.float32]
    decoder: str
    fps: float | None
    fingerprint: Fingerprint


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
            raise Quarantined(
                Reason.MEDIA_UNREADABLE, f"{relative}: not a regular file", stage="decode"
            )
        total, newest = total + found.st_size, max(newest, found.st_mtime_ns)
    return Fingerprint(total, newest)


def media_files(clip: Clip) -> list[str]:
    """Relative paths of everything that a clip's pixels are read from."""
    if clip.media.kind == "video":
        return [clip.media.path]
    names = clip.media.names
    if names is not None and clip.source_frames and clip.source_frames[-1] >= len(names):
        raise Quarantined(
            Reason.FRAME_MISMATCH,
            f"{clip.clip_id}: needs frame {clip.source_frames[-1]} of {len(names)} images",
        )
    return [clip.media.image(i) for i in clip.source_frames]


def _allocate(clip: Clip, picture: tuple[int, ...], config: DecodeConfig) -> NDArray[np.uint8]:
    """Room for a clip of pictures of shape [H, W, 3]. Raises Quarantined(too_large) before anything is allocated."""
    height, width = picture[:2]
    if height * width > MAX_PIXELS:
        raise Quarantined(
            Reason.TOO_LARGE, f"{clip.media.path}: {width}x{height} is over {MAX_PIXELS} pixels"
        )
    shape = (len(clip), height, width, 3)
    size = int(np.prod(shape, dtype=np.int64))
    if size > config.max_bytes:
        raise Quarantined(
            Reason.TOO_LARGE, f"{clip.clip_id}: {size >> 20} MiB decoded, max_bytes allows less"
        )
    if size > config.spill_bytes:
        with tempfile.TemporaryFile() as scratch:
            return np.memmap(scratch, np.uint8, "w+", shape=shape)
    return np.empty(shape, np.uint8)


def _decode_video(root: DataRoot, clip: Clip, config: DecodeConfig) -> Decoded:
    path = root.file(clip.media.path)
    mark = fingerprint(root, clip)

    def content() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    mark.sha256 = _twice(content, root, clip.media.path)
    try:
        frames, fps, decoder = *_with_decord(str(path), clip, config), "decord"
    except (ImportError, _DecoderGaveUp) as first:
        try:
            frames, fps, decoder = *_with_pyav(str(path), clip, config), "pyav"
        except _DecoderGaveUp as second:
            # cut after the root is out: where messages end must not depend on where the data lies
            tried = [
                f"{name}: {root.words(str(error))[:200]}"
                for name, error in (("decord", first), ("pyav", second))
            ]
            why = "; ".join(tried)
            raise Quarantined(
                Reason.MEDIA_UNREADABLE, f"{clip.media.path}: {why}", stage="decode"
            ) from second
    return Decoded(frames, np.ones((len(clip), 2), np.float32), decoder, fps, mark)


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
        raise Quarantined(Reason.MEDIA_UNREADABLE, message, stage="decode") from error


class _DecoderGaveUp(Exception):
    pass


def _check_count(clip: Clip, found: int) -> None:
    if clip.frame_count is not None and abs(found - clip.frame_count) > clip.frame_tolerance:
        raise Quarantined(
            Reason.FRAME_MISMATCH,
            f"{clip.media.path}: decoded {found} frames, the annotation counts {clip.frame_count}",
            stage="decode",
        )
    if clip.source_frames[-1] >= found:
        raise Quarantined(
            Reason.FRAME_MISMATCH,
            f"{clip.media.path}: the clip needs frame {clip.source_frames[-1]}, the video has {found}",
            stage="decode",
        )


def _with_decord(
    path: str, clip: Clip, config: DecodeConfig
) -> tuple[NDArray[np.uint8], float | None]:
    import decord

    try:
        reader = decord.VideoReader(path, num_threads=1)
        _check_count(clip, len(reader))
        first = reader[clip.start].asnumpy()
        frames = _allocate(clip, first.shape, config)
        for i, source_frame in enumerate(clip.source_frames):
            frames[i] = first if i == 0 else reader[source_frame].asnumpy()
        return frames, float(reader.get_avg_fps())
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as error:
        raise _DecoderGaveUp(str(error).strip().splitlines()[0] or type(error).__name__) from error


def _with_pyav(
    path: str, clip: Clip, config: DecodeConfig
) -> tuple[NDArray[np.uint8], float | None]:
    import av

    wanted, frames, done = clip.source_frames, None, 0
    found = 0
    try:
        with av.open(path) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise _DecoderGaveUp("no video stream")
            stream.thread_count = 1
            for found, frame in enumerate(container.decode(stream), start=1):
                if found - 1 in wanted:
                    picture = frame.to_ndarray(format="rgb24")
                    if frames is None:
                        frames = _allocate(clip, picture.shape, config)
                    frames[done] = picture
                    done += 1
            fps = float(stream.average_rate) if stream.average_rate else None
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise _DecoderGaveUp(f"{type(error).__name__}: {error}") from error
    if found == 0:
        raise _DecoderGaveUp("no frame could be decoded")
    _check_count(clip, found)
    assert frames is not None
    return frames, fps


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
            picture = np.asarray(
                cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8
            )
        frames[i] = picture
    if frames is None:
        raise Quarantined(
            Reason.FRAME_MISMATCH, f"{clip.clip_id}: the clip has no frames", stage="decode"
        )
    mark.sha256 = content.hexdigest()
    return Decoded(frames, scale, "opencv", clip.fps, mark)


def _decode_image(data: bytes, relative: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(
            io.BytesIO(data)
        ) as header:  # the header alone: sizes are checked before pixels are allocated
            width, height = header.size
        if height * width > MAX_PIXELS:
            raise Quarantined(
                Reason.TOO_LARGE, f"{relative}: {width}x{height} is over {MAX_PIXELS} pixels"
            )
        picture = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        cv2.error,
    ) as error:
        raise Quarantined(
            Reason.MEDIA_UNREADABLE, f"{relative}: {error}", stage="decode"
        ) from error
    if picture is None:
        raise Quarantined(
            Reason.MEDIA_UNREADABLE, f"{relative}: not a complete image", stage="decode"
        )
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def encode_mp4(frames: NDArray[np.uint8], fps: float, *, gop: int = 12, crf: int = 20) -> bytes:
    """[T, H, W, 3] RGB -> h264 mp4 with a key frame every `gop` frames, so that a loader can seek cheaply.

    Odd sizes are padded by one replicated pixel at the right or bottom (boxes do not move). One thread, no
    timestamps of today: the same frames give the same bytes.
    """
    buffer = io.BytesIO()
    write_mp4(buffer, frames, frames.shape[1:3], fps, gop=gop, crf=crf)
    return buffer.getvalue()


def write_mp4(
    target: IO[bytes],
    pictures: Iterable[NDArray[np.uint8]],
    size: tuple[int, ...],
    fps: float,
    *,
    gop: int = 12,
    crf: int = 20,
) -> None:
    """The same into an open file, from pictures [H, W, 3] of `size` (H, W) that come one by one."""
    import av

    height, width = size
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = (
            width + width % 2,
            height + height % 2,
            "yuv420p",
        )
        stream.thread_count = 1
        stream.options = {
            "preset": "veryfast",
            "crf": str(crf),
            "g": str(gop),
            "keyint_min": str(gop),
            "sc_threshold": "0",
            # Three frames of four are read by no other: a loader that wants frame 9 skips them, and they are smaller.
            "bf": "3",
            "b_strategy": "0",
            "flags": "+cgop",
            # Macroblock-tree rate control reads memory that nobody has written (seen: the last block of the first
            # frame, in one encode out of 300), so that equal frames would not give equal bytes.
            "x264-params": "mbtree=0:b-pyramid=none",
        }
        for picture in pictures:
            padded = (
                np.pad(picture, pad, mode="edge")
                if pad[0][1] or pad[1][1]
                else np.ascontiguousarray(picture)
            )
            yuv = np.asarray(
                cv2.cvtColor(padded, cv2.COLOR_RGB2YUV_I420), np.uint8
            )  # twice as fast as FFmpeg's own conversion
            for packet in stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def encode_jpeg(picture: NDArray[np.uint8], quality: int = 92) -> bytes:
    """[H, W, 3] RGB -> JPEG."""
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ValueError(f"cannot encode a picture of shape {picture.shape} as JPEG")
    return data.tobytes()
