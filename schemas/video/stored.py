"""The mp4 in a shard: written with a short, closed GOP and its colours stated, and read back picture by picture.

The colours are converted by OpenCV's I420 (BT.601, limited range) on the way in and on the way back.
"""

import io
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from typing import IO, Any, cast

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from numpy.typing import NDArray

from schemas.geometry import MAX_PIXELS
from schemas.video.access import access_proof
from schemas.video.container import reason_of
from schemas.video.errors import VideoError
from schemas.video.file import RGBPicture

BT601 = 6
"""Number of the colour matrix SMPTE 170M in ITU-T H.273: that of OpenCV's I420."""


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
    pictures: Iterable[RGBPicture],
    size: tuple[int, ...],
    fps: float,
    *,
    gop: int = 12,
    crf: int = 20,
) -> None:
    """The same into an open file, from pictures [H, W, 3] of `size` (H, W) that come one by one.

    OSError as the file has it: PyAV itself would lose its number.
    """
    file = _ErrorKeepingFile(target)
    try:
        _encode(cast("IO[bytes]", file), pictures, size, fps, gop, crf)
    except (OSError, FFmpegError) as error:
        if file.error is None:
            raise
        raise file.error from error


class _ErrorKeepingFile:
    """A file that keeps the error of a failed write."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        return self._keeping(self._file.write, data)

    def seek(self, *place: int) -> int:
        return self._keeping(self._file.seek, *place)  # it writes what is in the buffer

    def _keeping(self, call: Callable[..., int], *arguments: Any) -> int:
        try:
            return call(*arguments)
        except OSError as error:
            self.error = error
            raise


def _encode(
    target: IO[bytes],
    pictures: Iterable[RGBPicture],
    size: tuple[int, ...],
    fps: float,
    gop: int,
    crf: int,
) -> None:
    height, width = size
    odd_row, odd_column = height % 2, width % 2
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = height + odd_row, width + odd_column
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        state_colours(stream.codec_context)
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
            # Macroblock-tree rate control reads memory that was never written (seen: the last block of the first
            # frame, in one encode out of 300), so that equal frames would not give equal bytes.
            "x264-params": "mbtree=0:b-pyramid=none",
        }
        for picture in pictures:
            padded = np.ascontiguousarray(picture)
            if odd_row or odd_column:
                padded = np.pad(picture, ((0, odd_row), (0, odd_column), (0, 0)), mode="edge")
            # Twice as fast as libav's own conversion.
            i420 = np.asarray(cv2.cvtColor(padded, cv2.COLOR_RGB2YUV_I420), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(i420, format="yuv420p")))
        container.mux(stream.encode())


def state_colours(codec: av.VideoCodecContext) -> None:
    """Write into a stream what OpenCV's RGB to I420 makes, so that players need not guess."""
    codec.colorspace = BT601
    codec.color_range = ColorRange.MPEG
    codec.color_trc = ColorTrc.BT709
    codec.color_primaries = ColorPrimaries.BT709


def stored_pictures(
    data: bytes, wanted: Collection[int] | None = None, *, count: int | None = None
) -> Iterator[tuple[int, RGBPicture]]:
    """(number, [H, W, 3] uint8 RGB) of the wanted pictures of a stored mp4, ascending; of all if `wanted` is None.

    Each stretch from a key frame to the next is decoded as far as it must be, or not at all, and without what no other
    frame refers to. That needs no forward decode first, because the bitstream is asked: where a key frame is not a
    proved place to begin, everything is decoded from the start.

    count: pictures that there must be. VideoError (a ValueError) if there are others, if a wanted one does not come out,
    and for bytes that are no video.
    """
    with _opened_quickly(data) as (codec, packets):
        times = [packet.pts or 0 for packet in packets]
        number = {pts: n for n, pts in enumerate(sorted(times))}
        if len(number) < len(packets):
            raise VideoError("two pictures of the clip's video have one timestamp")
        if count not in (None, len(packets)):
            raise VideoError(f"the clip's video has {len(packets)} pictures, the clip {count}")
        missing = set(number.values() if wanted is None else wanted)
        for start, stop in pairwise([*_starts(codec, packets, times), len(packets)]):
            needed = missing & {number[pts] for pts in times[start:stop]}
            if needed:
                yield from _stretch(codec, packets[start:stop], number, needed)
            missing -= needed
        if missing:
            raise VideoError(f"the clip's video has no frame {min(missing)}")


def stored_key_frames(data: bytes) -> list[int]:
    """Numbers of the pictures that are cheap to get: those at which a stretch begins."""
    with _opened_quickly(data) as (_, packets):
        order = sorted(packet.pts or 0 for packet in packets)
        return sorted(order.index(packet.pts or 0) for packet in packets if packet.is_keyframe)


@contextmanager
def _opened_quickly(data: bytes) -> Iterator[tuple[av.VideoCodecContext, list[av.Packet]]]:
    """The decoder and the packets of an mp4; what libav raises meanwhile becomes VideoError.

    Without these options, opening decodes a frame to learn what the header and the decoder say anyway.
    """
    quick: dict[str, Any] = {  # PyAV's types ask for a list of str where it takes dicts
        "options": {"probesize": "32", "max_pixels": str(MAX_PIXELS)},
        "stream_options": [{"skip_frame": "all"}],
    }
    try:
        opened = av.open(io.BytesIO(data), "r", format="mp4", **quick)
    except (FFmpegError, ValueError) as error:
        raise VideoError(f"the clip's video cannot be opened: {reason_of(error)}") from error
    try:
        with opened as container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise VideoError("no video in it that can be decoded")
            stream.codec_context.thread_count = 1
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            yield stream.codec_context, packets
    except FFmpegError as error:
        raise VideoError(f"the clip's video cannot be read: {reason_of(error)}") from error


def _starts(codec: av.VideoCodecContext, packets: list[av.Packet], times: list[int]) -> list[int]:
    """Packets at which a stretch begins: the first one, and the key frames if all are proved places to begin."""
    keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    proof = access_proof(codec)
    for i in keys:
        closed = proof is not None and proof(bytes(packets[i]))
        if not closed or min(times[i:]) < times[i] or max(times[:i], default=-1) > times[i]:
            return [0]
    return keys if keys[:1] == [0] else [0]


def _stretch(
    codec: av.VideoCodecContext,
    packets: list[av.Packet],
    number: dict[int, int],
    needed: set[int],
) -> Iterator[tuple[int, RGBPicture]]:
    """The needed pictures of the packets from one key frame to the next."""
    codec.flush_buffers()
    left = set(needed)
    last = max(i for i, packet in enumerate(packets) if number[packet.pts or 0] in left)
    for packet in (*packets[: last + 1], None):
        unread = packet is not None and number[packet.pts or 0] not in left
        codec.skip_frame = "NONREF" if unread else "DEFAULT"
        for frame in codec.decode(packet):
            n = number[frame.pts or 0]
            if n in left:
                yield n, _rgb_of(frame)
                left.remove(n)
        if not left:
            return
    raise VideoError(f"the clip's video has no frame {min(left)}")


def _rgb_of(frame: av.VideoFrame) -> RGBPicture:
    if frame.height % 2 or frame.width % 2:  # of another maker: OpenCV's I420 has no odd sizes
        return np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
    i420 = frame.to_ndarray(format="yuv420p")
    return np.asarray(cv2.cvtColor(i420, cv2.COLOR_YUV2RGB_I420), np.uint8)
