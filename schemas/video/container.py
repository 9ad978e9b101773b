"""Opening a video by what is in it: the demuxer is named from the first bytes, and only that one file is read.

libav guesses a demuxer where none is named, and some demuxers are lists of other files (HLS, DASH, concat, SDP, image
sequences, QuickTime reference movies). A guess would let a data set of "videos" copy any file of the machine into a
shard. So the demuxer is looked up in a table here, what is not in the table is refused, and libav gets an open file
instead of a path, together with an `io_open` that refuses every other file and address.
"""

import io
import os
import struct
from collections.abc import Iterator
from typing import NoReturn, Protocol

import av
from av.container import InputContainer

from schemas.geometry import MAX_PIXELS
from schemas.video.errors import VideoError

HEAD = 8192
"""Bytes that are looked at to name a container."""
LARGEST_MOVIE_HEADER = 512 << 20
"""Bytes of an mp4's `moov` box that are searched for references to other files."""

TS_PACKETS = 5
"""Sync bytes in a row that make a transport stream."""


_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"free", "mov"),
    (4, b"skip", "mov"),
    (4, b"wide", "mov"),
    (4, b"pnot", "mov"),
    (4, b"styp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"\0\0\x01\xba", "mpeg"),
    (0, b"\0\0\x01\xb3", "mpegvideo"),
    (0, b"OggS", "ogg"),
    (0, b"DKIF", "ivf"),
    (0, b"YUV4MPEG2", "yuv4mpegpipe"),
    (0, b".RMF", "rm"),
    (0, b"nut/multimedia container\0", "nut"),
    (0, b"\x06\x0e\x2b\x34\x02\x05\x01\x01", "mxf"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
)
"""(offset, bytes at it, libav's name of the demuxer)."""

_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"#extm3u", "an HLS playlist, which names other files"),
    (0, b"ffconcat", "a concat list, which names other files"),
    (0, b"v=0", "an SDP description, which names a network stream"),
    (0, b"<mpd", "a DASH manifest, which names other files"),
    (0, b"<?xml", "an XML file (a DASH manifest or a web page)"),
    (0, b"<!doctype", "a web page; the download has failed"),
    (0, b"<html", "a web page; the download has failed"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself (git lfs pull)"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89png", "a PNG picture"),
    (0, b"pk\x03\x04", "a zip archive; unpack it first"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
)
"""(offset, lower-case bytes at it, what such a file is): only for the words of a refusal."""

_STILL_BRANDS = (b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1")
"""Major brands of mp4-like files that hold still pictures."""


def demuxer_of(head: bytes) -> str:
    """libav's name of the demuxer for a file that begins with `head`. VideoError says what the file is otherwise."""
    if not head.strip(b"\0"):
        raise VideoError("the file is empty" if not head else "the file begins with zeros only")
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        raise VideoError("a still picture (HEIF or AVIF), not a video")
    for offset, magic, name in _MAGIC:
        if head.startswith(magic, offset):
            return name
    if _is_transport_stream(head):
        return "mpegts"
    if name := _elementary_stream(head):
        return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for offset, magic, what in _OTHERS:
        if text.startswith(magic, offset):
            raise VideoError(f"not a video but {what}")
    raise VideoError("not a video in a container that is known here")


def _is_transport_stream(head: bytes) -> bool:
    """Whether sync bytes stand at one distance: 188 (plain), 192 (m2ts), 204 (with error correction)."""
    for size in (188, 192, 204):
        needed = size * (TS_PACKETS - 1) + 1
        for start in range(min(size, len(head) - needed + 1)):
            if all(head[start + size * n] == 0x47 for n in range(TS_PACKETS)):
                return True
    return False


def _elementary_stream(head: bytes) -> str:
    """The demuxer of a bare H.264, HEVC or MPEG-4 stream, from its first unit. Empty if it is none."""
    start = 3 if head.startswith(b"\0\0\x01") else 4 if head.startswith(b"\0\0\0\x01") else 0
    if not start or len(head) < start + 2:
        return ""
    first, second = head[start], head[start + 1]
    if first in (0x09, 0x27, 0x47, 0x67):  # access unit delimiter, sequence parameter set
        return "h264"
    if first in (0x40, 0x42, 0x46) and second == 0x01:  # video or sequence parameter set, delimiter
        return "hevc"
    return "m4v" if first in (0x00, 0xB0, 0xB5) else ""


class SeekableFile(Protocol):
    """What libav reads from."""

    def read(self, size: int = -1, /) -> bytes: ...
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int: ...
    def tell(self) -> int: ...


class FileView:
    """An open file from its start, with a place of its own. The file has to stay open."""

    def __init__(self, descriptor: int):
        self._descriptor, self._place = descriptor, 0

    def read(self, size: int = -1) -> bytes:
        length = os.fstat(self._descriptor).st_size if size < 0 else size
        data = os.pread(self._descriptor, length, self._place)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = os.fstat(self._descriptor).st_size if whence == io.SEEK_END else 0
        start = self._place if whence == io.SEEK_CUR else end
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place


def open_container(file: SeekableFile) -> InputContainer:
    """A libav container over an open, seekable file. VideoError if it is no video that is known here.

    Pictures of more than MAX_PIXELS are refused by the decoder itself, before it takes memory for them.
    """
    file.seek(0)
    name = demuxer_of(_read_head(file))
    if name == "mov":
        _refuse_references(file)
    file.seek(0)
    try:
        return av.open(
            file,
            "r",
            format=name,
            options={"max_pixels": str(MAX_PIXELS)},
            metadata_errors="replace",
            buffer_size=1 << 16,
            io_open=_refuse_other_files,
        )
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(f"cannot be opened as {name}: {reason_of(error)}") from error


_OWN_WORDS = (
    (av.error.InvalidDataError, "its index or its data are damaged or cut off"),
    (av.error.EOFError, "it ends too early"),
    (av.error.DecoderNotFoundError, "there is no decoder for it"),
)


def reason_of(error: Exception) -> str:
    """Why libav gave up, in our own words where the class of the error shows it; those of libav differ by version."""
    for kind, words in _OWN_WORDS:
        if isinstance(error, kind):
            return words
    text = getattr(error, "strerror", None) or str(error)
    return text.strip() or type(error).__name__


def _read_head(file: SeekableFile) -> bytes:
    data = b""
    while len(data) < HEAD and (more := file.read(HEAD - len(data))):
        data += more
    return data


def _refuse_other_files(url: str, flags: int, options: dict) -> NoReturn:
    raise VideoError("the file asks for another file or address, which is refused")


# --- references to other files in an mp4 or mov ---------------------------------------------------------------------


def _refuse_references(file: SeekableFile) -> None:
    """VideoError if a QuickTime movie says that its pictures are in other files."""
    movie = _top_level_box(file, b"moov")
    for path, body in _boxes(movie, (b"trak", b"mdia", b"minf", b"dinf", b"rmra")):
        if path == b"rmra":
            raise VideoError("a QuickTime reference movie, which names other files")
        if path == b"dref" and _names_a_file(body):
            raise VideoError("its pictures are in another file, which its data reference names")


def _top_level_box(file: SeekableFile, wanted: bytes) -> bytes:
    """The body of the first top-level box of that kind; empty if there is none, or it is too large to be a header."""
    file.seek(0, io.SEEK_END)
    end, place = file.tell(), 0
    while place + 8 <= end:
        file.seek(place)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        skip = 8
        if size == 1 and len(header) == 16:
            size, skip = struct.unpack(">Q", header[8:])[0], 16
        elif size == 0:
            size = end - place
        if size < skip:
            return b""
        if kind == wanted:
            file.seek(place + skip)
            return file.read(min(size - skip, LARGEST_MOVIE_HEADER))
        place += size
    return b""


def _boxes(data: bytes, inside: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of every box in `data`, and of those within boxes of the kinds `inside`."""
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        size = size or len(data) - place
        if size < 8:
            return
        body = data[place + 8 : place + size]
        yield kind, body
        if kind in inside:
            yield from _boxes(body, inside)
        place += size


def _names_a_file(references: bytes) -> bool:
    """Whether an entry of a `dref` box is not in the file itself (flag 1) and has a location."""
    for _, entry in _boxes(references[8:], ()):
        in_this_file = len(entry) >= 4 and entry[3] & 1
        if not in_this_file and entry[4:].strip(b"\0"):
            return True
    return False
