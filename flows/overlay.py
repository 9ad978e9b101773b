"""Masks, boxes and words drawn on the frames: an mp4 of all, and a picture of eight."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flows.masks import OVERLAYS
from schemas.files import replacing

if TYPE_CHECKING:
    from model.instances import Target
    from model.video import Video

COLOURS = (
    (230, 60, 60),
    (60, 130, 230),
    (60, 190, 90),
    (240, 180, 40),
    (170, 80, 220),
    (40, 200, 200),
)
TALLEST, TILE = 720, 320
"""Frames of the mp4 are at most so high, those of the picture so wide."""

Masks = Iterable[tuple[int, dict[int, NDArray[np.bool_]]]]


def draw(
    frame: NDArray[np.uint8],
    t: int,
    masks: dict[int, NDArray[np.bool_]],
    targets: "Sequence[Target]",
    note: str = "",
    tallest: int = TALLEST,
) -> NDArray[np.uint8]:
    """One frame [H, W, 3] at most so high: masks tinted and outlined, a name at each, the boxes of a prompted frame."""
    scale = min(1.0, tallest / frame.shape[0])
    size = max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale))
    picture = cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame.copy()
    labels = []
    for i, mask in masks.items():
        if not mask.any():
            continue
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        colour, inside = COLOURS[i % len(COLOURS)], small.astype(bool)
        picture[inside] = (0.55 * picture[inside] + 0.45 * np.array(colour)).astype(np.uint8)
        outline, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, colour, 1)
        rows, columns = np.flatnonzero(small.any(1)), np.flatnonzero(small.any(0))
        labels.append((i, int(columns[0]), int(rows[0])))
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(max(10, size[1] // 40))
    for i, one in enumerate(targets):
        if t in one.boxes:
            x1, y1, x2, y2 = (one.boxes[t] * scale).tolist()
            pen.rectangle(
                (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)),
                outline=COLOURS[i % len(COLOURS)],
                width=2,
            )
    for i, left, top in labels:
        words, high = f"{targets[i].phrase} #{i}", font.getbbox("Ag")[3] + 2
        at = (left, max(0, top - high))
        pen.rectangle(
            (*at, at[0] + pen.textlength(words, font=font) + 4, at[1] + high),
            fill=COLOURS[i % len(COLOURS)],
        )
        pen.text((at[0] + 2, at[1]), words, fill="white", font=font)
    words = f"{t}{', prompted' if any(t in one.boxes for one in targets) else ''}{'  ' + note if note else ''}"
    pen.text(
        (4, size[1] - font.getbbox("Ag")[3] - 4),
        words,
        fill="white",
        font=font,
        stroke_width=1,
        stroke_fill="black",
    )
    return np.asarray(image)


def write_overlay(
    frames: "Video", masks: Masks, targets: "Sequence[Target]", out: Path, note: str = ""
) -> list[Path]:
    """<out>/overlay.mp4, and overlay.png: eight frames evenly over the video, and up to eight that were prompted.

    masks: frames in order, some may be left out.
    """
    from schemas.video.stored import write_mp4

    prompted = sorted({t for one in targets for t in one.boxes})[:8]
    wanted = {
        *prompted,
        *np.linspace(0, len(frames) - 1, min(8, len(frames))).round().astype(int).tolist(),
    }
    tiles: list[NDArray[np.uint8]] = []

    def pictures() -> Iterator[NDArray[np.uint8]]:
        coming = iter(masks)
        following = next(coming, None)
        for t, frame in enumerate(frames):
            here: dict[int, NDArray[np.bool_]] = {}
            if following is not None and following[0] == t:
                here, following = following[1], next(coming, None)
            if t in wanted:
                tiles.append(
                    draw(
                        frame,
                        t,
                        here,
                        targets,
                        tallest=max(1, TILE * frame.shape[0] // frame.shape[1]),
                    )
                )
            yield draw(frame, t, here, targets, note)

    film, sheet = (out / name for name in OVERLAYS)
    drawn = pictures()
    first = next(drawn)
    with replacing(film) as fresh, fresh.open("wb") as file:
        write_mp4(file, chain([first], drawn), first.shape[:2], frames.fps)
    with replacing(sheet) as fresh:
        _sheet(tiles, note or f"{len(targets)} instances").save(fresh, "PNG")
    return [film, sheet]


def _sheet(tiles: list[NDArray[np.uint8]], title: str, columns: int = 4) -> Image.Image:
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width * min(columns, len(tiles)), 20 + (height + 4) * rows), "white")
    ImageDraw.Draw(sheet).text((4, 4), title, fill="black")
    for i, tile in enumerate(tiles):
        sheet.paste(Image.fromarray(tile), (i % columns * width, 20 + i // columns * (height + 4)))
    return sheet
