"""Random-access points that the bitstream proves: where decoding may begin in the middle of a stream.

A container's key frame flag is no proof. It is also set on I pictures of open GOPs, whose leading pictures need what
came before, and on the recovery points of intra refresh. What is accepted here: an IDR picture of H.264 or HEVC, a
shown key frame of VP8, VP9 or AV1, a GOP that MPEG-1 or MPEG-2 marks as closed, and every picture of a codec that has
intra pictures only. Parameter sets and tables that came earlier are not part of this proof; a reader compares what it
gets with the first decode (`schemas.video.index.sketch_of`).
"""

from collections.abc import Callable, Iterator

import av

Proof = Callable[[bytes], bool]
"""Whether decoding may begin with a packet of these bytes."""

_H264_SLICES = range(1, 6)
_H264_IDR = 5
_HEVC_SLICES = range(32)
_HEVC_IDR = (19, 20)
_START_CODE = b"\0\0\x01"
_MPEG_PICTURE, _MPEG_GOP = 0x00, 0xB8
_AV1_HEADERS = (3, 6)  # OBU_FRAME_HEADER, OBU_FRAME


def access_proof(codec: av.CodecContext) -> Proof | None:
    """The test for packets of a stream; None where no packet but the first is a place to begin."""
    name = codec.codec.canonical_name
    length = _length_of_units(name, codec.extradata or b"")
    if codec.codec.intra_only:
        return lambda data: True
    if name == "h264":
        return lambda data: _first_slice(data, length, _h264_kind, _H264_SLICES) == _H264_IDR
    if name == "hevc":
        return lambda data: _first_slice(data, length, _hevc_kind, _HEVC_SLICES) in _HEVC_IDR
    return {
        "vp8": _vp8_key,
        "vp9": _vp9_key,
        "av1": _av1_key,
        "mpeg1video": _closed_gop,
        "mpeg2video": _closed_gop,
    }.get(name)


def has_parameter_sets(codec: av.CodecContext, data: bytes) -> bool:
    """Whether a packet of H.264 or HEVC brings parameter sets of its own, besides those of the container's header."""
    kind, sets = _PARAMETER_SETS.get(codec.codec.canonical_name, (_h264_kind, ()))
    extradata = codec.extradata or b""
    length = _length_of_units(codec.codec.canonical_name, extradata)
    units = _by_length(data, length) if length else _by_start_code(data)
    return any(kind(data[unit]) in sets for unit in units)


def _length_of_units(name: str, extradata: bytes) -> int:
    """Bytes of the length before each unit; 0 where units begin with start codes."""
    place = {"h264": 4, "hevc": 21}.get(name, 0)
    if not place or extradata[:1] != b"\x01" or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


def _h264_kind(first_byte: int) -> int:
    return first_byte & 31


def _hevc_kind(first_byte: int) -> int:
    return first_byte >> 1 & 63


_PARAMETER_SETS = {"h264": (_h264_kind, (7, 8)), "hevc": (_hevc_kind, (32, 33, 34))}
"""Codec -> (type of a unit from its first byte, types of parameter sets)."""


def _first_slice(data: bytes, length: int, kind: Callable[[int], int], slices: range) -> int:
    """The type of the first slice of a packet; -1 if it has none. length: bytes of each unit's length, 0 for start
    codes."""
    units = _by_length(data, length) if length else _by_start_code(data)
    return next((found for unit in units if (found := kind(data[unit])) in slices), -1)


def _by_length(data: bytes, length: int) -> Iterator[int]:
    """Places of the first bytes of units that follow their own length."""
    place = 0
    while place + length < len(data):
        size = int.from_bytes(data[place : place + length])
        yield place + length
        place += length + size


def _by_start_code(data: bytes) -> Iterator[int]:
    """Places of the bytes behind each start code."""
    place = data.find(_START_CODE)
    while 0 <= place < len(data) - 3:
        yield place + 3
        place = data.find(_START_CODE, place + 3)


def _vp8_key(data: bytes) -> bool:
    """A key frame (bit 0 is 0) that is shown (bit 4)."""
    return bool(data) and not data[0] & 1 and bool(data[0] & 16)


def _vp9_key(data: bytes) -> bool:
    """The frame marker 2, no repeat of another frame, frame type 0, shown."""
    if not data or data[0] >> 6 != 2:
        return False
    profile = data[0] >> 5 & 1 | (data[0] >> 4 & 1) << 1
    place = 3 if profile < 3 else 2  # profile 3 has a reserved bit
    repeats, not_key, shown = (data[0] >> place - n & 1 for n in range(3))
    return bool(shown and not repeats and not not_key)


def _av1_key(data: bytes) -> bool:
    """The first frame header of a temporal unit: no repeat of another frame, frame type 0, shown."""
    place = 0
    while place < len(data):
        header = data[place]
        kind, extended, sized = header >> 3 & 15, header >> 2 & 1, header >> 1 & 1
        place += 1 + extended
        size = len(data) - place
        if sized:
            size, place = _leb128(data, place)
        if kind in _AV1_HEADERS and place < len(data):
            repeats, frame_type, shown = (
                data[place] >> 7,
                data[place] >> 5 & 3,
                data[place] >> 4 & 1,
            )
            return bool(shown and not repeats and not frame_type)
        place += size
    return False


def _leb128(data: bytes, place: int) -> tuple[int, int]:
    """A number of AV1's variable length, and the place behind it."""
    value = 0
    for n, byte in enumerate(data[place : place + 8]):
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, place + n + 1
    return len(data), len(data)


def _closed_gop(data: bytes) -> bool:
    """A GOP header with the bit `closed_gop`, before the first picture."""
    for place in _by_start_code(data):
        if data[place] == _MPEG_GOP:
            return len(data) > place + 4 and bool(data[place + 4] & 0x40)
        if data[place] == _MPEG_PICTURE:
            return False
    return False
