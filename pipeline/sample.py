"""Sample: what one referent becomes. Members of a shard, rows of the manifests, and the rows of what was dropped."""

import hashlib
import io
import tarfile
import traceback
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.agree import Agreement, TrackQuality
from pipeline.corrupt import Trajectory
from pipeline.plan import Job
from pipeline.presets import MediaConfig, Stages
from pipeline.sources.base import Rules
from pipeline.video import Decoded
from schemas import SCHEMA_VERSION
from schemas.config import canonical_json
from schemas.geometry import is_box, rle_area
from schemas.records import (
    ORIGINS,
    QA,
    RETRYABLE,
    Annotation,
    Clip,
    Detection,
    Quarantined,
    Reason,
    Referent,
    Rejected,
    Sample,
    Segment,
    Track,
    is_fallback,
)
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4

CODE_VERSION = "0.6.0"
"""Version of this function: raise it whenever samples would change, so that finished shards are known to be old."""

TRACK_DTYPE = np.dtype(
    [
        ("frame", "<i4"),
        ("source_frame", "<i8"),
        ("x1", "<f4"),
        ("y1", "<f4"),
        ("x2", "<f4"),
        ("y2", "<f4"),
        ("score", "<f4"),
        ("iou", "<f4"),
        ("origin", "u1"),
        ("known", "?"),
        ("kept", "?"),
        ("ann_x1", "<f4"),
        ("ann_y1", "<f4"),
        ("ann_x2", "<f4"),
        ("ann_y2", "<f4"),
        ("fallback", "?"),
    ]
)
"""Rows of the `.track.npy` member: one per frame of the clip. `origin` indexes `schemas.records.ORIGINS`, `ann_*` is the
annotated box (NaN where there is none), `fallback` marks a mask that is no segmentation."""


@dataclass(slots=True)
class TSF:
    """The K representatives of a track, in time order; `repeated` marks padding where fewer than K were usable."""

    frames: list[int]
    repeated: list[bool]
    crops: list[NDArray[np.uint8]]
    features: NDArray[np.float16]
    n_candidates: int
    patch_tokens: NDArray[np.float16] | None = None


@dataclass(slots=True)
class Curated:
    """Everything the stages made for one referent. `quality`: of the tracker's boxes beside the annotation's. `times`:
    [T] seconds, NaN where the video has no clock. `trajectory`: the boxes that `tsf` is made of, noise included."""

    times: NDArray[np.float64]
    annotation: Annotation
    detection: Detection
    track: Track
    agreement: Agreement
    quality: TrackQuality
    segments: list[Segment | None]
    dropped_masks: int
    trajectory: Trajectory
    tsf: TSF
    qas: list[QA]


# --- what goes into the shard --------------------------------------------------------------------------------------


def encode_media(decoded: Decoded, clip: Clip, config: MediaConfig) -> dict[str, bytes]:
    """The clip's pixels as one member: `.mp4`, `.frames.tar` (a tar of JPEGs named by frame), or nothing."""
    if config.media == "none":
        return {}
    if config.media == "mp4":
        fps = (decoded.fps or clip.fps or 25.0) / clip.step
        return {"mp4": encode_mp4(decoded.frames, fps, gop=config.gop, crf=config.crf)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for t, picture in enumerate(decoded.frames):
            add_member(tar, f"{t:06d}.jpg", encode_jpeg(picture, config.jpeg_quality))
    return {"frames.tar": buffer.getvalue()}


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file with nothing of today in its header: mtime 0, uid/gid 0, mode 0444."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), 0, 0o444
    tar.addfile(info, io.BytesIO(data))


def npy(array: NDArray) -> bytes:
    """`.npy` bytes, never pickled."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def make_sample(
    clip: Clip, referent: Referent, made: Curated, rules: Rules, job: Job, stages: Stages
) -> Sample:
    """The members and table rows of one referent."""
    annotation, detection, track, agreement = (
        made.annotation,
        made.detection,
        made.track,
        made.agreement,
    )
    tsf, qas, raw = made.tsf, made.qas, made.annotation.raw_boxes
    ids = {"referent_id": referent.referent_id, "clip_id": clip.clip_id}
    place = {"source": clip.source, "split": clip.split}
    source_frames = list(clip.source_frames)
    masks = {t: s for t, s in enumerate(made.segments) if s is not None}
    referent_row = {
        **ids,
        **place,
        "video_id": clip.video_id,
        "caption": referent.caption,
        "raw_caption": referent.raw_caption or referent.caption,
        "category": referent.category,
        "object_ids": list(referent.object_ids),
        "n_objects": max(1, len(referent.object_ids)),
        "n_frames": len(clip),
        "n_known": int(annotation.known.sum()),
        "n_visible": int(annotation.visible.sum()),
        "n_boxes": int(track.visible.sum()),
        "n_kept": int(agreement.kept.sum()),
        "n_masks": len(masks),
        "n_qa": len(qas),
        "key_frame": detection.frame,
        "detector": detection.detector,
        "detector_score": detection.score,
        "detector_margin": detection.margin,
        "text_used": detection.text_used,
        "tracker": stages.tracker.name,
        "segmenter": stages.segmenter.name,
        "encoder": stages.encoder.name,
        "box_rule": rules.boxes,
        "mask_rule": rules.masks,
        "mean_iou": made.quality.mean_iou,
        "n_compared": made.quality.n_compared,
        "iou_coverage": made.quality.iou_coverage,
        "n_fallback_masks": sum(map(is_fallback, masks.values())),
        "n_dropped_masks": made.dropped_masks,
        **_noise(job, made.trajectory),
        "preset": job.config.preset,
    }
    track_rows = [
        {
            **ids,
            "frame": t,
            "source_frame": source_frames[t],
            "time": float(made.times[t]) if np.isfinite(made.times[t]) else None,
            **_box(track.boxes[t]),
            "origin": track.origin[t],
            "score": float(track.score[t]),
            "known": bool(annotation.known[t]),
            **_box(annotation.boxes[t], "ann_"),
            **{f"raw_{i}": None if raw is None else float(raw[t, i]) for i in range(4)},
            "raw_format": annotation.raw_format,
            "iou": float(agreement.iou[t]),
            "kept": bool(agreement.kept[t]),
            "dropped": agreement.dropped[t],
        }
        for t in range(len(clip))
    ]
    mask_rows = [
        {
            **ids,
            "frame": t,
            "source_frame": source_frames[t],
            "origin": s.origin,
            "score": s.score,
            "box_iou": s.box_iou,
            "area": rle_area(s.mask),
            "height": s.mask["size"][0],
            "width": s.mask["size"][1],
            "counts": s.mask["counts"],
        }
        for t, s in masks.items()
    ]
    tsf_rows = [
        {
            **ids,
            "rank": rank,
            "frame": t,
            "source_frame": source_frames[t],
            **_box(made.trajectory.boxes[t]),
            "crop_height": tsf.crops[rank].shape[0],
            "crop_width": tsf.crops[rank].shape[1],
            "repeated": tsf.repeated[rank],
            "n_candidates": tsf.n_candidates,
            "encoder": stages.encoder.name,
        }
        for rank, t in enumerate(tsf.frames)
    ]
    feature_rows = [
        {
            "referent_id": referent.referent_id,
            "rank": rank,
            "encoder": stages.encoder.name,
            "feature": feature.tolist(),
        }
        for rank, feature in enumerate(tsf.features)
    ]
    qa_rows = [
        {
            **ids,
            **place,
            "qa_id": q.qa_id,
            "family": q.family,
            "template": q.template,
            "question": q.question,
            "answer": q.answer,
        }
        for q in qas
    ]
    description = {
        "schema_version": SCHEMA_VERSION,
        "referent": {
            k: v for k, v in referent_row.items() if not isinstance(v, float) or np.isfinite(v)
        },
        "clip": {
            "start": clip.start,
            "stop": clip.stop,
            "step": clip.step,
            "media_path": clip.media.path,
            "licence": clip.licence,
        },
        "tsf": [
            {k: r[k] for k in ("rank", "frame", "x1", "y1", "x2", "y2", "repeated")}
            for r in tsf_rows
        ],
        "qa": [{k: r[k] for k in ("qa_id", "family", "question", "answer")} for r in qa_rows],
        "provenance": {
            "preset": job.config.preset,
            "config": job.config.digest(),
            "code": CODE_VERSION,
            "stages": stages.versions,
        },
    }
    members = {
        "json": canonical_json(description).encode(),
        "track.npy": npy(_track_array(track_rows, masks)),
        "tsf.npy": npy(tsf.features),
        **({"tsf_patches.npy": npy(tsf.patch_tokens)} if tsf.patch_tokens is not None else {}),
        **{f"crop{rank}.jpg": encode_jpeg(picture, 95) for rank, picture in enumerate(tsf.crops)},
        "masks.json": canonical_json({str(t): s.mask for t, s in masks.items()}).encode(),
    }
    rows: dict[str, list[dict]] = {
        "referents": [referent_row],
        "tracks": track_rows,
        "masks": mask_rows,
        "tsf": tsf_rows,
        "tsf_features": feature_rows,
        "qa": qa_rows,
    }
    return Sample(referent.referent_id, members, rows)


def _noise(job: Job, trajectory: Trajectory) -> dict[str, str | float | int | None]:
    """The columns of `referents` about noise on purpose."""
    noise = job.config.corrupt
    return {
        "corruption": noise.kind,
        "corruption_level": None if noise.kind == "none" else noise.level,
        "n_corrupted": trajectory.n_corrupted,
        "n_corruptible": trajectory.n_corruptible,
        "n_switchable": trajectory.n_switchable,
    }


def _box(box: NDArray[np.float32], prefix: str = "") -> dict[str, float | None]:
    values = [float(v) for v in box] if is_box(box) else [None] * 4
    return dict(
        zip((f"{prefix}x1", f"{prefix}y1", f"{prefix}x2", f"{prefix}y2"), values, strict=True)
    )


def _track_array(rows: list[dict], masks: dict[int, Segment]) -> NDArray:
    array = np.zeros(len(rows), TRACK_DTYPE)
    array["fallback"] = [t in masks and is_fallback(masks[t]) for t in range(len(rows))]
    for name in array.dtype.names or ():
        if name == "fallback":
            continue
        values = [row[name] for row in rows]
        if name == "origin":
            array[name] = [ORIGINS.index(v) for v in values]
        else:
            array[name] = [np.nan if v is None else v for v in values]
    return array


# --- what goes into quarantine --------------------------------------------------------------------------------------


def quarantine_row(
    job: Job, error: BaseException, clip_id: str, referent_id: str | None, attempt: int = 1
) -> dict:
    """The row of `manifests/quarantine` for an exception; `where` is the line of code of an unexpected one.

    Nothing of today is in it: when an item was first and last dropped is in `runs.dropped` (`manifests.quarantine`).
    """
    known = error if isinstance(error, Quarantined) else None
    reason = known.reason if known else Reason.STAGE_ERROR
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return {
        "source": job.source,
        "split": job.split,
        "clip_id": clip_id,
        "referent_id": referent_id,
        "stage": known.stage if known else module.rsplit(".", 1)[-1] or "curate",
        "reason": str(reason),
        "error_class": type(error).__name__,
        "message": job.root.words(known.message if known else f"{type(error).__name__}: {error}")[
            :2000
        ],
        "where": "" if known or trace is None else f"{module}:{trace.tb_lineno}",
        "traceback_hash": traceback_hash(error),
        "attempt": attempt,
        "retryable": reason in RETRYABLE,
    }


def traceback_hash(error: BaseException) -> str:
    """Equal for failures that took the same way through the code: of the error's class and, from its origin outwards,
    each distinct `module:function`. No line numbers: it outlives edits elsewhere in a file. Empty for an error that was
    never raised.

    Distinct: an error that a model raised for many waiting threads carries the way of each of them.
    """
    frames = [
        f"{frame.f_globals.get('__name__', '')}:{frame.f_code.co_name}"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    words = [type(error).__name__, *dict.fromkeys(reversed(frames))]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16] if frames else ""


def rejected_row(rejected: Rejected) -> dict:
    """The quarantine row of what the plan could not read."""
    clip_id, referent_id = rejected.quarantined_as
    return {
        "source": rejected.source,
        "split": rejected.split,
        "clip_id": clip_id,
        "referent_id": referent_id,
        "stage": "plan",
        "reason": str(rejected.reason),
        "error_class": "",
        "message": rejected.message,
        "where": rejected.where,
        "traceback_hash": "",
        "attempt": 1,
        "retryable": rejected.reason in RETRYABLE,
    }
