"""A small world in which words need identity over time.

Every clip has the object that is meant, a look-alike of the same shape and colour, and something else. What tells the
two apart is what they do: they move in opposite directions, mostly crossing, or one leaves the picture and comes back.
One expression in three is about appearance alone, and then nothing looks alike. Look-alikes differ in a mark (where
their dark spot is) that no expression mentions: crops show it, so Target-Specific Features can.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Kind = Literal["appearance", "motion", "leaving"]
KINDS: tuple[Kind, ...] = ("appearance", "motion", "leaving")
COLOURS = {
    "red": (220, 50, 50),
    "green": (50, 180, 70),
    "blue": (60, 90, 230),
    "yellow": (230, 210, 60),
}
SHAPES = ("square", "disc")
MARKS = ((-1, -1), (1, -1), (-1, 1), (1, 1))
"""Corners of an object in which its dark spot can be."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclass(frozen=True)
class StudyClip:
    """T frames, N objects; the first is the one meant, the second its rival (a look-alike, but for "appearance")."""

    key: str
    kind: Kind
    phrase: str
    looks: tuple[str, ...]
    """Colour and shape of each object."""
    words: tuple[tuple[str, ...], ...]
    """What is true of each object, in words of expressions; of those that hardly move, colour and shape only."""
    frames_thw3: NDArray[np.uint8]
    masks_nthw: NDArray[np.bool_]
    """What is seen of each object."""
    boxes_nt4: NDArray[np.float32]
    """xyxy in pixels around what is seen; NaN where nothing is."""


def make_clip(
    seed: int, index: int, frames: int = 8, side: int = 64, objects: int = 3
) -> StudyClip:
    """Clip `index` of the world `seed`: equal arguments, equal clips. In the first frame all objects stand apart.

    objects: 3, or fewer for lessons: 1 is the one meant, alone, 2 leaves its rival out."""
    for attempt in range(1000):
        clip = _attempt(np.random.default_rng([seed, index, attempt]), index, frames, side, objects)
        if clip is not None:
            return clip
    raise ValueError(
        f"clip {index} of world {seed}: no arrangement of {frames} frames found in 1000 attempts"
    )


def _attempt(
    rng: np.random.Generator, index: int, frames: int, side: int, objects: int
) -> StudyClip | None:
    kind = KINDS[index % len(KINDS)]
    does: list[str] = []
    names = rng.permutation(list(COLOURS))
    shape, other = rng.permutation(SHAPES)
    marks = rng.permutation(len(MARKS))
    if kind == "appearance":
        looks = [(names[0], shape), (names[1], shape), (names[2], other)]
        paths = [_drift(rng, frames) for _ in looks]
        phrase = f"{names[0]} {shape}"
    else:
        looks = [(names[0], shape), (names[0], shape), (names[1], other)]
        if kind == "motion":
            direction = str(rng.choice(list(DIRECTIONS)))
            paths = _opposed(rng, frames, direction)
            does = [direction, OPPOSITE[direction]]
            phrase = f"{names[0]} {shape} moving {direction}"
        else:
            paths, does = [_away(rng, frames), _drift(rng, frames)], ["leaves", "stays"]
            if rng.random() < 0.5:
                paths, does = paths[::-1], does[::-1]
            phrase = f"{names[0]} {shape} that {does[0]}"
        paths.append(_drift(rng, frames))
    if objects < 3:
        keep = [0] if objects == 1 else [0, 2]
        looks, paths, does = [looks[i] for i in keep], [paths[i] for i in keep], does[:1]
    radius = rng.uniform(0.09, 0.12, len(looks)) * side
    if kind != "appearance" and objects == 3:
        radius[1] = radius[0]  # size must not give it away
    first = np.stack([path[0] for path in paths]) * side
    gaps = np.abs(first[:, None] - first).max(2) + 1e9 * np.eye(len(looks))
    if gaps.min() < 2.2 * radius.max():
        return None
    order = rng.permutation(len(looks))
    ground = rng.integers(90, 150) + rng.normal(0, 8, (side, side, 3))
    pictures = np.empty((frames, side, side, 3), np.uint8)
    masks = np.zeros((len(looks), frames, side, side), np.bool_)
    for t in range(frames):
        picture = np.clip(ground, 0, 255).astype(np.uint8)
        for i in order:  # later ones hide earlier ones
            colour, form = looks[i]
            shape_hw = _draw(
                picture, paths[i][t] * side, radius[i], form, COLOURS[colour], MARKS[marks[i]]
            )
            masks[:, t] &= ~shape_hw
            masks[i, t] = shape_hw
        pictures[t] = picture
    names_n = tuple(f"{colour} {form}" for colour, form in looks)
    words = tuple((*look, *does[i : i + 1]) for i, look in enumerate(looks))
    return StudyClip(
        f"{kind}-{index:05d}", kind, phrase, names_n, words, pictures, masks, boxes_of(masks)
    )


def boxes_of(masks_nthw: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight boxes xyxy, half-open; NaN around nothing."""
    boxes = np.full((*masks_nthw.shape[:2], 4), np.nan, np.float32)
    for n, t in zip(*np.nonzero(masks_nthw.any((2, 3))), strict=True):
        x, y, w, h = cv2.boundingRect(masks_nthw[n, t].astype(np.uint8))
        boxes[n, t] = x, y, x + w, y + h
    return boxes


def _draw(
    picture: NDArray[np.uint8],
    centre: NDArray,
    radius: float,
    shape: str,
    colour: tuple[int, ...],
    mark: tuple[int, int],
) -> NDArray[np.bool_]:
    """Paint one object; returns where it is."""
    area = np.zeros(picture.shape[:2], np.uint8)
    x, y = (round(float(v)) for v in centre)
    r = round(radius)
    if shape == "square":
        cv2.rectangle(area, (x - r, y - r), (x + r, y + r), 1, -1)
    else:
        cv2.circle(area, (x, y), r, 1, -1)
    picture[area > 0] = colour
    spot = np.zeros_like(area)
    cv2.circle(spot, (x + mark[0] * r // 2, y + mark[1] * r // 2), max(1, r // 3), 1, -1)
    picture[(spot & area) > 0] = (20, 20, 20)
    return area > 0


def _drift(rng: np.random.Generator, frames: int) -> NDArray:
    """Somewhere, hardly moving: centres [T, 2] in shares of the side."""
    start, step = rng.uniform(0.2, 0.8, 2), rng.uniform(-0.015, 0.015, 2)
    return start + step * np.arange(frames)[:, None]


def _opposed(rng: np.random.Generator, frames: int, direction: str) -> list[NDArray]:
    """Two on nearly one line, one in `direction`, one against it. Two pairs in three pass each other, the others part:
    the first frame does not say who is who."""
    along = np.array(DIRECTIONS[direction], float)
    across = np.abs(along[::-1])
    level, apart = rng.uniform(0.35, 0.65), rng.uniform(0.05, 0.2) * rng.choice([-1, 1])
    parting = rng.random() < 1 / 3
    paths = []
    for sign, shift in ((1, apart / 2), (-1, -apart / 2)):
        forward = 1 if sign * along.sum() > 0 else -1
        way, off = (
            (rng.uniform(0.22, 0.27), rng.uniform(0.1, 0.13))
            if parting
            else (rng.uniform(0.3, 0.45), None)
        )
        start = 0.5 + forward * (off if off is not None else -rng.uniform(way - 0.38, 0.38))
        path = start + forward * np.linspace(0, way, frames)
        paths.append(path[:, None] * np.abs(along) + (level + shift) * across)
    return paths


def _away(rng: np.random.Generator, frames: int) -> NDArray:
    """Out over the nearest border, and back."""
    start = rng.uniform(0.2, 0.8, 2)
    axis = int(rng.integers(2))
    border = -0.15 if start[axis] < 0.5 else 1.15
    share = np.sin(np.linspace(0, np.pi, frames)) ** 0.7
    path = np.repeat(start[None], frames, 0)
    path[:, axis] += share * (border - start[axis])
    return path
