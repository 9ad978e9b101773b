"""A random part of an image and its boxes, as the released proposer was trained (model spec, section 2.5)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from schemas.config import Config
from schemas.geometry import Boxes

Box = tuple[float, float, float, float]


class TransformConfig(Config):
    """Resize to a random short side (and a longest long one), cut out a part of random size, squash it to a square,
    mirror it. Values are the released ones.

    side: of the square, in pixels. augment: False squashes the whole image and does nothing else. short, long, crop:
    of the resized image, in pixels; a part has a height and a width from `crop`, or less where the image has less.
    min_box: boxes narrower or lower than this in the square are left out.
    """

    side: int = Field(default=448, ge=32)
    augment: bool = True
    short: tuple[int, ...] = (400, 500, 600)
    long: int = Field(default=4200, ge=1)
    crop: tuple[int, int] = (448, 896)
    flip: float = Field(default=0.5, ge=0, le=1)
    min_box: float = Field(default=2.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "TransformConfig":
        if not self.short or min(self.short) < 1:
            raise ValueError(f"short {self.short} must be at least one side of at least 1 pixel")
        if not 1 <= self.crop[0] <= self.crop[1]:
            raise ValueError(
                f"crop {self.crop} must be a smallest and a largest side, both at least 1 pixel"
            )
        return self


def transform(
    image: Image.Image, boxes_n4: Boxes, config: TransformConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Boxes]:
    """RGB image and boxes xyxy in its pixels -> square [side, side, 3], and boxes [m, 4] xyxy in [0, 1] of it.

    Boxes are cut to the part. Where the part shows none of them the whole image is taken, so that annotated images
    are never taught as empty. All of it is one resampling, from the original pixels.
    """
    view, mirrored = (
        _view(image.height, image.width, config, rng) if config.augment else (_whole(image), False)
    )
    seen_n4 = _look(boxes_n4, view, config)
    if not len(seen_n4):
        view = _whole(image)
        seen_n4 = _look(boxes_n4, view, config)
    pixels = np.array(image.resize((config.side, config.side), Image.Resampling.BILINEAR, box=view))
    if mirrored:
        x1, y1, x2, y2 = seen_n4.T
        pixels, seen_n4 = pixels[:, ::-1], np.stack([1 - x2, y1, 1 - x1, y2], 1)
    return np.ascontiguousarray(pixels), seen_n4.astype(np.float32)


def _whole(image: Image.Image) -> Box:
    return 0.0, 0.0, float(image.width), float(image.height)


def _view(
    height: int, width: int, config: TransformConfig, rng: np.random.Generator
) -> tuple[Box, bool]:
    """The part of the original image, in its pixels, and whether to mirror it."""
    scale = min(rng.choice(config.short) / min(height, width), config.long / max(height, width))
    sides, starts = [], []
    for side in (height * scale, width * scale):
        low, high = min(side, config.crop[0]), min(side, config.crop[1])
        sides.append(rng.uniform(low, high))
        starts.append(rng.uniform(0, side - sides[-1]))
    (h, w), (y, x) = sides, starts
    # max and min: rounding must not push a whole image over its own border
    view = (
        max(0, x / scale),
        max(0, y / scale),
        min(width, (x + w) / scale),
        min(height, (y + h) / scale),
    )
    return view, bool(rng.random() < config.flip)


def _look(boxes_n4: Boxes, view: Box, config: TransformConfig) -> NDArray[np.float64]:
    x1, y1, x2, y2 = view
    inside = (boxes_n4.astype(np.float64) - [x1, y1, x1, y1]) / [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
    inside = inside.clip(0, 1)
    sides = inside[:, 2:] - inside[:, :2]
    return inside[(sides > 0).all(1) & (sides * config.side >= config.min_box).all(1)]
