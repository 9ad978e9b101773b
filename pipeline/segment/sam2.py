"""The segmenter of the `full` preset: SAM2, prompted by the tracked boxes, with masks kept only where they agree.

Every kept frame gets a mask, as in the paper ("dense" and "per-frame" masks, Appendix A). Training reads eight masks
of a sample: `masks="keyframes:8"` makes this stage 37 times cheaper on a clip of 300 frames (spec tracking 5.3). The
package of the same name is only imported in `sam2_model`, absolutely.
"""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from schemas.config import Config
from schemas.geometry import RLE, Boxes, area, clip_boxes, iou, is_box, rle_box, rle_encode
from schemas.records import Segment
from trackers.batching import Batcher
from trackers.runtime import device, identity

if TYPE_CHECKING:  # whoever only plans, or asks for a version, does not wait for torch
    import torch

CANDIDATES = 8
"""Frames that video mode looks at, each by itself, to find the ones that are worth prompting."""


class SAM2Config(Config):
    """weights: a file under the weights root, or "seeded:<salt>". architecture: version and size of the official model.

    mode: "image" makes each mask from its own box alone. "video" prompts at most `prompts` frames, where mask and box
    agree best, and follows the target from there through the clip (slower: every frame between two masks is seen).
    masks: which of the frames with a box get one: "all", "none", "keyframes:8" (so many, evenly spaced), "every:5"
    (each fifth, from the first). min_box_iou, max_area_ratio, min_object_score: see `judge`.
    batch: pictures per call of the model. dtype: of its arithmetic; weights and masks' logits stay float32.
    """

    kind: Literal["sam2"] = "sam2"
    weights: str = "sam2.1_hiera_large.pt"
    architecture: Literal[
        "2.1-t", "2.1-s", "2.1-b+", "2.1-l", "2.0-t", "2.0-s", "2.0-b+", "2.0-l", "tiny"
    ] = "2.1-l"
    mode: Literal["image", "video"] = "image"
    masks: str = Field(default="all", pattern=r"^(none|all|(keyframes|every):[1-9][0-9]{0,5})$")
    prompts: int = Field(default=3, ge=1, le=3)
    min_box_iou: float = Field(default=0.5, ge=0, le=1)
    max_area_ratio: float = Field(default=4.0, ge=1)
    min_object_score: float = 0.0
    batch: int = Field(default=8, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @classmethod
    def tiny(cls) -> "SAM2Config":
        """A seeded model that knows nothing: its masks cover most of the frame. The thresholds let those through whose
        box has at least a twentieth of the frame. One picture at a time, so that runs on a CPU agree to the last bit.
        """
        return cls(
            weights="seeded:s0:",
            architecture="tiny",
            min_box_iou=0.05,
            max_area_ratio=20.0,
            batch=1,
            dtype="float32",
        )


PUBLISHED_FRAMES_PER_SECOND = {
    "2.1-t": 91.2,
    "2.1-s": 84.8,
    "2.1-b+": 64.1,
    "2.1-l": 39.5,
    "2.0-t": 91.5,
    "2.0-s": 85.6,
    "2.0-b+": 64.8,
    "2.0-l": 39.7,
}
"""Of SAM2's README: one object through a video, on an A100, compiled."""


def pictures_seen(boxed: int, masks: str, mode: str) -> int:
    """How many pictures the model encodes for one target with a box in so many frames, one after the other.

    masks, mode: as in `SAM2Config`. Video mode sees its candidates, and then every frame.
    """
    kind, _, number = masks.partition(":")
    if kind == "none":
        return 0
    if mode == "video":
        return min(boxed, CANDIDATES) + boxed
    if kind == "every":
        return -(-boxed // int(number))
    return min(boxed, int(number)) if kind == "keyframes" else boxed


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says about one box in one frame. mask: [H, W] 0/1, column-major."""

    mask: NDArray[np.uint8]
    iou: float
    object_score: float


class SAM2Segmenter:
    """SAM2 (Ravi et al., 2024) by box (`pipeline.segment.Segmenter`).

    Frames that are not among `config.masks` get None. Where `judge` finds fault, `Segment.dropped` says which: there is
    no fallback. `Segment.score` is the model's predicted IoU. Many threads may call at once: pictures of different
    clips share batches, videos take turns.
    """

    name = "sam2"

    def __init__(self, config: SAM2Config | None = None):
        """CheckpointError if the weights are not there. The model loads at the first mask."""
        self.config = config or SAM2Config()
        self.version = f"1+{identity(self.config.weights, 'SAM2')}"
        self._batcher: Batcher[tuple[NDArray[np.uint8], Boxes], Answer] = Batcher(
            self._answer, self.config.batch, self.name
        )
        self._loading, self._turn = threading.Lock(), threading.Lock()
        self._loaded: Any = None

    def segment(self, frames: NDArray[np.uint8], boxes: Boxes) -> list[Segment | None]:
        """frames: [T, H, W, 3] RGB, boxes: [T, 4] in pixels of the frame, NaN where no mask is wanted."""
        if len(frames) != len(boxes):
            raise ValueError(f"{len(frames)} frames, but {len(boxes)} boxes")
        inside = clip_boxes(boxes, *frames.shape[1:3])
        wanted = choose(inside, self.config.masks)
        segments: list[Segment | None] = [None] * len(frames)
        if not wanted:
            return segments
        if self.config.mode == "video":
            with self._turn:  # a stream listens to the decoder: nobody else may ask it meanwhile
                return self._follow(frames, inside, wanted, segments)
        some = 4 * self.config.batch  # masks are 2 MB in HD: encode them before asking for more
        for start in range(0, len(wanted), some):
            part = wanted[start : start + some]
            for t, answer in zip(
                part, self._batcher.map([(frames[t], inside[t]) for t in part]), strict=True
            ):
                segments[t] = self._judged(answer, inside[t])
        return segments

    def _follow(
        self,
        frames: NDArray[np.uint8],
        boxes: Boxes,
        wanted: list[int],
        segments: list[Segment | None],
    ) -> list[Segment | None]:
        """Video mode. Where not one candidate's mask agrees with its box, there is nothing worth following: all masks
        are empty, and dropped as "no_prompt"."""
        candidates = choose(boxes, f"keyframes:{CANDIDATES}")
        answers = self._batcher.map([(frames[t], boxes[t]) for t in candidates])
        ranked = sorted(zip(candidates, answers, strict=True), key=lambda pair: -pair[1].iou)
        prompts = [t for t, answer in ranked if not self._judged(answer, boxes[t]).dropped][
            : self.config.prompts
        ]
        height, width = frames.shape[1:3]
        if not prompts:
            nothing = rle_encode(np.zeros((height, width), np.uint8))
            for t in wanted:
                segments[t] = Segment(nothing, self.name, dropped="no_prompt")
            return segments

        import torch

        from pipeline.segment.sam2_model import LazyFrames, Stream, to_frame

        model, where, start = self._model(), device(), prompts[0]
        with torch.inference_mode(), self._precision():
            stream = Stream(model, LazyFrames(frames, model.image_size, where), height, width)
            for t in prompts:
                stream.prompt(t, boxes[t])
            seen = stream.follow(start, min(start, wanted[0]), max(start, wanted[-1]))
            for t, logits, predicted_iou, score in seen:
                if t in wanted:
                    answer = Answer(to_frame(logits, height, width), predicted_iou, score)
                    segments[t] = self._judged(answer, boxes[t])
        return segments

    def _judged(self, answer: Answer, box: Boxes) -> Segment:
        mask = rle_encode(answer.mask)
        overlap = float(iou(rle_box(mask), box))
        fault = judge(mask, box, answer.object_score, self.config)
        return Segment(mask, self.name, answer.iou, None if np.isnan(overlap) else overlap, fault)

    def _answer(self, items: list[tuple[NDArray[np.uint8], Boxes]]) -> list[Answer]:
        """One call of the model. Always the same number of rows: kernels are chosen by shape, so that a result would
        otherwise depend on how many others came along. (On a CPU the last digits also depend on the row: see `tiny`.)
        """
        import torch

        from pipeline.segment.sam2_model import boxes_to_masks, prepare, to_frame

        model, where = self._model(), device()
        side, padding = model.image_size, self._batcher.batch - len(items)
        images = [prepare(frame, side, where) for frame, _ in items]
        boxes = [
            box * np.float32(side) / np.array(frame.shape[1::-1] * 2, np.float32)
            for frame, box in items
        ]
        images_b3ss = torch.stack(images + images[-1:] * padding)
        boxes_b4 = torch.from_numpy(np.stack(boxes + boxes[-1:] * padding)).to(where)
        with torch.inference_mode(), self._precision():
            logits, ious, scores = boxes_to_masks(model, images_b3ss, boxes_b4)
            masks = [to_frame(logits[i, 0], *frame.shape[:2]) for i, (frame, _) in enumerate(items)]
        return [
            Answer(*values) for values in zip(masks, ious.tolist(), scores.tolist(), strict=False)
        ]

    def load(self) -> None:
        """Build the model now. CheckpointError if its file does not fit."""
        self._model()

    def _precision(self) -> "torch.autocast":
        import torch

        return torch.autocast(
            device().type, torch.bfloat16, enabled=self.config.dtype == "bfloat16"
        )

    def _model(self) -> Any:
        with self._loading:
            if self._loaded is None:
                from pipeline.segment.sam2_model import make_sam2

                self._loaded = make_sam2(self.config, device(), self.config.mode == "video")
            return self._loaded


def choose(boxes: Boxes, masks: str) -> list[int]:
    """The frames that get a mask, in time order. boxes: [T, 4]; masks: `SAM2Config.masks`."""
    boxed = np.flatnonzero(is_box(boxes))
    kind, _, number = masks.partition(":")
    if kind == "none":
        boxed = boxed[:0]
    elif kind == "every":
        boxed = boxed[:: int(number)]
    elif kind == "keyframes" and len(boxed) > int(number):
        boxed = boxed[np.round(np.linspace(0, len(boxed) - 1, int(number))).astype(int)]
    return boxed.tolist()


def judge(mask: RLE, box: Boxes, object_score: float, config: SAM2Config) -> str:
    """Why a mask is not kept, "" if it is (spec tracking 5.2: SAM2 gives a mask of something in any case).

    "absent": the model says that nothing is there (a logit, at most `min_object_score`), or the mask is empty
    "area": the box around the mask is over `max_area_ratio` times as large or small as `box`, the one tracked or given
    "box_disagrees": the two overlap with an IoU below `min_box_iou`
    """
    around = rle_box(mask)
    if object_score <= config.min_object_score or not is_box(around):
        return "absent"
    ratio = float(area(around) / area(box))
    if max(ratio, 1 / ratio) > config.max_area_ratio:
        return "area"
    return "" if iou(around, box) >= config.min_box_iou else "box_disagrees"
