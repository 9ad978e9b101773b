"""What SPARROW's released loaders ask of a scene folder, as rules that can be checked (`util/*_dataset.py`, 44f25b1).

A folder that breaks the first rule is passed over without a word; one that breaks another ends a training.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

FRAMES_FOR_SAM = 8
"""`num_frames_for_sam` of the release: the loaders assert that they have drawn so many different frames."""

MARKUP = re.compile(r"\[[^\]]+\]\([^)]+\)")
"""What the loaders take for a phrase and its object ids: `[the dog](1, 2)`."""


def has_all_parts(scene: Path) -> Iterator[str]:
    """img/, mask/, groundtruth.txt and nlp.txt."""
    for name in ("img", "mask"):
        if not (scene / name).is_dir():
            yield f"no folder {name}"
    for name in ("groundtruth.txt", "nlp.txt"):
        if not (scene / name).is_file():
            yield f"no file {name}"


def has_enough_frames(scene: Path) -> Iterator[str]:
    """At least FRAMES_FOR_SAM pictures."""
    n = len(_pictures(scene))
    if n < FRAMES_FOR_SAM:
        yield f"{n} pictures, the loaders need {FRAMES_FOR_SAM}"


def has_a_box_per_frame(scene: Path) -> Iterator[str]:
    """As many lines of four numbers as pictures; blank lines do not count."""
    lines = [line for line in (scene / "groundtruth.txt").read_text().split("\n") if line.strip()]
    n = len(_pictures(scene))
    if len(lines) != n:
        yield f"{len(lines)} boxes for {n} pictures"
    for number, line in enumerate(lines, start=1):
        try:
            numbers = [float(word) for word in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or not all(abs(value) < float("inf") for value in numbers):
            yield f"groundtruth.txt, line {number}: not four numbers"


def has_a_mask_per_frame(scene: Path) -> Iterator[str]:
    """mask/<stem>.png for each picture."""
    masks = {path.name for path in (scene / "mask").iterdir()}
    for picture in _pictures(scene):
        if f"{Path(picture).stem}.png" not in masks:
            yield f"no mask of {picture}"


def has_a_plain_caption(scene: Path) -> Iterator[str]:
    """Some text, and nothing in it that the loaders take for markup of phrases."""
    caption = (scene / "nlp.txt").read_text(encoding="utf-8")
    if not caption.strip():
        yield "nlp.txt is empty"
    if found := MARKUP.search(caption):
        yield f"the caption has {found[0]!r:.60}, which the loaders take for a phrase with object ids"


RULES: tuple[Callable[[Path], Iterator[str]], ...] = (
    has_all_parts,
    has_enough_frames,
    has_a_box_per_frame,
    has_a_mask_per_frame,
    has_a_plain_caption,
)
"""All rules, in the order in which they are asked; the ones behind the first need its parts."""


def scene_problems(scene: Path) -> list[str]:
    """What a loader would find wrong with a scene folder. Pictures are not opened."""
    for rule in RULES:
        if found := list(rule(scene)):
            return found
    return []


def _pictures(scene: Path) -> list[str]:
    """Names of the pictures, in the order of the loaders: that of their texts."""
    return sorted(path.name for path in (scene / "img").iterdir() if path.is_file())
