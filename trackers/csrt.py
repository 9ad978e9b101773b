"""A box tracker without weights: OpenCV's CSRT, both ways in time, behind a gate that knows when it is lost.

CSRT (Lukezic et al., "Discriminative Correlation Filter with Channel and Spatial Reliability", CVPR 2017) always
returns a box; its own flag is of no use to tell that the target is gone. Here every box is compared with the look of
the key box (`_Look`): a run of boxes that look no more like it than the background does means lost, and while lost the
frame is searched for the key box at several sizes, mirrored or not.

Known limits: a twin of the target passes for it, and a box that slid to the visible half of the target stays there.
"""

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.config import Config
from schemas.geometry import Boxes, clip_boxes, is_box
from schemas.records import Quarantined, Reason, Track
from trackers.base import Redetect

cv2.setNumThreads(
    1
)  # one clip per process; OpenCV's own threads gain nothing here and cost determinism

_HOG = cv2.HOGDescriptor((32, 32), (16, 16), (8, 8), (8, 8), 9)
_BY_CHANCE = 1.4  # likeness of background to a target, where the target fills its frame and none can be measured


class CSRTConfig(Config):
    """side: frames are reduced to this longer side in pixels. min_target: but not so far that the shorter side of the
    key box falls below this. template: side in pixels to which CSRT reduces the target with its surroundings.
    lost_share, patience: lost when the likeness (0 to 3) stays for so many frames below what the surroundings of the
    key box reach by chance, plus this share of what is left to 3. found_above, search_every: while lost, every so many
    frames the frame is searched, and a box at least so alike is taken for the target."""

    kind: Literal["csrt"] = "csrt"
    side: int = 480
    min_target: int = 24
    template: int = 160
    lost_share: float = 0.2
    patience: int = 3
    found_above: float = 2.05
    search_every: int = 3


class CSRTTracker:
    """CSRT with a lost/found gate (`trackers.base.Tracker`).

    A track's score is likeness / 3: 1 for the key box itself and at most 1. On synthetic clips without the gate, 95 of
    100 right boxes (IoU above 0.5) had at least 0.70, half of the wrong ones at most 0.62: it ranks boxes of one
    track, is no probability, and between targets it is not calibrated.
    """

    name = "csrt"
    version = "1"

    def __init__(self, config: CSRTConfig | None = None):
        self.config = config or CSRTConfig()

    def track(
        self,
        frames: NDArray[np.uint8],
        boxes: Boxes,
        key_frame: int = 0,
        *,
        redetect: Redetect | None = None,
        descriptions: Sequence[str] = (),
    ) -> list[Track]:
        """frames: [T, H, W, 3] RGB; boxes: [N, 4] in frame `key_frame` -> N tracks of T frames, one by one.

        The key frame keeps its box (origin "detected", score 1), other boxes are "tracked" and cut to the frame; a
        frame where the target is lost has no box, origin "none" and score NaN. A lost target is searched for by its
        look; `redetect` is not asked, `descriptions` are not read.
        Raises Quarantined(no_target) for a key box that holds less than a pixel of the frame.
        """
        if not 0 <= key_frame < len(frames):
            raise ValueError(f"key_frame {key_frame} is not one of {len(frames)} frames")
        return [
            self._track_one(frames, key_frame, box)
            for box in np.asarray(boxes, np.float32).reshape(-1, 4)
        ]

    def _track_one(self, frames: NDArray[np.uint8], key_frame: int, box: Boxes) -> Track:
        height, width = frames.shape[1:3]
        inside = clip_boxes(box, height, width)
        if not is_box(inside) or min(inside[2:] - inside[:2]) < 1:
            raise Quarantined(
                Reason.NO_TARGET,
                f"key box {box.tolist()} covers less than a pixel of the {width}x{height} frame {key_frame}",
                stage="track",
            )
        shorter = float(min(inside[2:] - inside[:2]))
        scale = min(
            1.0, max(self.config.side / max(height, width), self.config.min_target / shorter)
        )
        track = Track.empty(len(frames))
        key = _reduced(frames[key_frame], scale)
        for step, end in ((1, len(frames)), (-1, -1)):
            follow = _Follow(self.config, key, inside.astype(np.float64) * scale)
            for t in range(key_frame + step, end, step):
                found, likeness = follow(_reduced(frames[t], scale))
                if found is not None:
                    track.boxes[t], track.score[t], track.origin[t] = (
                        found / scale,
                        likeness / 3,
                        "tracked",
                    )
        track.boxes = clip_boxes(track.boxes, height, width)
        track.boxes[key_frame], track.score[key_frame], track.origin[key_frame] = (
            box,
            1.0,
            "detected",
        )
        return track


def _reduced(frame: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """RGB -> BGR, which CSRT's colour names expect, at `scale`."""
    if scale < 1:
        frame = np.asarray(
            cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), np.uint8)


class _Follow:
    """One target in one direction of time: call it with frame after frame."""

    def __init__(self, config: CSRTConfig, key: NDArray[np.uint8], box: NDArray[np.float64]):
        self.config = config
        self.size = box[2:] - box[:2]
        self.key = _Look(_cut(key, box))
        self.mirrored = _Look(_cut(key, box)[:, ::-1])
        self.search = _Search(_cut(key, box), self.size)
        by_chance = self._by_chance(key, box)
        self.lost_below = by_chance + config.lost_share * (3 - by_chance)
        self.found_above = max(config.found_above, self.lost_below + 0.1)
        self.poor = 0  # frames of poor likeness in a row
        self.since_lost = 0
        self._start(key, box)

    def _by_chance(self, key: NDArray[np.uint8], box: NDArray[np.float64]) -> float:
        """What nine of ten boxes of the same size elsewhere in the key frame do not exceed in likeness.

        A horse in front of its stable is more like its background than a coin on the moon: no one threshold fits both.
        """
        (height, width), (w, h) = key.shape[:2], self.size
        corners = [
            (x, y) for y in np.linspace(0, height - h, 7) for x in np.linspace(0, width - w, 9)
        ]
        others = np.array([(x, y, x + w, y + h) for x, y in corners])
        overlap = np.clip(
            np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2]), 0, None
        ).prod(1)
        others = others[overlap < 0.25 * w * h]
        if not len(others):
            return _BY_CHANCE
        return float(np.percentile([self.likeness(key, other) for other in others], 90))

    def _start(self, frame: NDArray[np.uint8], box: NDArray[np.float64]) -> None:
        """CSRT takes and returns whole pixels: what rounding took off the first box is given back to the others."""
        height, width = frame.shape[:2]
        x1, y1 = (
            int(np.clip(round(v), 0, limit - 1))
            for v, limit in zip(box[:2], (width, height), strict=True)
        )
        w, h = (max(1, round(v)) for v in box[2:] - box[:2])
        w, h = min(w, width - x1), min(h, height - y1)
        self.off = (box[:2] + box[2:]) / 2 - (x1 + w / 2, y1 + h / 2)
        self.stretch = (box[2:] - box[:2]) / (w, h)
        cv2.setRNGSeed(0)
        parameters = cv2.TrackerCSRT.Params()
        parameters.template_size = float(self.config.template)
        self.csrt = cv2.TrackerCSRT.create(parameters)
        try:
            self.csrt.init(frame, (x1, y1, w, h))
        except cv2.error as error:
            raise Quarantined(
                Reason.NO_TARGET,
                f"CSRT cannot start on a box of {w}x{h} pixels at ({x1}, {y1}): {error.err}",
                stage="track",
            ) from error

    def __call__(self, frame: NDArray[np.uint8]) -> tuple[NDArray[np.float64] | None, float]:
        """(xyxy box or None where lost, likeness) in the next frame."""
        if self.poor < self.config.patience:
            box = self._update(frame)
            likeness = self.likeness(frame, box) if box is not None else 0.0
            self.poor = self.poor + 1 if likeness < self.lost_below else 0
            if box is not None and self.poor < self.config.patience:
                return box, likeness
            self.poor, self.since_lost = self.config.patience, 0
        self.since_lost += 1
        if self.since_lost % self.config.search_every:
            return None, np.nan
        likeness, box = self._find(frame)
        if likeness <= self.found_above:
            return None, np.nan
        self.poor = 0
        self._start(frame, box)
        return box, likeness

    def _update(self, frame: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """The box where CSRT believes the target to be; None if that is outside the frame, or shrunk to nothing."""
        try:
            _, (x, y, w, h) = self.csrt.update(frame)
        except cv2.error:
            return None
        size = np.array((w, h)) * self.stretch
        centre = np.array((x + w / 2, y + h / 2)) + self.off
        box = np.concatenate([centre - size / 2, centre + size / 2])
        return box if is_box(clip_boxes(box, *frame.shape[:2])) else None

    def _find(self, frame: NDArray[np.uint8]) -> tuple[float, NDArray[np.float64]]:
        """Likeness and box of the best place for the key box in the whole frame."""
        places = [(self.likeness(frame, box), i, box) for i, box in enumerate(self.search(frame))]
        likeness, _, box = max(places, default=(0.0, 0, np.zeros(4)))
        return likeness, box

    def likeness(self, frame: NDArray[np.uint8], box: NDArray[np.float64]) -> float:
        """0 to 3: how much the box looks like the key box, or like its mirror image."""
        look = _Look(_cut(frame, box))
        return max(look.likeness(self.key), look.likeness(self.mirrored))


class _Look:
    """What is compared of two crops: grey pixels, colours and gradients, all at 32 x 32."""

    def __init__(self, crop: NDArray[np.uint8]):
        small = np.ascontiguousarray(cv2.resize(crop, (32, 32), interpolation=cv2.INTER_AREA))
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        colour = cv2.calcHist(
            [cv2.cvtColor(small, cv2.COLOR_BGR2HSV)],
            [0, 1, 2],
            None,
            [16, 4, 4],
            [0, 180, 0, 256, 0, 256],
        )
        self.parts = [
            _unit(np.asarray(grey, np.float32).ravel() - np.float32(grey.mean())),
            _unit(np.asarray(colour, np.float32).ravel()),
            _unit(np.asarray(_HOG.compute(grey), np.float32).ravel()),
        ]

    def likeness(self, other: "_Look") -> float:
        """Sum of the three cosines (the first is normalised cross-correlation), negative ones as 0."""
        return float(
            sum(max(0.0, float(a @ b)) for a, b in zip(self.parts, other.parts, strict=True))
        )


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


class _Search:
    """Where in a frame the key box might be: the best place for each of 6 sizes, mirrored or not.

    Works on frames so far reduced that the key box has about `SIDE` pixels a side.
    """

    SIDE = 20.0
    SIZES = (0.6, 0.75, 0.9, 1.1, 1.35, 1.65)

    def __init__(self, crop: NDArray[np.uint8], size: NDArray[np.float64]):
        self.size = size
        self.scale = min(1.0, self.SIDE / float(np.sqrt(size.prod())))
        self.templates = []
        for factor in self.SIZES:
            w, h = (max(4, round(float(side) * self.scale * factor)) for side in size)
            template = cv2.resize(crop, (w, h), interpolation=cv2.INTER_AREA)
            self.templates += [template, np.ascontiguousarray(template[:, ::-1])]

    def __call__(self, frame: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
        small = cv2.resize(frame, None, fx=self.scale, fy=self.scale, interpolation=cv2.INTER_AREA)
        boxes = []
        for template in self.templates:
            if template.shape[0] > small.shape[0] or template.shape[1] > small.shape[1]:
                continue
            match = cv2.matchTemplate(small, template, cv2.TM_CCOEFF_NORMED)
            x, y = cv2.minMaxLoc(match)[3]
            h, w = template.shape[:2]
            boxes.append(np.array([x, y, x + w, y + h]) / self.scale)
        return boxes


def _cut(frame: NDArray[np.uint8], box: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The box's pixels, at least one; what lies outside the frame repeats its border."""
    x1, y1, x2, y2 = np.round(box).astype(int)
    xs = np.clip(np.arange(x1, max(x2, x1 + 1)), 0, frame.shape[1] - 1)
    ys = np.clip(np.arange(y1, max(y2, y1 + 1)), 0, frame.shape[0] - 1)
    return frame[ys[:, None], xs]
