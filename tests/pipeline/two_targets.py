"""VID-Sentence with a video of two targets, whose clips begin in different frames, and a video of one.

A red square moves along the top and is annotated in the frames of SPANS[0], a blue one along the bottom in those of
SPANS[1]. The other video has a red square alone.
"""

import json
from pathlib import Path

import numpy as np

from flows.jobs import make_jobs
from pipeline.plan import Job
from pipeline.presets import configure
from schemas.video.pictures import encode_jpeg

HEIGHT, WIDTH, SIDE = 96, 160, 24
SPANS = ((0, 40), (10, 48))
COLOURS = ((220, 30, 30), (30, 30, 220))
TWO, ONE = "ILSVRC2015_val_00000002", "ILSVRC2015_val_00000001"
_BASE = "data/ILSVRC"


def box_of(target: int, source_frame: int) -> list[int]:
    """xyxy, half-open, of a target in a frame of the video."""
    x, y = (2 + 2 * source_frame, 8) if target == 0 else (120 - 2 * source_frame, 60)
    return [x, y, x + SIDE, y + SIDE]


def boxes_of(target: int, clip: int) -> np.ndarray:
    """[T, 4] of a target in the frames of a target's clip; NaN where it is not annotated."""
    rows = [
        box_of(target, t) if SPANS[target][0] <= t < SPANS[target][1] else [np.nan] * 4
        for t in range(*SPANS[clip])
    ]
    return np.array(rows, np.float32)


def shows(crop: np.ndarray, target: int) -> bool:
    """Whether most of a crop has the colour of a target."""
    distance = np.abs(crop.astype(int) - COLOURS[target]).max(-1)
    return bool((distance < 60).mean() > 0.7)


def make_root(root: Path) -> Path:
    """Write the data set, and return its folder."""
    lists = root / _BASE / "Data/VID/annSamples"
    lists.mkdir(parents=True)
    (lists / "val_valid_list.txt").write_text(f"{TWO},0\n{TWO},1\n{ONE},0\n")
    sentences = ["0, The red one.", "1, The blue one.", "2, It is alone."]
    (lists / "val_ann_list_v2.txt").write_text("\n".join(sentences) + "\n")
    _write_video(root / _BASE, TWO, (0, 1))
    _write_video(root / _BASE, ONE, (0,))
    return root


def _write_video(base: Path, name: str, targets: tuple[int, ...]) -> None:
    folder, tubes = base / "Data/VID/val" / name, base / "Annotations/VID/tubeGt/val"
    folder.mkdir(parents=True)
    tubes.mkdir(parents=True, exist_ok=True)
    for t in range(max(stop for _, stop in SPANS)):
        picture = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for target in targets:
            x1, y1, x2, y2 = box_of(target, t)
            picture[y1:y2, max(x1, 0) : x2] = COLOURS[target]
        (folder / f"{t:06d}.JPEG").write_bytes(encode_jpeg(picture, 95))
    tracks = [{"id": str(i), "track": _track(i)} for i in targets]
    (tubes / f"{name}.js").write_text(json.dumps({"video": name, "annotations": tracks}))


def _track(target: int) -> list[dict]:
    found = []
    for t in range(*SPANS[target]):
        x1, y1, x2, y2 = box_of(target, t)
        corners = [x1, y1, x2 - 1, y2 - 1]  # they name the last pixel
        size = [HEIGHT, WIDTH]
        found.append({"frame": t + 1, "bbox": corners, "frame_size": size, "class": "square"})
    return found


def make_job(root: Path, out: Path, *sets: str) -> Job:
    """Curates the annotated boxes, without masks and media. sets: overrides of the config."""
    config = configure("lite", ["media.media=none", *sets])
    own = ["rules.boxes=annotation", "rules.masks=none"]
    return make_jobs("vid_sentence", root, out, config, source_sets=own)[0]
