"""The clip function: the paper's offline TSF pipeline, top to bottom (Sec. 3.2, Appendix A).

    decode -> detect -> track -> agree -> segment -> corrupt -> crop + encode -> select -> ask -> sample

`corrupt` is Table 10's noise, off by default, and on TSF alone: the track and its masks stay clean. `curate_clip`
decodes a clip once and runs `curate_referent` for each of its referents. Whatever a clip or a referent cannot pass
becomes a quarantine row with stage and reason; it never stops the others.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.agree import Agreement, agree, fill_gaps, track_quality
from pipeline.clip_row import clip_row
from pipeline.corrupt import boxes_in, make_trajectory
from pipeline.detect.annotation import AnnotationDetector
from pipeline.detect.captions import bag
from pipeline.others import others_of, place_others
from pipeline.plan import Job
from pipeline.presets import Stages
from pipeline.questions import ask
from pipeline.sample import TSF, Curated, encode_media, make_sample, quarantine_row
from pipeline.sample_rules import check_masks, check_track
from pipeline.select import SelectConfig, candidates, crop, select_representatives
from pipeline.sources.base import Rules, Source
from pipeline.video import Decoded, decode, media_files
from schemas.geometry import Boxes, is_box, rle_area, rle_box
from schemas.records import (
    Annotation,
    Clip,
    Detection,
    Planned,
    Quarantined,
    Reason,
    Referent,
    Sample,
    Segment,
    Track,
    is_fallback,
)
from trackers.batching import memory_events

DATA_ERRORS = (
    ArithmeticError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    cv2.error,
)
"""What strange data can raise inside a stage. Errors of the machine (OSError, interrupts) are not among them."""

GIVEN = AnnotationDetector()
"""For sources whose tracks start from the annotated box, or are the dataset's own."""


@dataclass(slots=True)
class ClipResult:
    """What became of one clip: samples in the order of its referents, rows, and one timing row per stage."""

    samples: list[Sample] = field(default_factory=list)
    clip_row: dict | None = None
    quarantine: list[dict] = field(default_factory=list)
    timings: list[dict] = field(default_factory=list)


class Clock:
    """Seconds, frames and bytes per stage of one clip."""

    def __init__(self) -> None:
        self.rows: dict[str, list] = {}

    @contextmanager
    def __call__(self, stage: str, frames: int = 0) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            row = self.rows.setdefault(stage, [0.0, 0, 0])
            row[0] += time.perf_counter() - start
            row[1] += frames

    def bytes(self, stage: str, count: int) -> None:
        self.rows.setdefault(stage, [0.0, 0, 0])[2] += count


def curate_clip(planned: Planned, job: Job, source: Source, stages: Stages) -> ClipResult:
    """One clip with all its referents -> samples and rows. Never raises for what is wrong with the data."""
    result, clock, clip = ClipResult(), Clock(), planned.clip
    with memory_events() as events:
        _curate(planned, job, source, stages, result, clock)
    result.timings = [
        {
            "clip_id": clip.clip_id,
            "stage": stage,
            "seconds": seconds,
            "frames": frames,
            "bytes": size,
            "note": "",
        }
        for stage, (seconds, frames, size) in clock.rows.items()
    ] + [
        {
            "clip_id": clip.clip_id,
            "stage": "out of memory",
            "seconds": 0.0,
            "frames": 0,
            "bytes": 0,
            "note": f"{event.model} went on with a batch of {event.batch}",
        }
        for event in events
    ]
    return result


def _curate(
    planned: Planned, job: Job, source: Source, stages: Stages, result: ClipResult, clock: "Clock"
) -> None:
    clip = planned.clip
    try:
        if (
            len(clip) == 0
        ):  # the source could not know the span without a file that is missing: it will say which
            source.annotate(job.root, clip, planned.referents[0])
            raise Quarantined(Reason.ANNOTATION_INVALID, f"{clip.clip_id}: the clip has no frames")
        with stages.loading, clock("decode", len(clip)):
            decoded = decode(job.root, clip, job.config.decode)
            check_sizes(clip, decoded, source)
        clock.bytes("decode", decoded.fingerprint.size)
        with stages.loading, clock("media", len(clip)):
            media = encode_media(decoded, clip, job.config.media)
        clock.bytes("media", sum(map(len, media.values())))
        result.clip_row = clip_row(clip, decoded, job, stages)
        others = _others(planned, decoded, job, source, clock)
        for referent in planned.referents:
            with quarantine(result, job, clip, referent):
                sample = curate_referent(
                    clip, referent, decoded, job, source, stages, clock, others
                )
                sample.members |= media
                result.samples.append(sample)
    except Quarantined as problem:
        result.samples.clear()
        result.quarantine = [
            quarantine_row(job, problem, clip.clip_id, r.referent_id) for r in planned.referents
        ]
    except DATA_ERRORS as error:
        result.samples.clear()
        result.quarantine = [
            quarantine_row(job, error, clip.clip_id, r.referent_id) for r in planned.referents
        ]


def curate_referent(
    clip: Clip,
    referent: Referent,
    decoded: Decoded,
    job: Job,
    source: Source,
    stages: Stages,
    clock: Clock,
    others: Sequence[tuple[Referent, Boxes]] = (),
) -> Sample:
    """The paper's pipeline for one referring expression. Raises Quarantined with the stage that gave up.
    others: targets of the same video with their boxes [T, 4], for id switches."""
    config, rules, frames = job.config, source.config.rules, decoded.frames
    with clock("annotate", len(frames)):
        annotation = _rescale(source.annotate(job.root, clip, referent), decoded)
    detector = stages.detector if rules.boxes == "tracked" and rules.start == "detector" else GIVEN
    with clock("detect", rules.key_frames):
        detection = detector.detect(frames, referent.caption, annotation, rules.key_frames)
    with clock("track", len(frames)):
        track = make_track(frames, referent.caption, detection, annotation, rules, stages)
    agreement = agree(track, annotation, rules)
    if not agreement.kept.any():
        raise Quarantined(Reason.DISAGREES, _why_dropped(agreement), stage="agree")
    quality = track_quality(track, agreement, rules)
    check_track(agreement, annotation, quality, source.config.sample)
    with clock("segment", int(agreement.kept.sum())):
        made_masks = make_masks(frames, track, agreement, annotation, rules, stages)
        segments = [s if s is not None and not s.dropped else None for s in made_masks]
    check_masks(segments, source.config.sample)
    if rules.boxes_from_masks:
        track = boxes_from_masks(track, segments)
    boxes = boxes_in(track, agreement.kept)
    others_t4 = others_of(referent, boxes, others)
    trajectory = make_trajectory(
        boxes, config.corrupt, referent.referent_id, frames.shape[1:3], others_t4
    )
    tsf = make_tsf(frames, trajectory.boxes, config.select, stages, clock)
    questions = config.questions.model_copy(update={"per_referent": job.questions_per_referent()})
    qas = ask(referent.referent_id, referent.caption, questions)
    with clock("sample", len(frames)):
        dropped = sum(s is not None and bool(s.dropped) for s in made_masks)
        made = Curated(
            decoded.times,
            annotation,
            detection,
            track,
            agreement,
            quality,
            segments,
            dropped,
            trajectory,
            tsf,
            qas,
        )
        return make_sample(clip, referent, made, rules, job, stages)


def _others(
    planned: Planned, decoded: Decoded, job: Job, source: Source, clock: Clock
) -> list[tuple[Referent, Boxes]]:
    """The other targets that the plan has for a clip, with their boxes. One that cannot be read harms no sample."""

    def read(clip: Clip, referent: Referent) -> Annotation | None:
        try:
            return source.annotate(job.root, clip, referent)
        except (Quarantined, *DATA_ERRORS):
            return None

    if not planned.others:
        return []
    with clock("corrupt", len(planned.clip)):
        return place_others(planned, read, decoded.scale, decoded.frames.shape[1:3])


def make_tsf(
    frames: NDArray[np.uint8], boxes: Boxes, config: SelectConfig, stages: Stages, clock: Clock
) -> TSF:
    """Crop and encode candidates of a trajectory, and select K of them, in time order.

    boxes: [T, 4], absent where no crop may be cut. The last one is repeated where there are fewer than K.
    """
    chosen = candidates(is_box(boxes), config.max_candidates)
    with clock("encode", len(chosen)):
        crops = [crop(frames[t], boxes[t], config.crop_margin) for t in chosen]
        features = stages.encoder.encode(crops)
    with clock("select", len(chosen)):
        picks = select_representatives(
            features,
            boxes[chosen],
            frames.shape[1:3],
            k=config.k,
            spatial_weight=config.spatial_weight,
        )
    padded = [int(picks[min(rank, len(picks) - 1)]) for rank in range(config.k)]
    return TSF(
        frames=[int(chosen[i]) for i in padded],
        repeated=[rank >= len(picks) for rank in range(config.k)],
        crops=[crops[i] for i in padded],
        features=features[padded].astype(np.float16),
        n_candidates=len(chosen),
        patch_tokens=stages.encoder.patch_tokens([crops[i] for i in padded]),
    )


# --- track, masks --------------------------------------------------------------------------------------------------


def make_track(
    frames: NDArray[np.uint8],
    caption: str,
    detection: Detection,
    annotation: Annotation,
    rules: Rules,
    stages: Stages,
) -> Track:
    """One box per frame, by the source's rule: tracked from the key frame, or the dataset's own with gaps bridged.

    A tracker that loses a target which was found from its text may ask for it again.
    """
    if rules.boxes == "tracked":

        def redetect(frame: NDArray[np.uint8]) -> tuple[Boxes, float] | None:
            return stages.detector.find(frame, caption)

        [track] = stages.tracker.track(
            frames,
            detection.box[None],
            detection.frame,
            redetect=redetect if detection.text_used else None,
            descriptions=bag(caption),
        )
        track.origin[detection.frame] = (
            "annotation" if detection.detector == "annotation" else "detected"
        )
        return track
    origin = "mask" if rules.boxes == "masks" else "annotation"
    visible = annotation.visible
    given = Track(
        annotation.boxes.copy(),
        np.full(len(frames), np.nan, np.float32),
        [origin if v else "none" for v in visible],
    )
    return (
        fill_gaps(given, annotation, frames, stages.tracker, rules.fill_gaps)
        if rules.fill_gaps
        else given
    )


def make_masks(
    frames: NDArray[np.uint8],
    track: Track,
    agreement: Agreement,
    annotation: Annotation,
    rules: Rules,
    stages: Stages,
) -> list[Segment | None]:
    """A mask for each kept frame: the dataset's, or one made from the track's box."""
    if rules.masks == "none":
        return [None] * len(frames)
    masks: list[Segment | None] = [None] * len(frames)
    wanted = agreement.kept.copy()
    if rules.masks == "annotation" and annotation.masks is not None:
        for t in np.flatnonzero(wanted).tolist():
            mask = annotation.masks[t]
            if mask is not None:
                masks[t], wanted[t] = Segment(mask, "annotation"), False
    if wanted.any():
        boxes = np.where(wanted[:, None], track.boxes, np.nan).astype(np.float32)
        for t, segment in enumerate(stages.segmenter.segment(frames, boxes)):
            masks[t] = segment if segment is not None else masks[t]
    return masks


def boxes_from_masks(track: Track, segments: list[Segment | None]) -> Track:
    """The track with each box replaced by the one around its mask. A fallback mask says nothing new: its box stays."""
    boxes, origin = track.boxes.copy(), list(track.origin)
    for t, segment in enumerate(segments):
        if segment is not None and not is_fallback(segment) and rle_area(segment.mask):
            boxes[t], origin[t] = rle_box(segment.mask), "mask"
    return Track(boxes, track.score, origin)


def check_sizes(clip: Clip, decoded: Decoded, source: Source) -> None:
    """Quarantined(frame_mismatch) where boxes would sit on other pixels than their annotator saw: a picture of another
    size than the annotation states, or images of one clip that differ. Sources with `sizes_vary` (GOT-10k) are let
    through: their boxes are in the pixels of each image, and `_rescale` takes them along.
    """
    if getattr(source, "sizes_vary", False):
        return
    height, width = decoded.frames.shape[1:3]
    for t in np.flatnonzero((decoded.scale != 1).any(1))[:1].tolist():
        own = "x".join(str(round(n)) for n in (width, height) / decoded.scale[t])
        message = f"{media_files(clip)[t]}: the image is {own}, the first one of the clip {width}x{height}"
        raise Quarantined(Reason.FRAME_MISMATCH, message, stage="decode")
    if clip.height and clip.width and (clip.height, clip.width) != (height, width):
        stated = f"the annotation is for {clip.width}x{clip.height}"
        message = f"{clip.media.path}: pictures are {width}x{height}, {stated}"
        raise Quarantined(Reason.FRAME_MISMATCH, message, stage="decode")


def _rescale(annotation: Annotation, decoded: Decoded) -> Annotation:
    """Boxes follow the frames that were resized (GOT-10k changes size inside a sequence); raw numbers stay raw.

    No dataset's masks are of another size than its pictures (A2D's are transposed, which its source undoes; SA-V states
    both sizes, and they agree), so such a mask belongs to another picture: Quarantined(frame_mismatch).
    """
    height, width = decoded.frames.shape[1:3]
    for t, mask in enumerate(annotation.masks or []):
        if mask is not None and list(mask["size"]) != [height, width]:
            size = f"{mask['size'][1]}x{mask['size'][0]}"
            message = f"the mask of frame {t} of the clip is {size}, the picture {width}x{height}"
            raise Quarantined(Reason.FRAME_MISMATCH, message, stage="annotate")
    if (decoded.scale == 1).all():
        return annotation
    factors = np.tile(decoded.scale, 2)
    masks = annotation.masks
    if masks is not None and any(m is not None for m in masks):
        raise Quarantined(
            Reason.FRAME_MISMATCH, "images of a clip with masks differ in size", stage="decode"
        )
    boxes = (annotation.boxes * factors).astype(np.float32)
    return Annotation(boxes, annotation.known, masks, annotation.raw_boxes, annotation.raw_format)


def _why_dropped(agreement: Agreement) -> str:
    reasons = {r: agreement.dropped.count(r) for r in sorted(set(agreement.dropped)) if r}
    return "no frame is left: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())


@contextmanager
def quarantine(result: ClipResult, job: Job, clip: Clip, referent: Referent) -> Iterator[None]:
    """One referent's failure becomes one row. Errors of the machine (disk, interrupts) pass through."""
    try:
        yield
    except Quarantined as problem:
        result.quarantine.append(quarantine_row(job, problem, clip.clip_id, referent.referent_id))
    except DATA_ERRORS as error:
        result.quarantine.append(quarantine_row(job, error, clip.clip_id, referent.referent_id))
