"""Ways to spoil one thing: a value of a JSON file, a line or a word of a text file, a name, a file's kind."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.badinput.corpora import Files

_HERE = "@@here@@"

VALUES = {
    "null": "null",
    "true": "true",
    "0": "0",
    "-1": "-1",
    "1.5": "1.5",
    "inf": "1e999",
    "nan": "NaN",
    "10^30": "1" + "0" * 30,
    "10^400": "1" + "0" * 400,
    "10^5000": "1" + "0" * 5000,
    "text": '"text"',
    "blank": '" "',
    "nul": r'"a\u0000b"',
    "surrogate": r'"\ud800"',
    "list": "[]",
    "object": "{}",
    "lists": "[[[]]]",
    "deep": "[" * 100_000 + "]" * 100_000,
}
"""Name -> JSON text of a value that is the wrong one nearly everywhere. JSON has no infinity: 1e999 reads as one."""


@dataclass(frozen=True)
class Case:
    """One thing spoilt in a good corpus. `group` and `name` find the outcome in outcomes.txt."""

    source: str
    group: str
    name: str
    spoil: Callable[[Files], None]
    follow_links: bool = False

    @property
    def id(self) -> str:
        return f"{self.source}/{self.group}={self.name}"


def text(files: Files, file: str) -> str:
    content = files[file]
    assert isinstance(content, bytes)
    return content.decode()


def put(file: str, path: list, raw: str) -> Callable[[Files], None]:
    """The value at `path` (keys and indices) becomes the JSON text `raw`; an int stands for a key by its place."""

    def spoil(files: Files) -> None:
        place = holder = [json.loads(text(files, file))]
        *way, last = [0, *path]
        for step in way:
            place = place[_key(place, step)]
        place[_key(place, last)] = _HERE
        files[file] = (
            json.dumps(holder[0], ensure_ascii=False).replace(f'"{_HERE}"', raw, 1).encode()
        )

    return spoil


def _key(place: list | dict, step: str | int) -> str | int:
    return list(place)[step] if isinstance(place, dict) and isinstance(step, int) else step


def matrix(source: str, file: str, path: list, values: str = "") -> list[Case]:
    """A case per value (all of VALUES, or those named) at one place."""
    group = ".".join(map(str, path)) or "whole"
    group = f"{Path(file).stem}.{group}" if len(file) else group
    return [
        Case(source, group, name, put(file, path, VALUES[name]))
        for name in (values.split() or VALUES)
    ]


def become(file: str, change: bytes | Callable[[bytes], bytes]) -> Callable[[Files], None]:
    """A file gets other bytes."""

    def spoil(files: Files) -> None:
        old = files[file]
        assert isinstance(old, bytes)
        files[file] = change if isinstance(change, bytes) else change(old)

    return spoil


def line(file: str, number: int, new: str) -> Callable[[Files], None]:
    """One line (from 0) of a text file becomes another text."""

    def spoil(files: Files) -> None:
        lines = text(files, file).split("\n")
        lines[number] = new
        files[file] = "\n".join(lines).encode()

    return spoil


def word(file: str, old: str, new: str) -> Callable[[Files], None]:
    """The first `old` of a text file becomes `new`."""

    def spoil(files: Files) -> None:
        assert old in text(files, file), f"{old!r} is not in {file}"
        files[file] = text(files, file).replace(old, new, 1).encode()

    return spoil


def gone(*names: str) -> Callable[[Files], None]:
    """Files, or folders with all that is in them, are not there."""

    def spoil(files: Files) -> None:
        found = [
            file for file in files for name in names if file == name or file.startswith(f"{name}/")
        ]
        assert found
        for file in found:
            del files[file]

    return spoil


def both(*spoils: Callable[[Files], None]) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        for one in spoils:
            one(files)

    return spoil


def kind(file: str, what: str) -> Callable[[Files], None]:
    """Instead of a file: a folder, a pipe, a link to the same file outside the root, a link to itself, ..."""

    def make(path: Path, outside: Path, content: bytes) -> None:
        secret = outside / path.name
        match what:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "link out":
                secret.write_bytes(content)
                path.symlink_to(secret)
            case "link up":
                secret.write_bytes(content)
                path.symlink_to(os.path.relpath(secret, path.parent))
            case "link loop":
                path.symlink_to(path.name)
            case "dangling link":
                path.symlink_to("nowhere")
            case "link inside":
                (path.parent / "real file").write_bytes(content)
                path.symlink_to("real file")
            case _:
                raise ValueError(what)

    def spoil(files: Files) -> None:
        content = files[file]
        assert isinstance(content, bytes)
        files[file] = lambda path, outside: make(path, outside, content)

    return spoil


KINDS = ("folder", "pipe", "link out", "link up", "link loop", "dangling link", "link inside")
