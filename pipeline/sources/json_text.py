"""Texts and JSON of annotation files: what is no text, and the members of a huge object one by one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from schemas.records import Quarantined, Reason


def no_text(data: bytes) -> str:
    """What a file without a word of text is, as far as its first bytes tell. Empty for text."""
    start = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page: the download failed, download the file again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; fetch the file itself (git lfs pull)"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16; write it as UTF-8"
    return "binary data (it begins with zeros)" if b"\0" in data[:2] else ""


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = "0123456789.eE+-"  # what may continue a number that the end of a chunk cut


def json_members(
    path: Path, chunk: int = 1 << 20, *, shown: str = ""
) -> Iterator[tuple[str, int, int]]:
    """See `DataRoot.json_members`. Raises Quarantined(annotation_invalid) with the byte offset of what is not JSON.

    shown: the file's name in messages.
    """
    shown = shown or path.name
    decoder = json.JSONDecoder()
    with path.open("rb") as file:
        base, text, done = 0, "", False  # latin-1 text, so that one character is one byte

        def more() -> None:
            nonlocal text, done
            data = file.read(max(chunk, len(text)))  # doubling: one huge value costs linear time
            text, done = text + data.decode("latin-1"), not data

        def skip(position: int, expected: str) -> int:
            """Past white space, to a character of `expected`; returns its position."""
            while True:
                while position < len(text) and text[position] in " \t\r\n\xef\xbb\xbf":
                    position += 1
                if position < len(text):
                    if text[position] not in expected:
                        raise _not_json(shown, base + position, f"expected one of {expected!r}")
                    return position
                if done:
                    raise _not_json(shown, base + position, "the file ends early")
                more()

        def value(position: int) -> tuple[object, int]:
            """Decode the value at `position`, reading on while it is incomplete."""
            while True:
                try:
                    decoded, end = decoder.raw_decode(text, position)
                    if (
                        done or text[end : end + 1] not in _NUMBER
                    ):  # "" and "." of "0." are in it: read on
                        return decoded, end
                except RecursionError as error:
                    raise _not_json(shown, base + position, "nested too deep") from error
                except json.JSONDecodeError as error:
                    if done:
                        raise _not_json(shown, base + error.pos, error.msg) from error
                except ValueError as error:  # an integer of thousands of digits
                    raise _not_json(shown, base + position, str(error)) from error
                more()

        position = skip(0, "{") + 1
        position = skip(position, '"}')
        while text[position] == '"':
            start = position
            _, position = value(position)
            key = str(loads_text(text[start:position].encode("latin-1")))
            position = skip(position, ":") + 1
            while position >= len(text) or text[position] in " \t\r\n":
                if position < len(text):
                    position += 1
                elif done:
                    raise _not_json(shown, base + position, "the file ends early")
                else:
                    more()
            start = position
            _, position = value(position)
            yield key, base + start, position - start
            position = skip(position, ",}")
            if text[position] == "}":
                break
            position = skip(position + 1, '"')
            if position > chunk:
                base, text, position = base + position, text[position:], 0
        while True:  # nothing may follow: two files that were put together would lose the second
            rest = text[position + 1 :].lstrip(" \t\r\n")
            if rest:
                raise _not_json(
                    shown, base + len(text) - len(rest), "there is more behind the object"
                )
            if done:
                return
            base, text, position = base + len(text), "", -1
            more()


def loads_text(data: bytes) -> object:
    """JSON of a text that should be UTF-8; bytes that are not become U+FFFD. Raises ValueError, RecursionError."""
    text = data.decode("utf-8-sig", "replace")
    value = json.loads(text)
    if _SURROGATE.search(text):  # half of an escaped pair is a string that no file can hold
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def _not_json(shown: str, offset: int, why: str) -> Quarantined:
    return Quarantined(
        Reason.ANNOTATION_INVALID, f"{shown}: not a JSON object: {why} at byte {offset}"
    )
