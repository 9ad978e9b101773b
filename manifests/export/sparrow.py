"""The layout that SPARROW's released loaders read (`util/{got10k,lasot,vid,a2d,hc_stvg,ReSAM2,ReVOS}_dataset.py`).

    VOT_dataset/<see ROOTS>/<scene>/img/%06d.jpg      GOT-10k, LaSOT, VID-Sentence, A2D-Sentences, HC-STVG
                                    mask/%06d.png     0 and 255, one per picture
                                    groundtruth.txt   a box per picture; x,y,w,h or x1,y1,x2,y2 (BOXES)
                                    nlp.txt           the caption
    sa2va/mevis/<split>/                              MeViS: its own json, mask_dict and pictures
    sa2va/sam_v_final_v3.json, sam_v_full/            Ref-SAV: SA-V's masklet files and videos

These loaders know no frame about which nothing is known: a black mask says that the target is absent. So a tracked
scene has the frames with a mask, and those that the dataset calls empty (box `0,0,0,0`); file names keep the frame's
number within the clip. A scene of fewer than eight frames would end a training: some of its frames are there several
times, as `000007.jpg`, `000007b.jpg`, ... Boxes are pixels, 0-based, half-open for all sources: the loaders clamp them to [0, W] x [0, H]
and subtract no base. A split that the loaders have no folder for goes to a root of its own, `<split>/VOT_dataset`:
what belongs to an evaluation is not mixed into training by standing beside it.
"""

import json
import re
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO

import cv2
import numpy as np

from manifests.export.read import Clip, Target, safe
from manifests.export.sparrow_rules import FRAMES_FOR_SAM, scene_problems
from manifests.export.video import encode_video
from schemas.geometry import RLE, rle_decode, rle_encode, to_xywh

BOXES = {"got10k": "xywh", "lasot": "xywh", "vid_sentence": "xyxy", "a2d": "xyxy", "hcstvg": "xyxy"}
"""Of groundtruth.txt, by source."""

ROOTS = {
    ("got10k", "train"): "GOT-10k/train",
    ("got10k", "val"): "GOT-10k/val",
    ("lasot", "train"): "LaSOT",
    ("lasot", "all"): "LaSOT",
    ("vid_sentence", "train"): "VID-Sentence/VID/train",
    ("vid_sentence", "val"): "VID-Sentence/VID/val",
    ("a2d", "train"): "A2D_sentences/Images",
    ("a2d", "all"): "A2D_sentences/Images",
    ("hcstvg", "train"): "HC-STVG/Images",
    ("hcstvg", "val"): "HC-STVG/Val_Images",
}
ELSEWHERE = {
    ("lasot", "test"): "LaSOT",
    ("vid_sentence", "test"): "VID-Sentence/VID/val",
    ("a2d", "test"): "A2D_sentences/Images",
    ("hcstvg", "v1_train"): "HC-STVG/Images",
    ("hcstvg", "v1_test"): "HC-STVG/Val_Images",
}
"""Below `<split>/VOT_dataset`."""

SAV_REPEAT = 4
"""SA-V labels every fourth frame of a video, and the loader takes every fourth."""


class Sparrow:
    """One exporter for all seven sources."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._scenes: Counter[Path] = Counter()
        self._mevis: dict[str, _MeViS] = {}
        self._sav: _SAV | None = None

    def add(self, clip: Clip) -> dict[str, str]:
        """Write a clip; returns the targets that are left out, with the reason. ValueError if none can be written."""
        source, split = clip.row["source"], clip.row["split"]
        if source == "mevis":
            if split not in self._mevis:
                self._mevis[split] = _MeViS(self.folder / "sa2va" / "mevis" / safe(split))
            self._mevis[split].add(clip)
        elif source == "refsav":
            self._sav = self._sav or _SAV(self.folder / "sa2va")
            self._sav.add(clip)
        else:
            return self._scene_folders(clip)
        return {}

    def close(self) -> None:
        for mevis in self._mevis.values():
            mevis.close()
        if self._sav:
            self._sav.close()

    def _scene_folders(self, clip: Clip) -> dict[str, str]:
        sequence, pictures = self._sequence(clip), clip.pictures()
        left = {target.key: "no frame has a mask" for target in clip.targets if not target.masks}
        for target in clip.targets:
            if target.key in left:
                continue
            scene = sequence / f"{self._scenes[sequence]:02d}"
            write_scene(scene, clip, target, pictures)
            if problems := scene_problems(scene):
                shutil.rmtree(scene)
                left[target.key] = f"the released loaders cannot read it: {problems[0]}"
            else:
                self._scenes[sequence] += 1
        if len(left) == len(clip.targets):
            raise ValueError("; ".join(dict.fromkeys(left.values())))
        return left

    def _sequence(self, clip: Clip) -> Path:
        source, split, video = (clip.row[c] for c in ("source", "split", "video_id"))
        if root := ROOTS.get((source, split)):
            base = self.folder / "VOT_dataset" / root
        elif root := ELSEWHERE.get((source, split)):
            base = self.folder / split / "VOT_dataset" / root
        else:
            raise ValueError(f"SPARROW's layout has no place for {source}/{split}")
        name = safe(PurePosixPath(video).stem if source == "hcstvg" else video)
        if source == "lasot":
            return base / safe(clip.targets[0].info["category"] or video.rsplit("-", 1)[0]) / name
        if source == "vid_sentence":
            bucket = PurePosixPath(clip.row["media_path"]).parent.name
            return (
                base
                / (bucket if bucket.startswith("ILSVRC2015_VID_") else "ILSVRC2015_VID_0000")
                / name
            )
        return base / name


def write_scene(scene: Path, clip: Clip, target: Target, pictures: list[bytes]) -> None:
    """The folder of one target. pictures: JPEG of all frames of the clip."""
    boxes = boxes_of(target, clip.row["source"])
    named = with_repeats(frames_of(target), FRAMES_FOR_SAM)
    (scene / "img").mkdir(parents=True)
    (scene / "mask").mkdir()
    for name, t in named:
        (scene / "img" / f"{name}.jpg").write_bytes(pictures[t])
        (scene / "mask" / f"{name}.png").write_bytes(mask_png(target.masks.get(t), clip.size))
    (scene / "groundtruth.txt").write_text("".join(f"{boxes[t]}\n" for _, t in named))
    (scene / "nlp.txt").write_text(target.info["caption"] + "\n", encoding="utf-8")


def with_repeats(frames: list[int], least: int) -> list[tuple[str, int]]:
    """(name without suffix, frame) for at least so many files, in the order of their names. Where there are fewer
    frames, some are named several times, evenly: `000007`, `000007b`, `000007c`."""
    if not frames or len(frames) >= least:
        return [(f"{t:06d}", t) for t in frames]
    places = np.arange(least) * len(frames) // least
    named: list[tuple[str, int]] = []
    for t in (frames[place] for place in places):
        times = sum(frame == t for _, frame in named)
        named.append((f"{t:06d}{' bcdefgh'[times].strip()}", t))
    return named


def frames_of(target: Target) -> list[int]:
    """Frames with a mask, and those known to be without the target."""
    return sorted({*target.masks, *np.flatnonzero(target.absent_t).tolist()})


def boxes_of(target: Target, source: str) -> list[str]:
    """[T] lines of groundtruth.txt, without losing a bit of float32; `0,0,0,0` where there is no box to trust."""
    boxes = to_xywh(target.boxes_t4) if BOXES[source] == "xywh" else target.boxes_t4
    return [
        ",".join(np.format_float_positional(v, trim="-") for v in box) if kept else "0,0,0,0"
        for box, kept in zip(boxes, target.kept_t, strict=True)
    ]


def mask_png(rle: RLE | None, size: tuple[int, int]) -> bytes:
    """8-bit grey, 255 inside; all black for None."""
    mask = np.zeros(size, bool) if rle is None else rle_decode(rle)
    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()


class _MeViS:
    """MeViS's own form. A target is one annotation, already the union of its objects; null where it has no mask."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self._videos: dict[str, dict] = {}
        self._masks: IO[str] = (folder / "mask_dict.json").open("w")
        self._n = 0

    def add(self, clip: Clip) -> None:
        pictures = clip.pictures()
        name = safe(clip.row["video_id"])
        name = clip.key if name in self._videos else name
        expressions = {}
        for i, target in enumerate(clip.targets):
            masks = [target.masks.get(t) for t in range(len(pictures))]
            self._masks.write(
                f"{',' if self._n else '{'}\n{json.dumps(str(self._n))}: {json.dumps(masks)}"
            )
            objects = [int(o) for o in target.info["object_ids"] if o.isdecimal()]
            expressions[str(i)] = {
                "exp": target.info["caption"],
                "obj_id": objects,
                "anno_id": [self._n],
            }
            self._n += 1
        frames = [f"{t:05d}" for t in range(len(pictures))]
        height, width = clip.size
        self._videos[name] = {
            "frames": frames,
            "expressions": expressions,
            "height": height,
            "width": width,
        }
        place = self.folder / "JPEGImages" / name
        place.mkdir(parents=True)
        for frame, picture in zip(frames, pictures, strict=True):
            (place / f"{frame}.jpg").write_bytes(picture)

    def close(self) -> None:
        self._masks.write("\n}\n" if self._n else "{}\n")
        self._masks.close()
        (self.folder / "meta_expressions.json").write_text(json.dumps({"videos": self._videos}))


class _SAV:
    """Ref-SAV's text over SA-V's masklets. A clip holds the labelled frames only, so each is shown four times."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._videos: dict[str, dict] = {}

    def add(self, clip: Clip) -> None:
        pictures, name = clip.pictures(), safe(clip.row["video_id"])
        name = clip.key if name in self._videos else name
        parent = PurePosixPath(clip.row["media_path"]).parent.name
        bucket = parent if re.fullmatch(r"sav_\d{3}", parent) else "sav_000"
        (height, width), fps = clip.size, clip.row["fps"] or 24.0
        video = encode_video(pictures, clip.size, fps, repeat=SAV_REPEAT)
        empty = rle_encode(np.zeros(clip.size, bool))
        count = SAV_REPEAT * len(pictures)
        masklets = {
            "video_id": name,
            "video_duration": count / fps,
            "video_frame_count": float(count),
            "video_height": height,
            "video_width": width,
            "masklet_num": len(clip.targets),
            "masklet_id": list(range(len(clip.targets))),
            "masklet": [
                [target.masks.get(t, empty) for target in clip.targets]
                for t in range(len(pictures))
            ],
        }
        place = self.folder / "sam_v_full" / "sav_train" / bucket
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.mp4").write_bytes(video)
        (place / f"{name}_manual.json").write_text(json.dumps(masklets))
        # Official paths repeat a directory. Loaders mend that or do not; with the link both find the file.
        link = self.folder / "sam_v_full" / bucket / "sav_train"
        if not link.is_symlink():
            link.parent.mkdir(parents=True)
            link.symlink_to("../sav_train")
        self._videos[name] = {
            "video_path": f"{bucket}/sav_train/{bucket}/{name}.mp4",
            "anno_path": f"{bucket}/sav_train/{bucket}/{name}_manual.json",
            "objects": {
                str(i): {
                    "obj_id": i,
                    "video_id": name,
                    "formated": target.info["caption"],
                    "short_caps": [],
                }
                for i, target in enumerate(clip.targets)
            },
        }

    def close(self) -> None:
        (self.folder / "sam_v_final_v3.json").write_text(json.dumps(self._videos))
