"""One pass of a decoder over a stream: which stream, from where, and what happens to packets that fail."""

from collections.abc import Callable, Iterator

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from schemas.video.container import reason_of
from schemas.video.errors import VideoError
from schemas.video.index import AccessPoint

_PICTURES_ONLY = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails


def choose_stream(container: InputContainer) -> VideoStream:
    """The video stream that is read: the first one with the disposition "default", else the first one.

    Cover art and thumbnails are no video. VideoError if there is none, or no decoder for it.
    """
    streams = [s for s in container.streams.video if not s.disposition & _PICTURES_ONLY]
    if not streams:
        found = "only cover art" if container.streams.video else "no video stream"
        raise VideoError(f"{found} in it")
    defaults = [s for s in streams if s.disposition & Disposition.default]
    stream = (defaults or streams)[0]
    if stream.codec_context is None:
        raise VideoError("there is no decoder for its video stream")
    # One thread: frame threads report damage late, and a worker has one core.
    stream.codec_context.thread_count = 1
    return stream


def decoded_frames(
    container: InputContainer,
    stream: VideoStream,
    *,
    start: AccessPoint | None = None,
    note: Callable[[av.Packet], None] | None = None,
) -> Iterator[av.VideoFrame]:
    """Frames in the order of output, from the start of the file or from an access point, to the end.

    note: is given every packet that goes to the decoder. A packet that fails before the first key frame is skipped, as
    a stream that was cut begins with such packets; later ones raise VideoError, because a picture would be missing and
    all later numbers wrong. Nothing comes out if the access point is not found.
    """
    delivered, searching, begun = 0, start is not None, False
    if start is not None and not _sought(container, stream, start):
        return
    try:
        for packet in container.demux(stream):
            if searching and (start is None or packet.pts != start.pts):
                continue
            searching = False
            begun = begun or packet.is_keyframe
            if note is not None and packet.size:
                note(packet)
            for frame in _decode(packet, begun, delivered):
                delivered += 1
                yield frame
    except FFmpegError as error:
        raise VideoError(
            f"cannot be read behind picture {delivered - 1}: {reason_of(error)}"
        ) from error


def _sought(container: InputContainer, stream: VideoStream, start: AccessPoint) -> bool:
    try:
        container.seek(start.pts if start.dts is None else start.dts, stream=stream)
    except FFmpegError:
        return False
    return True


def _decode(packet: av.Packet, begun: bool, delivered: int) -> list[av.VideoFrame]:
    try:
        return packet.decode()
    except FFmpegError as error:
        if not begun:
            return []
        place = f"picture {delivered - 1}" if delivered else "the start"
        what = f"a packet behind {place}"
        raise VideoError(f"{what} cannot be decoded: {reason_of(error)}") from error
