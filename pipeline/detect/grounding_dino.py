"""The paper's detector: GroundingDINO finds the referent in key frames, from the expression.

The annotation says only in which frames to look (`key_frames`: the target is visible there); the box is found from
the text. Per frame the one best query is taken, as the authors advise for referring expressions: thresholds alone
return every lion for "the left lion", and there is no NMS. Its score is that of the head noun, not of any token, or
the box of a context noun could win. A query is accepted where the package would keep its box (some token above
`box_threshold`) and the name it would give it has the head noun (above `text_threshold`).

Preprocessing, thresholds and naming follow groundingdino.util.inference; batching is ours (`groundingdino_model`).
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from pipeline.detect.annotation import key_frames as choose_frames
from pipeline.detect.captions import head_noun, normalise
from schemas.config import Config
from schemas.geometry import Boxes, clip_boxes, iou, is_box
from schemas.records import Annotation, Detection, Quarantined, Reason
from trackers import runtime
from trackers.batching import Batcher

if TYPE_CHECKING:
    from pipeline.detect.groundingdino_model import GroundingDINO
    from pipeline.detect.groundingdino_text import Text

Item = tuple[NDArray[np.uint8], str]
"""A resized picture [h, w, 3] and a normalised caption."""
Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Probabilities [Q, L], one per query and token, and boxes [Q, 4], cxcywh as shares of the picture."""


class GroundingDINOConfig(Config):
    """weights, text_encoder: a checkpoint file and bert-base-uncased's folder, both under the weights root.

    short_side, long_side: the picture's size in the model, pixels. fallback_threshold: replaces both thresholds where
    nothing reaches them, and the detection says so; None: no second chance. batch: pictures in one forward pass.
    """

    kind: Literal["groundingdino"] = "groundingdino"
    weights: str = "groundingdino_swint_ogc.pth"
    architecture: Literal["swint", "swinb", "tiny"] = "swint"
    text_encoder: str = "bert-base-uncased"
    short_side: int = Field(default=800, ge=32)
    long_side: int = Field(default=1333, ge=32)
    box_threshold: float = Field(default=0.35, ge=0, lt=1)
    text_threshold: float = Field(default=0.25, ge=0, lt=1)
    fallback_threshold: float | None = Field(default=0.2, ge=0, lt=1)
    batch: int = Field(default=4, ge=1)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    @model_validator(mode="after")
    def _tiny_has_no_weights(self) -> "GroundingDINOConfig":
        if self.architecture == "tiny" and not runtime.is_seeded(self.weights):
            raise ValueError(
                f"architecture tiny has no checkpoint: weights must be seeded:<salt>, not {self.weights!r}"
            )
        return self

    def files(self) -> tuple[Path, Path]:
        """(checkpoint, folder of the text encoder); CheckpointError says what is missing. The folder needs no weights:
        the text encoder's are in the checkpoint."""
        found, missing = [], []
        for name, purpose in (
            (self.weights, "GroundingDINO"),
            (self.text_encoder, "GroundingDINO's text encoder"),
        ):
            try:
                found.append(runtime.locate(name, purpose))
            except runtime.CheckpointError as error:
                missing.append(str(error))
        if missing:
            raise runtime.CheckpointError("\n".join(missing))
        path, folder = found
        wanted = (("config.json",), ("vocab.txt", "tokenizer.json"))
        if not all(any((folder / name).is_file() for name in names) for names in wanted):
            raise runtime.CheckpointError(
                f"GroundingDINO's text encoder: {folder} has to be the folder of bert-base-uncased, with config.json "
                "and vocab.txt or tokenizer.json"
            )
        return path, folder

    @classmethod
    def tiny(cls) -> "GroundingDINOConfig":
        """Name-seeded weights, small pictures, thresholds that nearly always let something through. Knows nothing."""
        return cls(
            weights="seeded:s0:",
            architecture="tiny",
            short_side=160,
            long_side=256,
            box_threshold=0.05,
            text_threshold=0.02,
            fallback_threshold=0.0,
            batch=1,
            dtype="float32",
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """All queries of one frame. boxes: [Q, 4] xyxy pixels, NaN if outside; named: [Q] probability of the head noun;
    highest: [Q] that of its most probable token; probabilities: [Q, L]."""

    boxes: Boxes
    named: NDArray[np.float32]
    highest: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def best(self, box_threshold: float = -1.0, text_threshold: float = -1.0) -> int | None:
        """The accepted query with the most probable head noun."""
        accepted = (
            is_box(self.boxes) & (self.highest > box_threshold) & (self.named > text_threshold)
        )
        return int(np.argmax(np.where(accepted, self.named, -1.0))) if accepted.any() else None

    def margin(self, query: int) -> float:
        """By how much its score exceeds that of the best box elsewhere in the frame (IoU below 0.5), or 0."""
        elsewhere = iou(self.boxes, self.boxes[query]) < 0.5
        return float(self.named[query] - (self.named[elsewhere].max() if elsewhere.any() else 0.0))


class GroundingDINODetector:
    """Finds the key box from the expression (`pipeline.detect.Detector`). Any number of threads may call it.

    Building one checks that the files are there (CheckpointError); the model is built at first use.
    """

    name = "groundingdino"

    def __init__(self, config: GroundingDINOConfig | None = None):
        self.config = config or GroundingDINOConfig()
        names = [self.config.weights]
        if not runtime.is_seeded(self.config.weights):
            self.config.files()
            names.append(self.config.text_encoder)
        self.version = "+".join(["1", *(runtime.identity(name, "GroundingDINO") for name in names)])
        self._model: GroundingDINO | None = None
        self._loading = threading.Lock()
        self._batcher: Batcher[Item, Answer] = Batcher(self._run, self.config.batch, self.name)

    def load(self) -> None:
        """Build the model now. CheckpointError if its file does not fit."""
        self._load()

    def detect(
        self, frames: NDArray[np.uint8], caption: str, annotation: Annotation, key_frames: int = 1
    ) -> Detection:
        """The best box of `key_frames` frames in which the annotation has the target; they are searched in one batch.

        Raises Quarantined: no_target (never visible), no_detection (nothing above the thresholds), too_large or
        annotation_invalid (an expression the model cannot read).
        """
        config = self.config
        chosen = choose_frames(annotation, key_frames)
        text, found = self._search([frames[t] for t in chosen], caption)
        attempts = [(self.name, config.box_threshold, config.text_threshold)]
        if config.fallback_threshold is not None:
            low = config.fallback_threshold
            attempts.append(
                (
                    f"{self.name}-fallback",
                    min(low, config.box_threshold),
                    min(low, config.text_threshold),
                )
            )
        for origin, box_threshold, text_threshold in attempts:
            best = [c.best(box_threshold, text_threshold) for c in found]
            scores = [
                -1.0 if q is None else float(c.named[q]) for c, q in zip(found, best, strict=True)
            ]
            i = int(np.argmax(scores))  # of equal scores, the earliest frame
            if (query := best[i]) is not None:
                box, margin = found[i].boxes[query].copy(), found[i].margin(query)
                return Detection(
                    chosen[i], box, origin, text_used=True, score=scores[i], margin=margin
                )
        raise Quarantined(Reason.NO_DETECTION, self._nothing(text, found), stage="detect")

    def find(self, frame: NDArray[np.uint8], caption: str) -> tuple[Boxes, float] | None:
        """Box [4] and score in one frame, by the full thresholds alone: a target found again has to be sure."""
        _, (found,) = self._search([frame], caption)
        query = found.best(self.config.box_threshold, self.config.text_threshold)
        return None if query is None else (found.boxes[query].copy(), float(found.named[query]))

    def _search(
        self, frames: Sequence[NDArray[np.uint8]], caption: str
    ) -> "tuple[Text, list[Candidates]]":
        """The caption's tokens, and all queries of each frame; the frames share one size [H, W, 3]."""
        model = self._load()
        try:
            clean = normalise(caption)
        except ValueError as error:
            raise Quarantined(Reason.ANNOTATION_INVALID, str(error), stage="detect") from error
        try:
            text = model.tokenizer(clean)
        except ValueError as error:
            raise Quarantined(Reason.TOO_LARGE, str(error), stage="detect") from error
        pictures = [
            resized(frame, self.config.short_side, self.config.long_side) for frame in frames
        ]
        answers = self._batcher.map(
            [(p, clean) for p in pictures], (*pictures[0].shape[:2], text.bucket)
        )
        height, width = frames[0].shape[:2]
        return text, [candidates(*answer, text, height, width) for answer in answers]

    def _run(self, items: list[Item]) -> list[Answer]:
        """One forward pass. Always `batch` rows (the last is repeated): the same kernels, whoever shares the batch.

        Neighbours change no byte of a row. Its place in the batch can (1e-7 on CPUs, where matrix products treat the
        last rows of a block differently); with batch=1 there is one place.
        """
        import torch

        from pipeline.detect.groundingdino_model import normalised

        model, target = self._load(), runtime.device()
        rows = items + items[-1:] * (self._batcher.batch - len(items))
        images = normalised(torch.from_numpy(np.stack([picture for picture, _ in rows])).to(target))
        outputs = model(images, [caption for _, caption in rows])
        probabilities, boxes = (
            outputs.logits.sigmoid().cpu().numpy(),
            outputs.boxes_cxcywh.cpu().numpy(),
        )
        return [(probabilities[i], boxes[i]) for i in range(len(items))]

    def _load(self) -> "GroundingDINO":
        with self._loading:
            if self._model is None:
                from pipeline.detect.groundingdino_model import make_model

                self._model = make_model(self.config, runtime.device())
            return self._model

    def _nothing(self, text: "Text", found: list[Candidates]) -> str:
        best = [(c.named[q], c.probabilities[q]) for c in found if (q := c.best()) is not None]
        if not best:
            return f"no box inside any of {len(found)} key frames"
        score, probabilities = max(best, key=lambda pair: pair[0])
        phrase = self._load().tokenizer.phrase(
            text, probabilities.tolist(), self.config.text_threshold
        )
        return f"no box is good enough in {len(found)} key frames: the best scores {score:.2f} ({phrase!r})"


def resized(frame: NDArray[np.uint8], short_side: int, long_side: int) -> NDArray[np.uint8]:
    """[H, W, 3] -> the model's size: short side `short_side`, unless the long side would exceed `long_side`.

    The other side is truncated to an integer; bilinear with antialias, as PIL does it (spec: the package's transforms).
    """
    height, width = frame.shape[:2]
    small, large = min(height, width), max(height, width)
    short = (
        round(long_side * small / large) if large / small * short_side > long_side else short_side
    )
    if small == short:
        return frame
    size = (
        (short, int(short * height / width))
        if width < height
        else (int(short * width / height), short)
    )
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def candidates(
    probabilities: NDArray[np.float32],
    boxes_cxcywh: NDArray[np.float32],
    text: "Text",
    height: int,
    width: int,
) -> Candidates:
    """The network's answer for one picture -> boxes in pixels of the frame [height, width], and what they score."""
    known = probabilities[:, : len(text.ids)]
    tokens = text.tokens(head_noun(text.caption)) or list(range(len(text.ids)))
    centre, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    scale = np.array([width, height, width, height], np.float32)
    boxes = clip_boxes(np.concatenate([centre - half, centre + half], 1) * scale, height, width)
    return Candidates(boxes, known[:, tokens].max(1), known.max(1), known)
