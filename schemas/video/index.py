"""What one forward decode of a video has shown: how many pictures there are, when, and where decoding may begin.

A container's own list of timestamps is not used for counting. It has entries for pictures that cannot be decoded, its
times need not be those of the pictures (H.264 in AVI), and it may hold a time twice.
"""

import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from schemas.video.access import access_proof, has_parameter_sets
from schemas.video.errors import VideoError
from schemas.video.orientation import UPRIGHT, Turn, turn_of

TIMES_FROM_ZERO = ("mov", "matroska", "avi", "flv", "asf", "ogg", "ivf", "gif")
"""Containers whose clock begins at 0, so that a stream that begins later has lost its head, or was delayed."""

WITHOUT_TIMES = ("h264", "hevc", "mpegvideo", "m4v")
"""Bare streams, whose times libav makes up."""
SKETCHED_ROWS = 8
"""Every so many rows of each plane go into a picture's checksum: an eighth of the reading, and every block is seen."""


@dataclass(frozen=True, slots=True)
class AccessPoint:
    """Decoding may begin with the packet of these timestamps (in the stream's time base); it gives `picture` first."""

    picture: int
    pts: int
    dts: int | None


@dataclass(frozen=True, slots=True)
class PacketNote:
    """What the index keeps of a packet. hidden: by the edit list. proved: decoding may begin with it."""

    pts: int | None
    dts: int | None
    key: bool
    hidden: bool
    corrupt: bool
    proved: bool


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """The result of a forward decode.

    count: pictures. complete: whether the decode went to the end (else there may be more).
    height, width: of the pictures as they are shown, after `turn`.
    times: [count] seconds on the container's clock; all NaN where it gives none, or they do not ascend.
    fps: the mean rate that the container states, the one of the packets' times where the two contradict each other (AVI
        states its clock); None if neither says.
    pixels: libav's name of the pixel format of the first picture.
    in_band: whether key frames bring parameter sets of their own (H.264, HEVC).
    lost_head: packets before the first picture that gave none, and that no edit list hides.
    late_start: seconds by which the stream begins after its container's clock.
    concealed: numbers of pictures with damage that the decoder covered up, or that came from damaged packets.
    interlaced: pictures that are two woven fields.
    pts: [count] timestamps in the stream's time base, as the decoder gave them.
    sketches: [count] checksums of each picture, by which a later decode is known to give the same one.
    access: where decoding may begin, ascending; empty where nothing but the start is proved.
    closed: every key frame of the container is such a point, and every packet gives one picture.
    """

    count: int
    complete: bool
    height: int
    width: int
    turn: Turn
    times: NDArray[np.float64]
    fps: float | None
    container: str
    codec: str
    stream: int
    streams: int
    pixel_aspect: str
    colour: str
    pixels: str
    in_band: bool
    lost_head: int
    late_start: float
    concealed: tuple[int, ...]
    interlaced: int
    pts: tuple[int | None, ...] = field(repr=False)
    sketches: tuple[int, ...] = field(repr=False)
    access: tuple[AccessPoint, ...] = field(repr=False)
    closed: bool

    @property
    def variable_rate(self) -> bool:
        """Whether the time between pictures changes by more than the rounding of timestamps explains."""
        steps = np.diff(self.times)
        if not len(steps) or not np.isfinite(steps).all():
            return False
        return bool(steps.max() > 1.5 * steps.min() + 0.002)

    def missing_before_the_tail(self) -> str:
        """What says that pictures are missing elsewhere than at the end; empty if nothing does."""
        if self.lost_head:
            return f"the first {self.lost_head} cannot be decoded"
        if self.late_start * (self.fps or 25.0) > 0.5:
            return f"the video begins {self.late_start:.2f} s late"
        if self.concealed:
            return f"picture {self.concealed[0]} is damaged"
        steps = np.diff(self.times)
        if not np.isfinite(steps).all() or self.container in WITHOUT_TIMES:
            return "its timestamps do not show where pictures are missing"
        if len(steps) and steps.max() > 1.6 * np.median(steps):
            return f"time is missing before picture {int(steps.argmax()) + 1}"
        return ""

    def before(self, picture: int) -> AccessPoint | None:
        """The last access point at or before a picture; None for the start of the file."""
        place = bisect_right(self.access, picture, key=lambda point: point.picture)
        return self.access[place - 1] if place else None


class IndexMaker:
    """Collects what a forward decode shows, packet by packet and frame by frame."""

    def __init__(self, container: InputContainer, stream: VideoStream):
        self._stream, self._container = stream, container
        self._proof = access_proof(stream.codec_context)
        self._packets: list[PacketNote] = []
        self._pts: list[int | None] = []
        self._concealed: list[int] = []
        self._interlaced = 0
        self._size = (0, 0)
        self._rotation = 0
        self._turn: Turn | None = None
        self._colour = self._pixels = ""
        self._sketches: list[int] = []
        self._in_band = False

    @property
    def count(self) -> int:
        return len(self._pts)

    def add_packet(self, packet: av.Packet) -> None:
        """A packet on its way to the decoder."""
        proved = bool(packet.is_keyframe and self._proof and self._proof(bytes(packet)))
        if packet.is_keyframe and not self._in_band:
            self._in_band = has_parameter_sets(self._stream.codec_context, bytes(packet))
        self._packets.append(
            PacketNote(
                packet.pts,
                packet.dts,
                packet.is_keyframe,
                packet.is_discard,
                packet.is_corrupt,
                proved,
            )
        )

    @property
    def turn(self) -> Turn:
        """How the first frame, and so every one, asks to be turned."""
        return self._turn or UPRIGHT

    def add_frame(self, frame: av.VideoFrame) -> None:
        """A frame in the order of output. VideoError if it is of another size, or lies otherwise, than the first."""
        size = (frame.height, frame.width)
        if self._turn is None:
            self._size, self._rotation = size, frame.rotation
            self._turn, self._colour = turn_of(frame), _colour_of(frame)
            self._pixels = frame.format.name
        if size != self._size:
            first = f"{self._size[1]}x{self._size[0]}"
            raise VideoError(
                f"picture {self.count} is {size[1]}x{size[0]}, those before are {first}"
            )
        if frame.rotation != self._rotation:
            raise VideoError(f"picture {self.count} has another display matrix than those before")
        if frame.is_corrupt:
            self._concealed.append(self.count)
        self._interlaced += frame.interlaced_frame
        self._pts.append(frame.pts)
        self._sketches.append(sketch_of(frame))

    def finish(self, *, complete: bool) -> VideoIndex:
        """The index of all that was added. VideoError if no picture came out."""
        if self._turn is None:
            raise VideoError("no picture in it can be decoded")
        height, width = self._size
        quarter = not self._turn[0]
        access = access_points(self._packets, self._pts)
        concealed = self._damaged()
        rate, aspect = self._stream.average_rate, self._stream.sample_aspect_ratio
        time_base = float(self._stream.time_base or 0)
        starts = sum(note.key for note in self._packets)
        return VideoIndex(
            count=self.count,
            complete=complete,
            height=width if quarter else height,
            width=height if quarter else width,
            turn=self._turn,
            times=_seconds(self._pts, time_base),
            fps=_mean_rate(float(rate) if rate else None, self._packets, time_base),
            container=self._container.format.name.split(",")[0],
            codec=self._stream.codec_context.codec.canonical_name,
            stream=self._stream.index,
            streams=len(self._container.streams.video),
            pixel_aspect=f"{aspect.numerator}:{aspect.denominator}" if aspect else "1:1",
            colour=self._colour,
            pixels=self._pixels,
            in_band=self._in_band,
            lost_head=self._lost_head(),
            late_start=self._late_start(),
            concealed=concealed,
            interlaced=self._interlaced,
            pts=tuple(self._pts),
            sketches=tuple(self._sketches),
            access=() if concealed else access,
            closed=len(access) == starts > 0 and len(self._packets) == self.count and not concealed,
        )

    def _damaged(self) -> tuple[int, ...]:
        """Pictures that the decoder marks, and those that damaged packets stand for."""
        times = {note.pts for note in self._packets if note.corrupt and note.pts is not None}
        marked = {number for number, time in enumerate(self._pts) if time in times}
        return tuple(sorted(marked.union(self._concealed)))

    def _lost_head(self) -> int:
        first = self._pts[0]
        shown = [note for note in self._packets if not note.hidden]
        if first is None or not _ascending(self._pts):
            return max(0, len(shown) - self.count)
        return sum(note.pts is not None and note.pts < first for note in shown)

    def _late_start(self) -> float:
        """With a negative first dts the clock was set so that the first picture is due at 0. Else the first dts is the
        start: without an edit list, pictures are due later than their dts by the delay of reordering."""
        first = self._packets[0]
        normalised = first.dts is None or first.dts < 0
        start = self._pts[0] if normalised else first.dts
        if start is None or self._stream.time_base is None:
            return 0.0
        seconds = float(start * self._stream.time_base)
        if self._container.format.name.split(",")[0] not in TIMES_FROM_ZERO:
            begin = self._stream.start_time
            clock = (self._container.start_time or 0) / av.time_base
            seconds = 0.0 if begin is None else float(begin * self._stream.time_base) - clock
        return max(0.0, seconds)


def access_points(packets: list[PacketNote], pts: list[int | None]) -> tuple[AccessPoint, ...]:
    """The packets at which decoding may begin, given the timestamps of all pictures in the order of output.

    Besides what the bitstream proves, such a packet is the picture of its timestamp, every packet before it is shown
    before it, and every packet behind it after it. Without distinct, ascending timestamps there are none.
    """
    times = [note.pts for note in packets if note.pts is not None]
    numbers = {time: number for number, time in enumerate(pts)}
    distinct = len(times) == len(packets) == len(set(times))
    if not distinct or not _ascending(pts) or not numbers.keys() <= set(times):
        return ()
    latest_before = [-np.inf, *np.maximum.accumulate(times)[:-1].tolist()]
    earliest_after = [*np.minimum.accumulate(times[::-1])[::-1][1:].tolist(), np.inf]
    found = []
    for note, time, before, after in zip(
        packets, times, latest_before, earliest_after, strict=True
    ):
        if note.proved and not note.hidden and time in numbers and before < time < after:
            found.append(AccessPoint(numbers[time], time, note.dts))
    return tuple(found)


def sketch_of(frame: av.VideoFrame) -> int:
    """A checksum of some rows of each plane of a decoded frame."""
    checksum = 0
    bits = min(8, frame.format.padded_bits_per_pixel)
    for plane in frame.planes:
        stride, height = plane.line_size, plane.height
        if stride <= 0 or plane.buffer_size < stride * height:
            continue
        buffer: Any = plane
        rows = np.frombuffer(buffer, np.uint8, stride * height).reshape(height, stride)
        used = rows[::SKETCHED_ROWS, : plane.width * bits // 8]
        checksum = zlib.crc32(used.tobytes(), checksum)
    return checksum


def _ascending(pts: list[int | None]) -> bool:
    known = [time for time in pts if time is not None]
    return len(known) == len(pts) and all(a < b for a, b in pairwise(known))


def _seconds(pts: list[int | None], time_base: float) -> NDArray[np.float64]:
    if not _ascending(pts):
        return np.full(len(pts), np.nan)
    return np.array(pts, np.float64) * time_base


def _mean_rate(stated: float | None, packets: list[PacketNote], time_base: float) -> float | None:
    times = [note.pts for note in packets if note.pts is not None]
    length = (max(times) - min(times)) * time_base if times else 0.0
    if len(times) < len(packets) or length <= 0:
        return stated
    measured = (len(times) - 1) / length
    agree = stated is not None and 0.8 < stated / measured < 1.25
    return stated if agree else measured


def _colour_of(frame: av.VideoFrame) -> str:
    """Matrix, range and transfer as ITU-T H.273 numbers them; for matrix and transfer 2 is "not stated"."""
    numbers = (int(frame.colorspace), int(frame.color_range), int(frame.color_trc))
    return "matrix {}, range {}, transfer {}".format(*numbers)
