"""A Parquet file's own sha256, in its footer: `why_damaged` notices whatever bit of the file has changed.

For files that nothing else vouches for: the rows of `shards`, which vouch for all other tables of a shard, `timings`
and `runs`, which are different in every run, and plans. The digest is that of the file with zeros in the digest's
place. It finds damage; who wants to deceive writes a new one.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import pyarrow.parquet as pq

KEY = "sparrow_sha256"
"""Of the footer's key-value metadata."""
_DIGITS = 64
_ZEROS = b"0" * _DIGITS
_BEFORE = KEY.encode() + b"\x18" + bytes([_DIGITS])
"""What stands before the digits: the key, and Thrift's header of a string of that length."""
_MAGIC = b"PAR1"
_CHUNK = 1 << 20


def add_metadata(writer: "pq.ParquetWriter", words: dict[str, str]) -> None:
    """Key-value metadata of the file, with room for the digest. In order of the keys: the same words, the same bytes."""
    writer.add_key_value_metadata(dict(sorted({**words, KEY: _ZEROS.decode()}.items())))


def stamp(path: Path) -> None:
    """Put the digest into a finished file that has room for it. ValueError if it has none."""
    with path.open("r+b") as file:
        place = _place(file)
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest)


def why_damaged(path: Path) -> str:
    """What is wrong with a file's bytes; empty if they are those that were written. OSError if it cannot be read."""
    with path.open("rb") as file:
        try:
            place = _place(file)
        except ValueError as error:
            return str(error)
        file.seek(place)
        stated = file.read(_DIGITS)
        if _digest(file, place) == stated:
            return ""
        return "the file has changed since it was written (its sha256 differs)"


def _place(file: BinaryIO) -> int:
    """Where the digits are. ValueError if this is no Parquet file with a digest."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    start = size - 8 - length
    if tail[4:] != _MAGIC or start < 0:
        raise ValueError("the file is not a whole Parquet file")
    file.seek(start)
    footer = file.read(length)
    found = footer.rfind(_BEFORE)
    if found < 0 or found + len(_BEFORE) + _DIGITS > length:
        raise ValueError("the file has no checksum: another program has written it")
    return start + found + len(_BEFORE)


def _digest(file: BinaryIO, place: int) -> bytes:
    whole = hashlib.sha256()
    file.seek(0)
    left = place
    while left and (chunk := file.read(min(_CHUNK, left))):
        whole.update(chunk)
        left -= len(chunk)
    whole.update(_ZEROS)
    file.seek(place + _DIGITS)
    while chunk := file.read(_CHUNK):
        whole.update(chunk)
    return whole.hexdigest().encode()
