"""When TSF at inference is worth its time: the paper's Table 8 as a rule.

The table names scenarios; what counts as one is ours (`RuleConfig`). A few frames are looked at with the preset's own
detector, which costs a small part of tracking all of them. Motion blur is not measured.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from model.tsf_inference import Extractor
from pipeline.select import evenly_spaced
from schemas.config import Config
from schemas.geometry import Boxes, area
from schemas.records import Detection


class RuleConfig(Config):
    """looks: frames that are searched. small: share of the frame below which a target is small. alike: by how much its
    score must exceed that of the best box elsewhere, or there is a similar distractor. speed: median motion inside the
    box from one frame to the next, a share of the box's size, above which motion is fast."""

    looks: int = Field(default=8, ge=3)
    small: float = 0.01
    alike: float = 0.1
    speed: float = 0.1


@dataclass(frozen=True)
class Decision:
    on: bool
    reasons: tuple[str, ...]
    """With the numbers that decided, and Table 8's words."""

    def __str__(self) -> str:
        return f"{'on' if self.on else 'off'}: {'; '.join(self.reasons)}"


def decide(
    extractor: Extractor,
    frames: Any,
    phrase: str,
    frame: int = 0,
    box: Boxes | None = None,
    config: RuleConfig | None = None,
) -> Decision:
    """Whether Table 8 enables TSF for this phrase. frames, frame, box: as of `Extractor.__call__`.

    With a given box only its size and motion on its frame are known, and the answer says so.
    """
    config = config or RuleConfig()
    if box is not None:
        found: list[Detection | None] = [
            Detection(frame, np.asarray(box, np.float32), "annotation", False)
        ]
    else:
        wanted = evenly_spaced(len(frames), config.looks).tolist()
        with extractor.clock("rule", len(wanted)):
            found = [extractor.look(frames, phrase, [t]) for t in wanted]
    seen = [one for one in found if one is not None]
    if not seen:
        return Decision(
            False, (f"{phrase!r} is in none of {len(found)} frames: there is nothing to track",)
        )
    return _rule(found, seen, _motion(frames, seen), frames.shape[1] * frames.shape[2], config)


def _rule(
    found: list[Detection | None],
    seen: list[Detection],
    motion: float | None,
    pixels: int,
    config: RuleConfig,
) -> Decision:
    there = np.flatnonzero([one is not None for one in found])
    gaps = int(there[-1] - there[0] + 1 - len(there))
    share = float(np.median([area(one.box) for one in seen])) / pixels
    margins = [one.margin for one in seen if one.margin is not None]
    margin = float(np.median(margins)) if margins else None
    on: list[str] = []
    off: list[str] = []
    (on if gaps else off).append(
        f"missing in {gaps} of {len(found)} frames looked at, and back (occlusion and re-appearance: enable)"
        if gaps
        else f"found in {len(seen)} of {len(found)} frames looked at"
    )
    (on if share < config.small else off).append(
        f"{share:.2%} of the frame"
        + (" (small target: enable if dropout is likely)" if share < config.small else "")
    )
    if motion is not None:
        fast = motion > config.speed
        (on if fast else off).append(
            f"moves {motion:.1%} of its size per frame"
            + (" (fast motion: enable if accuracy is critical)" * fast)
        )
    if margin is not None:
        alike = margin < config.alike
        (on if alike else off).append(
            f"the next like it scores {margin:.2f} less"
            + (" (similar distractors: enable)" * alike)
        )
    else:
        off.append("a given box: neither occlusion nor distractors were looked for")
    return Decision(bool(on), tuple(on or [*off, "simple clip, limited motion: keep TSF off"]))


def _motion(frames: Any, seen: list[Detection]) -> float | None:
    """Median over detections of the optical flow inside the box to the next frame, as a share of the box's size."""
    found = []
    for one in seen:
        if one.frame + 1 < len(frames):
            found.append(_flow(frames[one.frame], frames[one.frame + 1], one.box))
    return float(np.median(found)) if found else None


def _flow(
    frame: NDArray[np.uint8], following: NDArray[np.uint8], box: Boxes, width: int = 256
) -> float:
    scale = min(1.0, width / frame.shape[1])
    small = [
        cv2.resize(
            cv2.cvtColor(f, cv2.COLOR_RGB2GRAY),
            None,
            fx=scale,
            fy=scale,
            interpolation=cv2.INTER_AREA,
        )
        for f in (frame, following)
    ]
    flow = np.zeros((*small[0].shape, 2), np.float32)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(small[0], small[1], flow)
    x1, y1, x2, y2 = (np.asarray(box) * scale).round().astype(int)
    inside = flow[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)]
    if not inside.size:
        return 0.0
    return float(np.median(np.linalg.norm(inside, axis=-1)) / max(1.0, np.sqrt(area(box)) * scale))
