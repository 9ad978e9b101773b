"""A made output: two coloured squares per clip, odd and non-square frames, known absences, several sources and tars."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader import Clip, write_shard
from pipeline.sample import TRACK_DTYPE, npy
from pipeline.select import crop
from schemas.geometry import rle_encode
from schemas.questions import TEMPLATES
from schemas.records import ORIGINS
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4

HEIGHT, WIDTH, FRAMES, SIDE = 97, 161, 24, 33
COLOURS = np.array([[220, 30, 30], [30, 30, 220]], np.uint8)
AWAY = range(8, 12)
"""Frames in which target 0 is known to be absent."""
THINNED = range(20, 24)
"""Frames in which it has a box and no mask."""


def boxes(clip: int) -> np.ndarray:
    """[2 targets, T, 4] pixels."""
    t = np.arange(FRAMES)
    red = np.stack([4 + 2 * t, 8 + t + clip % 5], 1)
    blue = np.stack([120 - 2 * t, 60 - t + clip % 3], 1)
    corner = np.stack([red, blue]).astype(np.float32)
    both = np.concatenate([corner, corner + SIDE], 2)
    both[0, AWAY] = np.nan
    return both


def frames_of(clip: int) -> np.ndarray:
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 128, np.uint8)
    for target, track in enumerate(boxes(clip)):
        for t, box in enumerate(track):
            if not np.isnan(box[0]):
                x1, y1, x2, y2 = box.astype(int)
                frames[t, y1:y2, x1:x2] = COLOURS[target]
    return frames


def members(
    clip: int,
    target: int,
    frames: np.ndarray,
    media: bytes,
    questions: int = 1,
    noise: dict[str, Any] | None = None,
) -> dict[str, bytes]:
    track = np.zeros(FRAMES, TRACK_DTYPE)
    xyxy = boxes(clip)[target]
    there = ~np.isnan(xyxy[:, 0])
    for i, name in enumerate(("x1", "y1", "x2", "y2")):
        track[name] = xyxy[:, i]
    track["frame"] = track["source_frame"] = np.arange(FRAMES)
    track["known"], track["iou"] = True, np.where(there, 1.0, np.nan)
    track["origin"] = np.where(there, ORIGINS.index("mask"), ORIGINS.index("none"))
    track["kept"] = there & ~np.isin(np.arange(FRAMES), THINNED)
    masks = {}
    for t in np.flatnonzero(track["kept"]):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        x1, y1, x2, y2 = xyxy[t].astype(int)
        mask[y1:y2, x1:x2] = True
        masks[str(t)] = rle_encode(mask)
    tsf = [{"rank": i, "frame": t, "repeated": False} for i, t in enumerate((0, 5, 13, 18))]
    words = {
        "referent": {"caption": f"the {('red', 'blue')[target]} square", **(noise or {})},
        "qa": [
            {
                "qa_id": f"q{n}",
                "family": "region",
                "question": "What is the <region> doing?",
                "answer": f"{('red', 'blue')[target]} square number {n}",
            }
            for n in range(questions)
        ],
        "tsf": tsf,
    }
    return {
        "json": json.dumps(words).encode(),
        "track.npy": npy(track),
        **{
            f"crop{r['rank']}.jpg": encode_jpeg(crop(frames[r["frame"]], xyxy[r["frame"]]), 95)
            for r in tsf
        },
        "masks.json": json.dumps(masks).encode(),
        "mp4": media,
    }


def make_output(
    out: Path,
    sources: dict[str, tuple[int, int]],
    media: str = "mp4",
    questions: int = 1,
    templates: str = TEMPLATES.to_json(),
    noise: dict[str, Any] | None = None,
) -> Path:
    """sources: name -> (tars, clips per tar); two referents per clip, so many questions per referent.

    noise: columns of `referents` about the noise that every trajectory was curated with.
    """
    number = 0
    for source, (tars, clips) in sources.items():
        for index in range(tars):
            made = []
            for _ in range(clips):
                frames = frames_of(number)
                video = encode_mp4(frames, 10.0)
                referents = [
                    (
                        f"{source}-c{number}-{target}",
                        [str(target)],
                        members(number, target, frames, video, questions, noise),
                    )
                    for target in (0, 1)
                ]
                made.append(
                    Clip(
                        f"{source}-c{number}",
                        HEIGHT,
                        WIDTH,
                        referents,
                        {
                            "caption": "the blue square",
                            "n_masks": 16,
                            "mean_iou": number / 10,
                            "n_qa": questions,
                            **(noise or {}),
                        },
                    )
                )
                number += 1
            write_shard(out, source, index, made, media, templates)
    return out
