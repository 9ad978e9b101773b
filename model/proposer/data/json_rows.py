"""Rows out of JSON files that do not fit into memory (Objects365's annotations are several GB in one object)."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_ENDLESS = "0123456789.eE+-"
"""What may continue a number that the end of a chunk cut."""


def json_rows(path: Path, keys: Collection[str], chunk: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """(key, element) of the arrays under `keys` of a file that is one JSON object, in the order of the file.

    Holds one chunk and one element at a time, whatever the order of the keys. ValueError with the place if the file is
    not such an object.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        scan = _Scan(file, path.name, chunk)
        scan.take("{")
        while scan.peek() != "}":
            key = scan.value()
            scan.take(":")
            if key not in keys:
                scan.value()
            else:
                scan.take("[")
                while scan.peek() != "]":
                    yield key, scan.value()
                    if scan.peek() != "]":
                        scan.take(",")
                scan.take("]")
            if scan.peek() != "}":
                scan.take(",")


class _Scan:
    def __init__(self, file: TextIO, name: str, chunk: int):
        self.file, self.name, self.chunk = file, name, chunk
        self.text, self.at, self.base, self.done = "", 0, 0, False
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if self.done:
                raise self.wrong("the file ends early")
            self.more()

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            raise self.wrong(f"expected {wanted!r}, not {self.peek()!r}")
        self.at += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                if self.done or self.text[end : end + 1] not in _ENDLESS:  # "" is in it: read on
                    self.at = end
                    return value
            except RecursionError as error:
                raise self.wrong("nested too deep") from error
            except json.JSONDecodeError as error:
                if self.done:
                    raise self.wrong(error.msg) from error
            self.more()

    def more(self) -> None:
        self.base += self.at
        rest = self.text[self.at :]
        data = self.file.read(
            max(self.chunk, len(rest))
        )  # doubling: one huge value costs linear time
        self.text, self.at, self.done = rest + data, 0, not data

    def wrong(self, why: str) -> ValueError:
        return ValueError(
            f"{self.name}: not a JSON object of rows: {why} at character {self.base + self.at}"
        )
