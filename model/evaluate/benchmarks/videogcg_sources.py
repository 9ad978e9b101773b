"""The three sources of VideoGCG's test set, as VideoGLaMM's `ValGCGDataset` concatenates them.

- `video_gcg/instruction_data/test.json`: COCO-like. The caption's words (split at spaces) at `token_pos` are the
  phrases, grounded by the annotations in `mask_id`; several for one word are united. Frames of YTVIS 2019 or BURST.
- `mevis_gcg/valid_u/<video>.json`: a caption with `[phrase](1, 2)`, ids of MeViS objects, whose masks are united.
- `vidstg_gcg/val_captions/<clip>.json`: the same notation; `val/<clip>/frames/*` and `val/<clip>/masks/%03d/*` (0 or
  255) under the same file names. The released reader takes the first of several ids only.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from model.evaluate.benchmarks.base import read_index_masks, read_json
from model.evaluate.benchmarks.mevis import MeViS
from model.evaluate.task import Video
from pipeline.sources.base import DataRoot, clean
from schemas.geometry import RLE, rle_check, rle_decode
from schemas.records import Media
from schemas.video.order import in_picture_order

SOURCES = {
    "video_gcg": "video_gcg/instruction_data/test.json",
    "mevis_gcg": "mevis_gcg/valid_u",
    "vidstg_gcg": "vidstg_gcg/val_captions",
}
EXPECTED = """\
  <root>/                                     (one or more of the three)
    video_gcg/instruction_data/test.json, ytvis/vos/train/JPEGImages/..., burst/frames/val/...
    mevis_gcg/valid_u/<video>.json, mevis/valid_u/{meta_expressions.json,mask_dict.json,JPEGImages/}
    vidstg_gcg/val_captions/<clip>.json, vidstg_gcg/val/<clip>/{frames,masks/%03d}/"""
_PHRASE = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A video, its caption, the caption's phrases in order, and how their tracks [G, T, H, W] are read.

    truth: given the size of a prediction, for sources that do not state it.
    """

    video: Video
    source: str
    caption: str
    phrases: tuple[str, ...]
    truth: Callable[[Size], NDArray[np.bool_]]


def read_cases(root: DataRoot, source: str, first_id_only: bool) -> Iterator[Case]:
    """All cases of one of SOURCES. Raises ValueError for damaged annotations."""
    if source == "video_gcg":
        return _video_gcg(root)
    if source == "mevis_gcg":
        return _mevis_gcg(root)
    return _vidstg_gcg(root, first_id_only)


class _Caption(TypedDict):
    caption: str
    token_pos: list[int]
    mask_id: list[int]


class _Origin(TypedDict):
    dataset: str


class _Entry(TypedDict):
    file_names: list[str]
    width: int
    height: int
    length: int
    dense_cap: _Caption
    metadata: NotRequired[_Origin]
    dataset_split: NotRequired[str]


class _Annotation(TypedDict):
    id: int
    segmentations: list[Any]


class _File(TypedDict):
    videos: list[_Entry]
    annotations: list[_Annotation]


class _Text(TypedDict):
    caption: str


def _video_gcg(root: DataRoot) -> Iterator[Case]:
    file = SOURCES["video_gcg"]
    data = read_json(root, file, _File)
    layers = {one["id"]: one["segmentations"] for one in data["annotations"]}
    for number, entry in enumerate(data["videos"]):
        words, size = entry["dense_cap"]["caption"].split(" "), (entry["height"], entry["width"])
        objects: dict[int, list[list[Any]]] = {}
        for position, mask_id in zip(
            entry["dense_cap"]["token_pos"], entry["dense_cap"]["mask_id"], strict=True
        ):
            if position >= len(words) or mask_id not in layers:
                raise ValueError(
                    f"{file}: video {number}: word {position} or mask {mask_id} is not in the file"
                )
            objects.setdefault(position, []).append(layers[mask_id])
        origin = (
            entry["metadata"]["dataset"] if "metadata" in entry else entry.get("dataset_split", "")
        )
        folder = "ytvis/vos/train/JPEGImages" if origin == "yt19" else "burst/frames/val"
        names = tuple(entry["file_names"])
        frames = tuple(f"{t:05d}" for t in range(len(names)))
        video = Video(
            f"video_gcg-{number:05d}", frames, size, root, Media("frames", folder, names=names)
        )
        truth = partial(
            _united, [objects[position] for position in sorted(objects)], len(names), size, video.id
        )
        phrases = tuple(words[position] for position in sorted(objects))
        yield Case(video, "video_gcg", clean(entry["dense_cap"]["caption"]), phrases, truth)


def _united(
    objects: list[list[list[Any]]], frames: int, size: Size, where: str, _: Size
) -> NDArray[np.bool_]:
    """Annotations of each phrase [G] -> [G, T, H, W]."""
    tracks_gthw = np.zeros((len(objects), frames, *size), bool)
    for track_thw, layers in zip(tracks_gthw, objects, strict=True):
        for layer in layers:
            if len(layer) != frames:
                raise ValueError(f"{where}: {len(layer)} masks for {frames} frames")
            for t, rle in enumerate(layer):
                if rle is not None:
                    track_thw[t] |= rle_decode(_compressed(rle, size, f"{where}, frame {t}"))
    return tracks_gthw


def _compressed(rle: Any, size: Size, where: str) -> RLE:
    """The file's masks are COCO's compressed or uncompressed RLE."""
    from pycocotools import mask as coco

    try:
        if isinstance(rle, dict) and isinstance(rle.get("counts"), list):
            if (
                tuple(rle["size"]) != size
                or sum(rle["counts"]) != size[0] * size[1]
                or min(rle["counts"]) < 0
            ):
                raise ValueError(f"runs do not add up to {size[0]}x{size[1]} pixels")
            rle = coco.frPyObjects(rle, *size)
        return rle_check(rle, size)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: {error}") from error


def _mevis_gcg(root: DataRoot) -> Iterator[Case]:
    mevis = MeViS(root, "val_u")
    videos = {video.id: video for video in mevis.videos()}
    for file in _json_files(root, SOURCES["mevis_gcg"]):
        name = file.rpartition("/")[2].removesuffix(".json")
        if name not in videos:
            raise ValueError(f"{file}: MeViS valid_u has no video {name}")
        old = videos[name]
        caption, phrases, ids = _grounded(read_json(root, file, _Text)["caption"])
        video = Video(f"mevis_gcg-{name}", old.frames, None, root, old.media)
        yield Case(video, "mevis_gcg", caption, phrases, partial(_mevis_tracks, mevis, old, ids))


def _mevis_tracks(
    mevis: MeViS, video: Video, ids: list[list[str]], size: Size
) -> NDArray[np.bool_]:
    tracks = [mevis.objects(video, some, size) for some in ids]
    return np.stack(tracks) if tracks else np.zeros((0, len(video), *size), bool)


def _vidstg_gcg(root: DataRoot, first_id_only: bool) -> Iterator[Case]:
    for file in _json_files(root, SOURCES["vidstg_gcg"]):
        name = file.rpartition("/")[2].removesuffix(".json")
        caption, phrases, ids = _grounded(read_json(root, file, _Text)["caption"])
        if first_id_only:
            ids = [some[:1] for some in ids]
        folder = f"vidstg_gcg/val/{name}"
        names = tuple(in_picture_order(root.listdir(f"{folder}/frames")))
        frames = tuple(f"{t:05d}" for t in range(len(names)))
        video = Video(
            f"vidstg_gcg-{name}",
            frames,
            None,
            root,
            Media("frames", f"{folder}/frames", names=names),
        )
        yield Case(
            video, "vidstg_gcg", caption, phrases, partial(_png_tracks, root, folder, names, ids)
        )


def _png_tracks(
    root: DataRoot, folder: str, names: tuple[str, ...], ids: list[list[str]], size: Size
) -> NDArray:
    tracks = [
        np.logical_or.reduce(
            [
                read_index_masks(root, (f"{folder}/masks/{one.zfill(3)}/{name}" for name in names))
                == 255
                for one in some
            ]
        )
        for some in ids
    ]
    return np.stack(tracks) if tracks else np.zeros((0, len(names), *size), bool)


def _grounded(text: str) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """`[A dog](1, 2) runs` -> "A dog runs", its phrases, and the ids of each."""
    found = _PHRASE.findall(text)
    ids = [[one.strip() for one in some.split(",")] for _, some in found]
    return clean(_PHRASE.sub(r"\1", text)), tuple(phrase.strip() for phrase, _ in found), ids


def _json_files(root: DataRoot, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in root.listdir(folder) if name.endswith(".json")]
