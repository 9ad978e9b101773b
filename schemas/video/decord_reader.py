"""decord, for files on which an index proves that it delivers the same pictures.

decord seeks by the container's key frame flags and counts packets. That is right where every key frame is a proved
place to begin, every packet is one picture, and no edit list or display matrix comes between: the short closed GOPs of
our own shards, and most plain H.264 files. It is wrong, without a word, for open GOPs, for most other containers, and
where timestamps repeat.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from schemas.video.errors import VideoError
from schemas.video.file import RGBPicture
from schemas.video.index import VideoIndex
from schemas.video.orientation import UPRIGHT

_CONTAINERS = ("mov", "matroska")


def decord_is_proved(index: VideoIndex) -> bool:
    """Whether decord delivers picture i as picture i of this video."""
    plain = index.turn == UPRIGHT and index.streams == 1 and not index.lost_head
    # Its colours differ for more bits and for fields; parameter sets that change are lost when it seeks.
    plain = plain and index.pixels == "yuv420p" and not index.interlaced and not index.in_band
    timed = bool(np.isfinite(index.times).all()) and not index.variable_rate
    known = index.container in _CONTAINERS and index.codec == "h264"
    return plain and timed and known and index.complete and index.closed


def decord_pictures(
    path: str, index: VideoIndex, wanted: Sequence[int]
) -> Iterator[tuple[int, RGBPicture]] | None:
    """(number, [H, W, 3] uint8 RGB) of the wanted pictures, ascending; None where decord is not installed or not
    proved. The iterator raises VideoError where decord fails, or counts or dates a picture differently."""
    try:
        import decord
    except ImportError:
        return None
    if not decord_is_proved(index) or not all(0 <= n < index.count for n in wanted):
        return None
    return _read(decord, path, index, sorted(set(wanted)))


def _read(
    decord: Any, path: str, index: VideoIndex, wanted: list[int]
) -> Iterator[tuple[int, RGBPicture]]:
    half_a_picture = 0.5 / (index.fps or 25.0)
    try:
        reader = decord.VideoReader(path, num_threads=1)
        if len(reader) != index.count:
            raise VideoError(f"decord counts {len(reader)} pictures, {index.count} decode")
        for number in wanted:
            start = float(reader.get_frame_timestamp(number)[0])
            if abs(start - (index.times[number] - index.times[0])) > half_a_picture:
                raise VideoError(f"decord has picture {number} at {start:.3f} s")
            yield number, reader[number].asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        # Its message holds the time of day and a path of its build: equal runs must give equal rows.
        raise VideoError("decord fails on it, PyAV does not") from error
