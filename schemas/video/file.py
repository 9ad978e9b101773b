"""The pictures of a video file by number: the one decoder of curation, grounding and evaluation.

Picture i is the i-th picture, in the order of output, that one forward decode of the chosen stream delivers, with the
container's edit list and display matrix applied. The first reading is such a decode. It makes an index, which is kept
by the file's fingerprint; later readings enter in the middle where the index proves that the same pictures come out
(`schemas.video.access`), and compare the timestamps that they pass, and a checksum of what they give, with the index.
"""

import io
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Self

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from schemas.geometry import MAX_PIXELS
from schemas.video.container import FileView, open_container
from schemas.video.decoder import choose_stream, decoded_frames
from schemas.video.errors import TooLargeError, VideoError
from schemas.video.index import AccessPoint, IndexMaker, VideoIndex, sketch_of
from schemas.video.orientation import Turn, turned

RGBPicture = NDArray[np.uint8]
"""[H, W, 3]."""
RGB_MATRIX, NOT_STATED, RESERVED = 0, 2, 3
"""Numbers of colour matrices in ITU-T H.273."""
KEPT_INDEXES = 256
"""Indexes of files that a process remembers."""

_kept: OrderedDict[tuple[int, ...], VideoIndex] = OrderedDict()
_kept_lock = Lock()


class VideoFile:
    """One video stream of a file, or of bytes. Not for several threads at once.

    Methods raise VideoError (a ValueError) for what cannot be delivered, and OSError where the disk fails.
    """

    def __init__(self, source: str | Path | bytes):
        self._data = source if isinstance(source, bytes) else None
        self._file = _open(source)
        self._key = None if self._data is not None else _fingerprint(self._file)
        self._index = _recall(self._key)
        self._reformatter = VideoReformatter()
        self._opened: tuple[InputContainer, VideoStream] | None = None
        self._frames: Iterator[av.VideoFrame] | None = None
        self._next = 0
        self._may_enter = True

    def close(self) -> None:
        """Close the file. Pictures that were read stay valid."""
        self._frames = self._opened = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def known_index(self) -> VideoIndex | None:
        """The index, if one is known without decoding anything."""
        return self._index

    def index(self, most: int | None = None) -> VideoIndex:
        """The index; from a forward decode if none is known yet.

        most: stop after so many pictures. The index then describes these only, and is not kept for later readers.
        """
        if self._index is None:
            for _ in self._first_pass((), most):
                pass
        assert self._index is not None
        return self._index

    def pictures(self, wanted: Sequence[int]) -> Iterator[tuple[int, RGBPicture]]:
        """(number, [H, W, 3] uint8 RGB) of the wanted pictures in ascending order, each once.

        The first reading of a file continues to its end, since only then it is known how many pictures there are.
        VideoError for a number that the video does not have: before the first picture where an index is known, else
        after the last one.
        """
        numbers = sorted(set(wanted))
        if numbers and numbers[0] < 0:
            raise VideoError(f"picture {numbers[0]} was asked for, numbers begin at 0")
        if self._index is None:
            yield from self._first_pass(numbers)
            self._refuse_past_the_end(numbers)
            return
        self._refuse_past_the_end(numbers)
        for number in numbers:
            yield number, self.picture(number)

    def first_pictures(self, most: int, step: int = 1) -> Iterator[tuple[int, RGBPicture]]:
        """(number, [H, W, 3] uint8 RGB) of every `step`-th picture below `most`, as far as the video goes. Reads no
        further than that."""
        if self._index is None:
            yield from self._first_pass(range(0, most, step), most)
            return
        for number in range(0, min(most, self._index.count), step):
            yield number, self.picture(number)

    def picture(self, number: int) -> RGBPicture:
        """One picture, [H, W, 3] uint8 RGB. Reading on is cheap; going back decodes from the access point before."""
        self.index()
        self._refuse_past_the_end([number])
        if self._may_enter:
            try:
                found = self._read(number)
            except VideoError:
                found = None
            if found is not None:
                return found
            self._may_enter = (
                False  # what was entered is another picture: from now on from the start
            )
            self._frames = None
        found = self._read(number)
        if found is None:
            raise VideoError(f"picture {number} is another one when it is decoded again")
        return found

    def _read(self, number: int) -> RGBPicture | None:
        """A picture by going on, or from an access point; None unless it is the one of the first decode."""
        index = self.index()
        for frame in self._frames_at(number):
            here = self._next
            self._next += 1
            if here < index.count and frame.pts != index.pts[here]:
                break
            if here == number:
                same = sketch_of(frame) == index.sketches[here]
                return self._rgb(frame, index.turn) if same else None
        self._frames = None
        return None

    def _refuse_past_the_end(self, numbers: Sequence[int]) -> None:
        count = self.index().count
        if numbers and numbers[-1] >= count:
            raise VideoError(
                f"picture {numbers[-1]} was asked for, the video has {count} (0 to {count - 1})"
            )

    # --- the first reading -----------------------------------------------------------------------------------------

    def _first_pass(
        self, wanted: Sequence[int], most: int | None = None
    ) -> Iterator[tuple[int, RGBPicture]]:
        """A forward decode to the end that makes the index, and gives the wanted pictures on the way."""
        chosen = frozenset(wanted)
        with self._container() as container:
            stream = choose_stream(container)
            maker = IndexMaker(container, stream)
            for number, frame in enumerate(
                decoded_frames(container, stream, note=maker.add_packet)
            ):
                maker.add_frame(frame)
                if frame.height * frame.width > MAX_PIXELS:
                    raise TooLargeError(f"{frame.width}x{frame.height} is over {MAX_PIXELS} pixels")
                if number in chosen:
                    yield number, self._rgb(frame, maker.turn)
                if number + 1 == most:
                    break
            self._index = maker.finish(complete=most is None or maker.count < most)
        if self._index.complete:
            _remember(self._key, self._index)

    # --- later readings --------------------------------------------------------------------------------------------

    def _frames_at(self, number: int) -> Iterator[av.VideoFrame]:
        """The running decode if it stands at or before `number` and no access point is nearer, else a new one."""
        point = self.index().before(number) if self._may_enter else None
        behind = self._frames is None or number < self._next
        if self._frames is None or behind or (point and point.picture > self._next):
            self._frames = None  # ends the running decode before another begins
            self._frames = self._enter(point) if point else self._from_start()
        return self._frames

    def _container(self) -> InputContainer:
        """A container with a place in the file of its own, so that two may be read in turns."""
        if self._data is not None:
            return open_container(io.BytesIO(self._data))
        if _fingerprint(self._file) != self._key:
            raise VideoError("the file has changed since it was opened")
        return open_container(FileView(self._file.fileno()))

    def _from_start(self) -> Iterator[av.VideoFrame]:
        container = self._container()
        self._opened = container, choose_stream(container)
        self._next = 0
        return decoded_frames(*self._opened)

    def _enter(self, point: AccessPoint) -> Iterator[av.VideoFrame]:
        """Frames from an access point on; from the start if the demuxer does not lead there, now and later."""
        if self._opened is None:
            container = self._container()
            self._opened = container, choose_stream(container)
        frames = decoded_frames(*self._opened, start=point)
        first = next(frames, None)
        if first is None or first.pts != point.pts:
            self._may_enter = False
            return self._from_start()
        self._next = point.picture
        return chain([first], frames)

    def _rgb(self, frame: av.VideoFrame, turn: Turn) -> RGBPicture:
        """[H, W, 3] as shown. Matrix and range are the frame's own; BT.601 and limited where it states none. Alpha is
        dropped, fields stay woven, 10 and more bits become 8, pixels are not stretched by their aspect."""
        if frame.colorspace == RGB_MATRIX and not frame.format.is_rgb:
            raise VideoError("it states the colour matrix of RGB for pixels that are not RGB")
        if frame.colorspace == RESERVED:  # some encoders write it for "not stated"
            frame.colorspace = NOT_STATED
        try:
            rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
            return turned(np.ascontiguousarray(rgb.to_ndarray()), turn)
        except (FFmpegError, ValueError) as error:
            matrix = int(frame.colorspace)
            raise VideoError(
                f"its colours (matrix {matrix} of ITU-T H.273) cannot be converted to RGB"
            ) from error


def _open(source: str | Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would keep a reader waiting for ever
        raise VideoError("not a regular file")
    return open(source, "rb", buffering=0)


def _fingerprint(file: BinaryIO) -> tuple[int, ...]:
    """Which file it is, and which content, without reading it."""
    about = os.fstat(file.fileno())
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _recall(key: tuple[int, ...] | None) -> VideoIndex | None:
    with _kept_lock:
        if key is None or key not in _kept:
            return None
        _kept.move_to_end(key)
        return _kept[key]


def _remember(key: tuple[int, ...] | None, index: VideoIndex) -> None:
    if key is None:
        return
    with _kept_lock:
        _kept[key] = index
        while len(_kept) > KEPT_INDEXES:
            _kept.popitem(last=False)
