"""TSF at inference (Table 4's "train + infer"): the representatives of a target out of a video and a phrase.

    GroundingDINO on the prompted frame -> CLDTracker -> crops -> CLIP -> K-means

by the same functions and models as curation (`pipeline.curate`, presets of `pipeline.presets`), so that a prompt looks
the same in training and here. There is no annotation to agree with: every box that the tracker believes is a candidate.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.curate import GIVEN, Clock, make_track
from pipeline.detect.annotation import AnnotationDetectorConfig
from pipeline.presets import PRESETS, build_stages
from pipeline.segment.grabcut import GrabCutConfig
from pipeline.select import candidates, crop, evenly_spaced, select_representatives
from pipeline.sources.base import Rules
from schemas.geometry import Boxes, absent, is_box
from schemas.records import Annotation, Detection, Quarantined, Reason, Track

Preset = Literal["full", "full-tiny", "lite"]
LOOKS = 8
"""Frames searched, evenly over the video, where the prompted one does not have the target. The paper has the first
frame only."""


@dataclass(frozen=True)
class Representatives:
    """What curation would store of this target, and how it came about."""

    detection: Detection
    track: Track
    frames: list[int]
    """Of the crops, in time order; the last again where the track has fewer than K."""
    crops: list[NDArray[np.uint8]]
    candidates: list[NDArray[np.uint8]]
    """All crops that were chosen from: what a model with `tsf.selection="online"` (the release) is given."""


class Extractor:
    """The pipeline's detector, tracker, encoder and selection in this process; many videos and phrases.

    preset: "full", "full-tiny" (name-seeded weights: knows nothing), or "lite", whose detector is a given box. boxes:
    every target comes with its box, so that no detector is loaded. CheckpointError lists weight files that are missing.
    """

    def __init__(self, preset: Preset, *, boxes: bool = False):
        changes: dict[str, Any] = {
            "segment": GrabCutConfig()
        }  # there are no masks to make: no SAM2 is needed here
        if boxes:
            changes["detect"] = AnnotationDetectorConfig()
        self.config = PRESETS[preset].model_copy(update=changes)
        self.stages = build_stages(self.config)
        self.clock = Clock()
        """Seconds and frames of each stage so far."""

    def warm_up(self, frames: Any) -> None:
        """Load every model and use it once, unclocked: first calls cost seconds that say nothing of a second one."""
        self.stages.load()
        height, width = frames.shape[1:3]
        if self.detects:
            self.look(frames, "a thing", [0])
        middle = (np.array([width, height, 3 * width, 3 * height]) / 4).astype(np.float32)
        self(frames[: self.config.select.k + 2], "a thing", 0, middle)
        self.clock = Clock()

    @property
    def detects(self) -> bool:
        """Whether a target is found from words; otherwise its box has to be given."""
        return self.config.detect.kind != "annotation"

    def __call__(
        self, frames: Any, phrase: str, frame: int = 0, box: Boxes | None = None
    ) -> Representatives:
        """frames: [T, H, W, 3] uint8 RGB, an array or a `Video`, which is read as the tracker goes on. box: xyxy of the
        target on `frame`, in pixels; without it the phrase is looked for there, and then elsewhere.

        Quarantined, as in curation, if there is no target to follow. ValueError without box and detector.
        """
        detection = (
            self._given(frames, frame, box) if box is not None else self.find(frames, phrase, frame)
        )
        rules = Rules(start="detector" if detection.text_used else "annotation", min_iou=None)
        nothing = Annotation(absent(len(frames)), np.zeros(len(frames), bool))
        with self.clock("track", len(frames) - 1):
            track = make_track(frames, phrase, detection, nothing, rules, self.stages)
        select = self.config.select
        chosen = candidates(track.visible, select.max_candidates)
        with self.clock("encode", len(chosen)):
            crops = [crop(frames[int(t)], track.boxes[t], select.crop_margin) for t in chosen]
            features = self.stages.encoder.encode(crops)
        with self.clock("select", 1):
            picks = select_representatives(
                features,
                track.boxes[chosen],
                frames.shape[1:3],
                k=select.k,
                spatial_weight=select.spatial_weight,
            ).tolist()
        picks += picks[-1:] * (select.k - len(picks))
        return Representatives(
            detection, track, [int(chosen[i]) for i in picks], [crops[i] for i in picks], crops
        )

    def find(self, frames: Any, phrase: str, frame: int = 0) -> Detection:
        """The phrase on `frame`, or where it is surest of `LOOKS` others. Quarantined(no_detection) if it is nowhere;
        ValueError without a detector."""
        if not self.detects:
            raise ValueError(
                f"TSF preset {self.config.preset} has no detector here, it follows a box that is given: "
                f"--box x1,y1,x2,y2, the target on frame {frame} in pixels; or take preset full"
            )
        for wanted in ([frame], evenly_spaced(len(frames), LOOKS).tolist()):
            with self.clock("detect", len(wanted)):
                found = self.look(frames, phrase, wanted)
            if found is not None:
                return found
        raise Quarantined(
            Reason.NO_DETECTION, f"{phrase!r} was found in no frame of {LOOKS}", stage="detect"
        )

    def look(self, frames: Any, phrase: str, wanted: list[int]) -> Detection | None:
        """The best box of the phrase on the wanted frames, searched in one batch."""
        height, width = frames.shape[1:3]
        whole = np.tile(np.array([0, 0, width, height], np.float32), (len(wanted), 1))
        anywhere = Annotation(whole, np.ones(len(wanted), bool))
        try:
            found = self.stages.detector.detect(frames[wanted], phrase, anywhere, len(wanted))
        except Quarantined as problem:
            if problem.reason != Reason.NO_DETECTION:
                raise
            return None
        return replace(found, frame=wanted[found.frame])

    def _given(self, frames: Any, frame: int, box: Boxes) -> Detection:
        boxes = absent(len(frames))
        boxes[frame] = box
        if not is_box(boxes[frame]):
            raise ValueError(f"box {list(box)}: x1,y1,x2,y2 in pixels, with x2 > x1 and y2 > y1")
        return GIVEN.detect(frames, "", Annotation(boxes, is_box(boxes)))
