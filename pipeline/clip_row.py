"""The row of a clip in `manifests/clips`: its span, what its file is like, and what it was made by."""

from pipeline.plan import Job
from pipeline.presets import Stages
from pipeline.sample import CODE_VERSION
from pipeline.video import Decoded
from schemas.records import Clip
from schemas.video.orientation import TURN_NAMES

VIDEO_COLUMNS = (
    "container",
    "codec",
    "video_stream",
    "n_video_streams",
    "orientation",
    "pixel_aspect",
    "colour",
    "variable_rate",
    "n_interlaced",
    "n_concealed",
)
"""Columns of `clips` that say what a video file is like."""


def clip_row(clip: Clip, decoded: Decoded, job: Job, stages: Stages) -> dict:
    height, width = decoded.frames.shape[1:3]
    return {
        "clip_id": clip.clip_id,
        "source": clip.source,
        "split": clip.split,
        "video_id": clip.video_id,
        "media_kind": clip.media.kind,
        "media_path": clip.media.path,
        "start": clip.start,
        "stop": clip.stop,
        "step": clip.step,
        "n_frames": len(clip),
        "fps": decoded.fps or clip.fps,
        "height": height,
        "width": width,
        "n_resized": int((decoded.scale != 1).any(1).sum()),
        "source_bytes": decoded.fingerprint.size,
        "source_mtime_ns": decoded.fingerprint.mtime_ns,
        "source_sha256": decoded.fingerprint.sha256,
        "decoder": decoded.decoder,
        **_video_columns(decoded),
        "media": job.config.media.media,
        "media_gop": job.config.media.gop,
        "licence": clip.licence,
        "preset": job.config.preset,
        "config_hash": job.config.digest(),
        "code_version": CODE_VERSION,
        "weights_hash": stages.digest,
    }


def _video_columns(decoded: Decoded) -> dict:
    """What the file of a clip is like; NULLs for images."""
    index = decoded.index
    if index is None:
        return dict.fromkeys(VIDEO_COLUMNS)
    values = (
        index.container,
        index.codec,
        index.stream,
        index.streams,
        TURN_NAMES[index.turn],
        index.pixel_aspect,
        index.colour,
        index.variable_rate,
        index.interlaced,
        decoded.concealed,
    )
    return dict(zip(VIDEO_COLUMNS, values, strict=True))
