"""The order of pictures that are files: by the numbers in their names."""

import re
from collections.abc import Iterable

from schemas.video.errors import VideoError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


def in_picture_order(names: Iterable[str]) -> list[str]:
    """File names of pictures by the numbers in them: 2.png before 10.png. Hidden files and other kinds are left out.

    VideoError where two files stand for one number (1.png and 01.png, 7.jpg and 7.png): which one is meant is unknown.
    """
    pictures = [n for n in names if n.lower().endswith(PICTURE_SUFFIXES) and not n.startswith(".")]
    by_number: dict[tuple[tuple[str, int], ...], str] = {}
    for name in sorted(pictures):
        number = number_key(name.rpartition(".")[0])
        if number in by_number:
            raise VideoError(f"{by_number[number]} and {name} stand for the same number")
        by_number[number] = name
    return [by_number[number] for number in sorted(by_number)]


def stems(names: Iterable[str]) -> tuple[str, ...]:
    """File names without their extensions."""
    return tuple(name.rpartition(".")[0] for name in names)


def number_key(stem: str) -> tuple[tuple[str, int], ...]:
    """ "take2_007" -> (("take", 2), ("_", 7), ("", -1)): what stands before each number, and the number."""
    found = re.findall(r"([^0-9]*)([0-9]*)", stem)
    return tuple((text, int(digits) if digits else -1) for text, digits in found)
