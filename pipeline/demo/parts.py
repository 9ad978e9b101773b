"""What the layouts are made from: the specification of a video, its part of the annotations, and whole-file writes."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.demo.describe import Expression, expressions, strong
from pipeline.demo.scene import Scene, mask_boxes
from schemas.config import canonical_json
from schemas.geometry import is_box, rle_encode


@dataclass(frozen=True)
class Spec:
    """One video to be rendered. `faults` are switched on by its layout; `copy` counts the repetitions of --scale."""

    source: str
    split: str
    video: str
    kind: str
    names: tuple[str, ...]
    seed: int
    frames: int
    height: int
    width: int
    fps: float = 25.0
    tints: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    copy: int = 0

    @property
    def key(self) -> str:
        """As in the truth files: <split>/<video id>."""
        return f"{self.split}/{self.video}"


@dataclass(frozen=True)
class Part:
    """A finished video: its share of the annotation tables, and its exact truth."""

    spec: Spec
    anno: dict
    truth: list[dict]

    @classmethod
    def of(cls, spec: Spec, anno: dict, said: list[tuple[str, Scene, tuple[int, ...]]]) -> "Part":
        """`said`: each expression with the scene and the objects that it is about."""
        return cls(spec, anno, [_truth(*item) for item in said])

    def save(self, path: Path) -> None:
        write_text(
            path,
            canonical_json({"spec": asdict(self.spec), "anno": self.anno, "truth": self.truth}),
        )

    @classmethod
    def load(cls, path: Path) -> "Part":
        data = json.loads(path.read_text())
        spec: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data["spec"].items()
        }
        return cls(Spec(**spec), data["anno"], data["truth"])


def _truth(expression: str, scene: Scene, targets: tuple[int, ...]) -> dict:
    masks = np.logical_or.reduce([scene.objects[i].masks for i in targets])
    boxes = mask_boxes(masks)
    seen = is_box(boxes)
    return {
        "expression": expression,
        "boxes": [
            [float(v) for v in box] if s else None for box, s in zip(boxes, seen, strict=True)
        ],
        "masks": [
            rle_encode(mask)["counts"] if s else None for mask, s in zip(masks, seen, strict=True)
        ],
        "size": list(scene.size),
    }


def sayable(scene: Scene, spec: Spec) -> bool:
    """Whether everything that a layout wants to say about the scene can be said."""
    alone = spec.source in ("hcstvg", "lasot", "got10k") or (
        spec.source == "vid_sentence" and "two_tracks" not in spec.faults
    )
    wanted = [(0,)] if alone else [(i,) for i in range(len(scene.objects))]
    for targets in wanted:
        found = expressions(scene, targets, motion=spec.source != "lasot")
        if not found or not (found[0].claims or spec.source in ("lasot", "got10k", "a2d")):
            return False
    shown = [scene.objects[i[0]].visible.mean() for i in wanted]
    return min(shown) > 0.4


def say(scene: Scene, targets: tuple[int, ...], spec: Spec, *, motion: bool = True) -> Expression:
    """One true expression about the targets, drawn among the best by the video's seed."""
    found = expressions(scene, targets, motion=motion)
    if not found:
        raise ValueError(
            f"{spec.source} {spec.key}: nothing can be said of object {targets} that is true of it alone"
        )
    if not motion:  # a phrase names the colour
        return next((e for e in found if e.colour), found[0])
    best = [e for e in found if strong(e) == strong(found[0])]
    return best[(spec.seed + 3 * targets[0]) % len(best)]


# --- files ---------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(data)
    os.replace(scratch, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: object, indent: int | None = None) -> None:
    separators = (",", ": ") if indent is not None else (",", ":")
    write_text(path, json.dumps(value, indent=indent, separators=separators))
