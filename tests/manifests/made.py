"""A small whole output: every source, hand-made boxes and masks, committed by the pipeline's own code.

Each clip has two targets over FRAMES frames. Target 0 is absent in AWAY, and in a tracked source its box of frame LOST
disagrees and is dropped: a box, and no mask. Target 1 is there throughout.
"""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline.agree import Agreement, TrackQuality
from pipeline.corrupt import Trajectory
from pipeline.curate import ClipResult
from pipeline.plan import Job, ShardPlan
from pipeline.presets import configure
from pipeline.sample import TSF, Curated, add_member, make_sample
from pipeline.shards import commit_shard, stage_clip, staged_path
from pipeline.sources.base import Rules
from schemas import tables
from schemas.geometry import rle_encode
from schemas.records import (
    QA,
    Annotation,
    Clip,
    Detection,
    Media,
    Planned,
    Referent,
    Segment,
    Track,
)
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4

FRAMES, AWAY, LOST = 12, (4, 5), 8
MASKED = ("mevis", "refsav")
CAPTIONS = ("The red square, which moves.", "a blue | one")
SIZES = {"refsav": (96, 160)}
SIZE = (97, 161)
"""Odd: stored videos are padded."""
PATHS = {
    "vid_sentence": "Data/VID/train/ILSVRC2015_VID_train_0003/v",
    "refsav": "sam_v_full/sav_train/sav_007/v.mp4",
}
CATEGORIES = {"lasot": "kite", "hcstvg": "person"}
SPLITS = {
    "hcstvg": "train",
    "vid_sentence": "train",
    "a2d": "test",
    "lasot": "train",
    "mevis": "valid_u",
    "got10k": "val",
    "refsav": "train",
}


def boxes(target: int) -> np.ndarray:
    """[T, 4] with thirds of pixels, which text must not lose."""
    t = np.arange(FRAMES)
    x, y = (5 + 3 * t + 1 / 3, 7 + t) if target == 0 else (120 - 4 * t, 50 - t + 2 / 3)
    xyxy = np.stack([x, y, x + 30, y + 24], 1).astype(np.float32)
    if target == 0:
        xyxy[list(AWAY)] = np.nan
    return xyxy


def mask(box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    area = np.zeros(size, bool)
    x1, y1, x2, y2 = box.round().astype(int)
    area[y1:y2, x1:x2] = True
    area[y1, x1] = False  # not just a box
    return area


def pictures(size: tuple[int, int]) -> np.ndarray:
    frames = np.full((FRAMES, *size, 3), 128, np.uint8)
    for target, colour in enumerate([(220, 30, 30), (30, 30, 220)]):
        for t, box in enumerate(boxes(target)):
            if np.isfinite(box[0]):
                frames[t][mask(box, size)] = colour
    return frames


def make_whole(out: Path, sources: tuple[str, ...] = tuple(SPLITS)) -> Path:
    """One shard with one clip of two targets per source. A2D's media is JPEGs, the others' mp4."""
    for source in sources:
        _shard(out, source, SPLITS[source])
    run = dict.fromkeys(tables.schema("runs").names) | {
        "run_id": "r0",
        "source": sources[0],
        "synthetic": True,
    }
    (out / "manifests" / "runs").mkdir(parents=True)
    tables.write(out / "manifests" / "runs" / "r0.parquet", "runs", [run])
    return out


def _shard(out: Path, source: str, split: str) -> None:
    size = SIZES.get(source, SIZE)
    config = configure("lite")
    job = Job(source=source, split=split, data_root="/", out=str(out), config=config)
    media = Media("video", PATHS.get(source, "videos/v.mp4"))
    step = 4 if source == "refsav" else 1
    video = "kite-3" if source == "lasot" else "../v.1"
    clip_id = f"{source}-{split}-v"
    clip = Clip(
        clip_id,
        source,
        split,
        video,
        media,
        0,
        FRAMES * step,
        step,
        24.0,
        *size,
        licence=f"terms of {source}",
    )
    frames = pictures(size)
    stored = _frames_tar(frames) if source == "a2d" else {"mp4": encode_mp4(frames, 24.0, crf=1)}
    referents, samples = [], []
    for i, caption in enumerate(CAPTIONS):
        referent = Referent(
            f"{clip_id}-{i}", clip_id, caption, (str(i),), CATEGORIES.get(source, "")
        )
        referents.append(referent)
        sample = make_sample(clip, referent, curated(source, i, size), Rules(), job, STAGES)
        sample.members |= stored
        samples.append(sample)
    row = dict.fromkeys(tables.schema("clips").names) | {
        "clip_id": clip_id,
        "source": source,
        "split": split,
        "video_id": video,
        "media_path": media.path,
        "media": "frames" if source == "a2d" else "mp4",
        "start": 0,
        "stop": clip.stop,
        "step": step,
        "n_frames": FRAMES,
        "fps": 24.0,
        "height": size[0],
        "width": size[1],
        "licence": clip.licence,
    }
    del row["shard"]
    shard = ShardPlan(f"{source}-{split}-000000", 0, "hash", (Planned(clip, tuple(referents)),))
    stage_clip(staged_path(out, shard, clip_id), ClipResult(samples, row))
    commit_shard(job, shard, dim=3)


def curated(source: str, target: int, size: tuple[int, int]) -> Curated:
    box, tracked = boxes(target), source not in MASKED
    there = np.isfinite(box[:, 0])
    kept = there.copy()
    if tracked and target == 0:
        kept[LOST] = False
    dropped = [
        "" if k else ("low_iou" if h else "no_box") for k, h in zip(kept, there, strict=True)
    ]
    origin = [("tracked" if tracked else "mask") if h else "none" for h in there]
    segments = [
        Segment(rle_encode(mask(b, size)), "made") if k else None
        for b, k in zip(box, kept, strict=True)
    ]
    return Curated(
        np.arange(FRAMES) / 25,
        Annotation(box, np.ones(FRAMES, bool)),
        Detection(0, box[0], "annotation", False),
        Track(box, np.full(FRAMES, np.nan, np.float32), origin),
        Agreement(np.where(there, 0.9, np.nan).astype(np.float32), kept, dropped),
        TrackQuality(0.9, int(there.sum()), 1.0 if tracked else None),
        segments,
        0,
        Trajectory(np.where(kept[:, None], box, np.nan), int(kept.sum())),
        TSF(
            [0, 1, 2, 3],
            [False] * 4,
            [np.zeros((8, 8, 3), np.uint8)] * 4,
            np.zeros((4, 3), np.float16),
            9,
        ),
        [QA(f"{source}-{target}-q0", "region", 0, "What is the <region> doing?", CAPTIONS[target])],
    )


STAGES = SimpleNamespace(
    tracker=SimpleNamespace(name="made"),
    segmenter=SimpleNamespace(name="made"),
    encoder=SimpleNamespace(name="made"),
    versions={},
    digest="",
)


def _frames_tar(frames: np.ndarray) -> dict[str, bytes]:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for t, frame in enumerate(frames):
            add_member(tar, f"{t:06d}.jpg", encode_jpeg(frame, 95))
    return {"frames.tar": buffer.getvalue()}
