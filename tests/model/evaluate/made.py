"""Tiny datasets in each benchmark's official layout, and planted predictions for them.

Every video shows two squares of 20 x 20 px: the first drifts right along the top, the second left along the bottom;
they never meet. Texts call them "the first square" and "the second square", so that a prediction can be planted from
the text alone.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.evaluate.submit import davis_palette
from model.evaluate.task import Benchmark, Prediction, Query, Video
from schemas.geometry import rle_encode
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4

HEIGHT, WIDTH, FRAMES, SIDE = 64, 96, 6, 20
NAMES = {"first": 1, "second": 2}
_INDEX = {
    "clip0": 0,
    "clip1": 1,
    "dogs-scale": 0,
    "motorbike": 1,
    "1000": 0,
    "1001": 1,
    "video_gcg-00000": 0,
    "video_gcg-00001": 1,
}


def corner(index: int, number: int, t: int) -> tuple[int, int]:
    """x, y of square `number` in frame t of video `index`."""
    return (4 + 2 * t, 4 + 2 * index) if number == 1 else (60 - 2 * t, 38 + 2 * index)


def square(index: int, number: int, t: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x, y = corner(index, number, t)
    mask[y : y + SIDE, x : x + SIDE] = True
    return mask


def picture(index: int, t: int) -> NDArray[np.uint8]:
    frame = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    frame[square(index, 1, t)], frame[square(index, 2, t)] = (220, 40, 40), (40, 40, 220)
    return frame


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def _images(folder: Path, index: int, names: list[str]) -> None:
    for t, name in enumerate(names):
        _write(folder / name, encode_jpeg(picture(index, t)))


def _palette_png(path: Path, values: NDArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(davis_palette())
    image.save(path)


def indices(index: int, t: int) -> NDArray[np.uint8]:
    return (square(index, 1, t) + 2 * square(index, 2, t)).astype(np.uint8)


def make_mevis(root: Path) -> Path:
    """valid_u with masks (one expression about both squares) and valid without."""
    frames = [f"{t:05d}" for t in range(FRAMES)]
    masks = {
        f"{10 * v + number}": [rle_encode(square(v, number, t)) for t in range(FRAMES)]
        for v in (0, 1)
        for number in (1, 2)
    }
    expressions = [
        ("the first square moves", [1]),
        ("the second square moves", [2]),
        ("the first and second", [1, 2]),
    ]
    for folder, truth in (("valid_u", True), ("valid", False)):
        videos = {}
        for v in (0, 1):
            _images(
                root / folder / "JPEGImages" / f"clip{v}", v, [f"{name}.jpg" for name in frames]
            )
            videos[f"clip{v}"] = {
                "frames": frames,
                "expressions": {
                    str(n): {"exp": text}
                    | ({"obj_id": ids, "anno_id": [10 * v + i for i in ids]} if truth else {})
                    for n, (text, ids) in enumerate(expressions)
                },
            }
        _write(root / folder / "meta_expressions.json", json.dumps({"videos": videos}))
    _write(root / "valid_u/mask_dict.json", json.dumps(masks))
    return root


def make_ref_ytvos(root: Path, truth: bool = True) -> Path:
    """Two videos of the benchmark and one of the test list; truth as one PNG per frame and expression."""
    frames = [f"{5 * t:05d}" for t in range(FRAMES)]
    expressions = {"0": {"exp": "the first square"}, "1": {"exp": "the second square"}}
    videos = {
        name: {"frames": frames, "expressions": expressions}
        for name in ("clip0", "clip1", "hidden")
    }
    _write(root / "meta_expressions/valid/meta_expressions.json", json.dumps({"videos": videos}))
    _write(
        root / "meta_expressions/test/meta_expressions.json",
        json.dumps({"videos": {"hidden": videos["hidden"]}}),
    )
    for v in (0, 1):
        _images(root / "valid/JPEGImages" / f"clip{v}", v, [f"{name}.jpg" for name in frames])
        for number in (1, 2) if truth else ():
            for t, name in enumerate(frames):
                path = root / f"valid/Annotations/clip{v}/{number - 1}/{name}.png"
                _palette_png(path, square(v, number, t))
    return root


def make_ref_davis(root: Path) -> Path:
    """DAVIS 2017's folders and the four text files, with their misspellings and the second annotator's latin-1."""
    videos, spelt = ("dogs-scale", "motorbike"), ("dog-scale", "motor-bike")
    _write(root / "ImageSets/2017/val.txt", "\n".join(videos) + "\n")
    for v, name in enumerate(videos):
        _images(root / "JPEGImages/480p" / name, v, [f"{t:05d}.jpg" for t in range(FRAMES)])
        for t in range(FRAMES):
            _palette_png(root / f"Annotations_unsupervised/480p/{name}/{t:05d}.png", indices(v, t))
    for annotator, accent in (("annot1", ""), ("annot2", " caf\xe9")):
        for end in ("", "_full_video"):
            lines = [
                f'{name} {number} "the {word} square{accent}"'
                for name in spelt
                for word, number in NAMES.items()
            ]
            path = root / f"davis_text_annotations/Davis17_{annotator}{end}.txt"
            _write(path, "\n".join(lines).encode("latin-1"))
    return root


def make_ref_davis_converted(root: Path) -> Path:
    """The same in the layout that ReferFormer's script makes of it."""
    frames, videos = [f"{t:05d}" for t in range(FRAMES)], {}
    for v, name in enumerate(("dogs-scale", "motorbike")):
        _images(root / "valid/JPEGImages" / name, v, [f"{frame}.jpg" for frame in frames])
        for t, frame in enumerate(frames):
            _palette_png(root / f"valid/Annotations/{name}/{frame}.png", indices(v, t))
        videos[name] = {
            "frames": frames,
            "expressions": {
                str(4 * (number - 1) + a): {"exp": f"the {word} square", "obj_id": str(number)}
                for word, number in NAMES.items()
                for a in range(4)
            },
        }
    _write(root / "meta_expressions/valid/meta_expressions.json", json.dumps({"videos": videos}))
    return root


def make_vidstg(root: Path) -> Path:
    """Videos of 12 frames at 2 per second: one sampled frame in two. The tube of the second begins at frame 2."""
    items, length = [], 2 * FRAMES
    for v in (0, 1):
        vid = str(1000 + v)
        _write(
            root / f"video/0000/{vid}.mp4",
            encode_mp4(np.stack([picture(v, t) for t in range(length)]), 2.0),
        )
        frames = []
        for t in range(length):
            boxes = []
            for number in (1, 2):
                x, y = corner(v, number, t)
                bbox = {"xmin": x, "ymin": y, "xmax": x + SIDE, "ymax": y + SIDE}
                boxes.append({"tid": number, "bbox": bbox, "generated": 0, "tracker": "none"})
            frames.append(boxes)
        _write(
            root / f"vidor_annotations/validation/0000/{vid}.json",
            json.dumps({"trajectories": frames}),
        )
        items.append(
            {
                "vid": vid,
                "fps": 2.0,
                "frame_count": length,
                "width": WIDTH,
                "height": HEIGHT,
                "used_segment": {"begin_fid": 0, "end_fid": length - 1},
                "temporal_gt": {"begin_fid": 2 * v, "end_fid": length},
                "captions": [
                    {"description": "the first square moves.", "type": "object", "target_id": 1}
                ],
                "questions": [
                    {
                        "description": "what does the second square do?",
                        "type": "object",
                        "target_id": 2,
                    }
                ],
            }
        )
    _write(root / "vidstg_annotations/test_annotations.json", json.dumps(items))
    return root


def make_videogcg(root: Path) -> Path:
    """All three sources: two videos of the first (YTVIS and BURST frames), one of each other."""
    videos, annotations = [], []
    for v, (origin, folder) in enumerate(
        (("yt19", "ytvis/vos/train/JPEGImages"), ("burst", "burst/frames/val"))
    ):
        names = [f"set/clip{v}/{t:05d}.jpg" for t in range(FRAMES)]
        _images(root / folder, v, names)
        for number in (1, 2):
            segmentations = [rle_encode(square(v, number, t)) for t in range(FRAMES)]
            annotations.append({"id": 10 * v + number, "segmentations": segmentations})
        caption = {
            "caption": "the first meets the second",
            "token_pos": [4, 1],
            "mask_id": [10 * v + 2, 10 * v + 1],
        }
        videos.append(
            {
                "file_names": names,
                "width": WIDTH,
                "height": HEIGHT,
                "length": FRAMES,
                "dense_cap": caption | {"v_id2o_id": {}},
                "metadata": {"dataset": origin},
            }
        )
    _write(
        root / "video_gcg/instruction_data/test.json",
        json.dumps({"videos": videos, "annotations": annotations}),
    )
    make_mevis(root / "mevis")
    caption = json.dumps({"caption": "[The first](1) meets [the second](2)"})
    _write(root / "mevis_gcg/valid_u/clip1.json", caption)
    _write(root / "vidstg_gcg/val_captions/clip0.json", caption)
    for t in range(FRAMES):
        _write(root / f"vidstg_gcg/val/clip0/frames/{t:05d}.png", _png(picture(0, t)))
        for number in (1, 2):
            path = root / f"vidstg_gcg/val/clip0/masks/{number:03d}/{t:05d}.png"
            _write(path, _png(square(0, number, t).astype(np.uint8) * 255))
    return root


def _png(values: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


MAKERS: dict[str, Callable[[Path], Path]] = {
    "mevis": make_mevis,
    "ref-ytvos": make_ref_ytvos,
    "ref-davis17": make_ref_davis,
    "vidstg": make_vidstg,
    "videogcg": make_videogcg,
}
"""Benchmark -> what writes it into an empty folder and returns that."""

# --- planted predictions ---------------------------------------------------------------------------------------------


def truth(video: Video, text: str, scale: int = 1) -> NDArray[np.bool_]:
    """[T, H, W]: the squares that a text names, each pixel `scale` times as large."""
    index = next(i for name, i in _INDEX.items() if name in video.id)
    times = video.pick or range(len(video))
    masks = [
        np.logical_or.reduce([square(index, NAMES[w], t) for w in NAMES if w in text.lower()])
        for t in times
    ]
    return np.stack(masks).repeat(scale, 1).repeat(scale, 2)


def other(text: str) -> str:
    """Each square for the other: a text about both stays what it is."""
    return " ".join(
        {"first": "second", "second": "first"}.get(word, word) for word in text.lower().split()
    )


def planted(
    benchmark: Benchmark, mask: Callable[[Video, Query], NDArray[np.bool_]]
) -> dict[str, dict[str, Prediction]]:
    """Predictions for every query: video id -> query id -> what `mask` gives, [T, H, W]."""
    return {
        video.id: {
            query.id: Prediction(mask(video, query)[None]) for query in benchmark.queries(video)
        }
        for video in benchmark.videos()
    }


def perfect(video: Video, query: Query) -> NDArray[np.bool_]:
    return truth(video, query.text)


def empty(video: Video, query: Query) -> NDArray[np.bool_]:
    return np.zeros_like(truth(video, query.text))


def shifted(video: Video, query: Query) -> NDArray[np.bool_]:
    """10 px to the right. IoU 10 / 30. Contours are rings of 80 px; within 1 px of the other ring are, on the top and
    the bottom edge, 12 px each, and 2 px of the edge between them: F = 26 / 80."""
    return np.roll(truth(video, query.text), 10, axis=2)


def switched(video: Video, query: Query) -> NDArray[np.bool_]:
    """The right square in the first half of the frames, the other one after it."""
    masks, half = truth(video, query.text), len(video) // 2
    masks[half:] = truth(video, other(query.text))[half:]
    return masks


def swapped(video: Video, query: Query) -> NDArray[np.bool_]:
    """The other square, all the time."""
    return truth(video, other(query.text))


def scores(benchmark: Benchmark, predictions: dict[str, dict[str, Prediction]]) -> dict[str, float]:
    """The benchmark's summary of predictions, as a run makes it."""
    rows = [
        one
        for video in benchmark.videos()
        for one in benchmark.score(video, predictions.get(video.id, {}))
    ]
    return benchmark.summary(rows)
