"""The segmenter that needs no weights: GrabCut in every frame's box, each frame by itself."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from schemas.geometry import RLE, Boxes, Mask, clip_boxes, is_box, rle_encode
from schemas.records import Segment


class GrabCutConfig(Config):
    """side: the longer side in pixels at which GrabCut works. margin: surroundings of the search box, as a share of
    its size on each side, that are background for certain. grow: the box is enlarged by this factor first, because a
    tracked box may cut the target; nothing outside the enlarged box is ever foreground. smallest, largest: a mask
    whose share of the enlarged box lies outside these has collapsed."""

    kind: Literal["grabcut"] = "grabcut"
    side: int = 160
    margin: float = 0.15
    grow: float = 1.05
    iterations: int = 1
    smallest: float = 0.05
    largest: float = 0.97


class GrabCutSegmenter:
    """GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004) by box (`pipeline.segment.Segmenter`).

    Where it collapses, the mask is the ellipse in the box and its origin is "grabcut-fallback": not a segmentation.
    """

    name = "grabcut"
    version = "1"

    def __init__(self, config: GrabCutConfig | None = None):
        self.config = config or GrabCutConfig()

    def segment(self, frames: NDArray[np.uint8], boxes: Boxes) -> list[Segment | None]:
        """frames: [T, H, W, 3] RGB, boxes: [T, 4] -> per frame a mask [H, W], None where there is no box."""
        if len(frames) != len(boxes):
            raise ValueError(f"{len(frames)} frames, but {len(boxes)} boxes")
        inside = clip_boxes(boxes, *frames.shape[1:3])
        return [
            self._segment(f, b) if is_box(b) else None for f, b in zip(frames, inside, strict=True)
        ]

    def _segment(self, frame: NDArray[np.uint8], box: Boxes) -> Segment:
        config, (height, width) = self.config, frame.shape[:2]
        x1, y1, x2, y2 = _grown(box, config.grow, height, width)
        left, top, right, bottom = _grown(box, config.grow * (1 + 2 * config.margin), height, width)
        window = frame[top:bottom, left:right]
        scale = config.side / max(window.shape[:2])
        size = max(1, round(window.shape[1] * scale)), max(1, round(window.shape[0] * scale))
        small = cv2.resize(
            window, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
        ys, xs = (
            _scaled(y1 - top, y2 - top, scale, size[1]),
            _scaled(x1 - left, x2 - left, scale, size[0]),
        )
        labels[ys, xs] = cv2.GC_PR_FGD
        if (labels == cv2.GC_PR_FGD).all():
            return self._fallback(box, height, width)
        cv2.setRNGSeed(
            0
        )  # GrabCut's colour models start from a random K-means: results must not depend on what ran before
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, (0, 0, 0, 0), *models, config.iterations, cv2.GC_INIT_WITH_MASK)
        found = (labels & 1).astype(np.float32)
        if not config.smallest <= found[ys, xs].mean() <= config.largest:
            return self._fallback(box, height, width)
        mask = cv2.resize(found, window.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5
        mask = mask[y1 - top : y2 - top, x1 - left : x2 - left]
        return Segment(_placed(mask, x1, y1, height, width), self.name)

    def _fallback(self, box: Boxes, height: int, width: int) -> Segment:
        x1, y1, x2, y2 = _grown(box, 1.0, height, width)
        centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        ys = (np.arange(y1, y2) + 0.5 - centre[1]) / radius[1]
        xs = (np.arange(x1, x2) + 0.5 - centre[0]) / radius[0]
        mask = ys[:, None] ** 2 + xs**2 <= 1
        mask |= ~mask.any()  # a box thinner than a pixel
        return Segment(_placed(mask, x1, y1, height, width), f"{self.name}-fallback")


def _grown(box: Boxes, factor: float, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that the box touches when enlarged about its centre, cut to the frame; at least one."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * factor
    x1, y1 = np.floor(np.clip(centre - half, 0, (width - 1, height - 1))).astype(int)
    x2, y2 = np.ceil(np.clip(centre + half, (x1 + 1, y1 + 1), (width, height))).astype(int)
    return int(x1), int(y1), int(x2), int(y2)


def _scaled(start: int, stop: int, scale: float, size: int) -> slice:
    """A span of pixels in the reduced picture, at least one."""
    first = min(round(start * scale), size - 1)
    return slice(first, max(round(stop * scale), first + 1))


def _placed(mask: Mask, x: int, y: int, height: int, width: int) -> RLE:
    """A mask at (x, y) of an otherwise empty frame."""
    frame = np.zeros(
        (height, width), np.uint8, order="F"
    )  # the order of an RLE: nothing is copied again
    frame[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return rle_encode(frame)
