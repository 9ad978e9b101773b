"""Bytes of members, straight from the tars by offset and size, with HTTP ranges so that a browser can seek."""

import os
import tarfile
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flows.browse.queries import Place
from schemas.members import open_regular

CHUNK = 256 * 1024
LARGEST_PICTURE = 64 * 1024 * 1024
"""Bytes of a frame that is read at once."""


def send(request: Request, place: Place, kind: str) -> Response:
    """A member as a response: 206 for one range, 304 for what the browser has, 416 for a range that is not there.

    ValueError if the tar does not have this member there; OSError if it cannot be read.
    """
    check(place)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": place.etag,
        "Cache-Control": "private, max-age=3600",
    }
    if request.headers.get("if-none-match") == place.etag:
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range", "")
    whole = request.headers.get("if-range", place.etag) != place.etag
    span = None if whole else parse_range(asked, place.size)
    if span == (0, 0):
        return Response(
            status_code=416, headers={**headers, "Content-Range": f"bytes */{place.size}"}
        )
    start, stop = span or (0, place.size)
    headers["Content-Length"] = str(stop - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{place.size}"
    body = _read(place, start, stop)
    return StreamingResponse(body, 206 if span else 200, headers, media_type=kind)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """`Range` -> (start, stop); (0, 0) where nothing of it is there; None for no range, several, or not understood,
    all of which mean the whole (RFC 9110, 14.2)."""
    unit, _, spec = header.partition("=")
    first, dash, last = spec.strip().partition("-")
    numbers = (first.strip(), last.strip())
    if unit.strip().lower() != "bytes" or not dash or not any(numbers):
        return None
    if any(n and not (n.isascii() and n.isdigit() and len(n) < 19) for n in numbers):
        return None
    if not numbers[0]:
        start, stop = max(0, size - int(numbers[1])), size
    else:
        start, stop = int(numbers[0]), min(size, int(numbers[1]) + 1) if numbers[1] else size
        if numbers[1] and int(numbers[1]) < start:
            return None
    return (start, stop) if start < stop else (0, 0)


def check(place: Place) -> None:
    """ValueError if the tar's own header before the member does not have its name and size."""
    with open_regular(place.tar) as file:
        block = (
            os.pread(file.fileno(), tarfile.BLOCKSIZE, place.offset - tarfile.BLOCKSIZE)
            if place.offset
            else b""
        )
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError as error:
        raise ValueError(
            f"{place.tar.name}: no tar header before {place.member}: run `sparrow verify`"
        ) from error
    if (header.name, header.size) != (place.member, place.size):
        raise ValueError(
            f"{place.tar.name}: at {place.offset} is {header.name} of {header.size} bytes, not {place.member} "
            f"of {place.size}: run `sparrow verify`"
        )


def _read(place: Place, start: int, stop: int) -> Iterator[bytes]:
    with open_regular(place.tar) as file:
        while start < stop:
            data = os.pread(file.fileno(), min(CHUNK, stop - start), place.offset + start)
            if not data:
                raise OSError(f"{place.tar} ends inside {place.member}")
            start += len(data)
            yield data


def frame_of(place: Place, t: int) -> Place | None:
    """The JPEG of frame t inside a `.frames.tar` member; None where there is none.

    Frames are in order, so that a walk over headers ends at the one that is asked for.
    """
    check(place)
    at, end = place.offset, place.offset + place.size
    with open_regular(place.tar) as file:
        while at + tarfile.BLOCKSIZE <= end:
            try:
                header = tarfile.TarInfo.frombuf(
                    os.pread(file.fileno(), tarfile.BLOCKSIZE, at), "utf-8", "replace"
                )
            except tarfile.HeaderError:  # the two empty blocks at the end
                return None
            at += tarfile.BLOCKSIZE
            if header.size > LARGEST_PICTURE or at + header.size > end:
                return None
            if header.name == f"{t:06d}.jpg":
                return Place(place.tar, header.name, at, header.size, f'{place.etag[:-1]}-{t}"')
            at += -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return None
