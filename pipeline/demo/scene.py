"""What a rendered scene is: frames, and for each thing in them the exact truth and the facts that sentences use."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.sprites import KINDS
from schemas.geometry import RLE, Boxes, absent, rle_encode

SLIVER = 0.03
"""A thing counts as absent in a frame that shows less than this share of it, as it would to an annotator."""


@dataclass(slots=True)
class SceneObject:
    """One thing in a scene. All arrays are [T, ...]; areas in pixels.

    masks: bool [T, H, W], its visible pixels (those that nothing in front covers); empty below SLIVER
    boxes: [T, 4] tight around `masks`, NaN where absent
    centre: [T, 2] of the whole thing in the picture, also while it is hidden or outside
    world_x: [T] the same without the camera's motion
    full: area of the whole thing; inside: of its part inside the frame; covered: of what scenery hides of it
    expressions: true of this object, and of nothing else, over the whole scene
    """

    name: str
    colour: str
    masks: NDArray[np.bool_]
    boxes: Boxes
    centre: NDArray[np.float64]
    world_x: NDArray[np.float64]
    full: NDArray[np.float64]
    inside: NDArray[np.float64]
    covered: NDArray[np.float64]
    expressions: list[str] = field(default_factory=list)

    @property
    def plural(self) -> str:
        return KINDS[self.name].plural

    @property
    def visible(self) -> NDArray[np.bool_]:
        """[T] frames that show it."""
        return np.isfinite(self.boxes[:, 0])

    def rles(self) -> list[RLE | None]:
        """Its masks as COCO RLE, None where absent."""
        return [
            rle_encode(mask) if seen else None
            for mask, seen in zip(self.masks, self.visible, strict=True)
        ]


@dataclass(slots=True)
class Scene:
    """frames: uint8 [T, H, W, 3] RGB. place: how a sentence says where. scenery: words for what stands in front."""

    kind: str
    seed: int
    fps: float
    frames: NDArray[np.uint8]
    objects: list[SceneObject]
    place: str
    scenery: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.frames.shape[1], self.frames.shape[2]


def mask_boxes(masks: NDArray[np.bool_]) -> Boxes:
    """[T, H, W] -> [T, 4] tight half-open boxes, NaN for an empty mask."""
    boxes = absent(len(masks))
    for t, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if rows.size:
            boxes[t] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
