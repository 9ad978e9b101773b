"""What `sparrow ground` writes, frame by frame as it comes.

<out>/masks.jsonl       a line per frame: {"frame", "instances": [{"instance", "object_score", "box", "mask"}]}; masks
                        are COCO RLE, boxes xyxy around them in pixels, half-open, null where the mask is empty
<out>/png/<instance>/   %05d.png, 255 inside (`--png`); frames before an instance was found have none
<out>/result.json       what was asked, answered and found: instances with phrase, prompted boxes, confidence

result.json is removed before anything else changes, and written when all the rest is on the disk: where it is, what it
describes is there. Without it, an output is not finished.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.files import replacing, sweep_beside, sync, write_whole
from schemas.geometry import is_box, rle_box, rle_decode, rle_encode

if TYPE_CHECKING:
    from model.grounding import FrameMasks
    from model.instances import Target

LINES, RESULT, PNG, TSF = "masks.jsonl", "result.json", "png", "tsf"
OVERLAYS = ("overlay.mp4", "overlay.png")


class MaskWriter:
    """Writes frames in any order; the lines are in order of frames when it is finished. It removes what an earlier one
    has left in `out`."""

    def __init__(self, out: Path, *, png: bool = False):
        self.out, self.png = out, png
        out.mkdir(parents=True, exist_ok=True)
        clear(out)
        self._file = (out / LINES).open("wb")
        self._places: dict[int, int] = {}
        self._is_whole = True

    def add(self, step: "FrameMasks") -> None:
        self._is_whole = False
        instances = []
        for name, mask, score in zip(
            step.targets, step.masks_nhw, step.scores_n.tolist(), strict=True
        ):
            rle = rle_encode(mask)
            box = rle_box(rle)
            instances.append(
                {
                    "instance": name,
                    "object_score": round(score, 4),
                    "box": box.tolist() if is_box(box) else None,
                    "mask": rle,
                }
            )
            if self.png:
                self._picture(name, step.frame, mask)
        self._places[step.frame] = self._file.tell()
        self._file.write(json.dumps({"frame": step.frame, "instances": instances}).encode() + b"\n")
        self._file.flush()  # whoever looks on sees whole frames
        self._is_whole = True

    def _picture(self, name: int, frame: int, mask: NDArray[np.bool_]) -> None:
        from PIL import Image

        folder = self.out / PNG / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{frame:05d}.png")

    def finish(self) -> None:
        """No frame comes any more: bring the lines in order, and everything onto the disk."""
        if self._file.closed:
            return
        self._file.close()
        if list(self._places) != sorted(self._places):
            self._sort()
        for path in (self.out / LINES, *(self.out / PNG).rglob("*")):
            sync(path)

    def close(self, about: dict[str, Any], targets: "list[Target]") -> None:
        """Finish, and write result.json. about: what goes into it before the instances.

        If a frame was written in part, because the disk is full or the command was stopped, there is none: nothing describes
        a part of a frame.
        """
        self.finish()
        if not self._is_whole:
            return
        instances = [
            {
                "instance": i,
                "phrase": one.phrase,
                "referent": one.referent,
                "fallback": one.fallback,
                "prompted": {
                    str(t): {"box": box.tolist(), "confidence": one.confidence[t]}
                    for t, box in one.boxes.items()
                },
            }
            for i, one in enumerate(targets)
        ]
        result = {**about, "instances": instances}
        write_whole(self.out / RESULT, json.dumps(result, indent=2) + "\n")

    def _sort(self) -> None:
        """Frames before the first prompted one came last, and backwards."""
        path = self.out / LINES
        with replacing(path) as fresh, path.open("rb") as lines, fresh.open("wb") as file:
            for _, place in sorted(self._places.items()):
                lines.seek(place)
                file.write(lines.readline())


def clear(out: Path) -> None:
    """Remove what an earlier command has left, first of all its result.json."""
    (out / RESULT).unlink(missing_ok=True)
    sync(out)  # on the disk before anything that it describes is removed
    sweep_beside(out / LINES)
    pictures = [*out.glob(f"{PNG}/*/*.png"), *out.glob(f"{TSF}/*.jpg")]
    for stale in (*pictures, *(out / name for name in OVERLAYS)):
        stale.unlink(missing_ok=True)
    for folder in (out / PNG).glob("*"):
        with suppress(OSError):  # it holds something else
            folder.rmdir()


def read_masks(out: Path) -> Iterator[tuple[int, dict[int, NDArray[np.bool_]]]]:
    """Frame and its masks [H, W] by instance, in order of frames, one at a time."""
    with (out / LINES).open("rb") as lines:
        for line in lines:
            entry = json.loads(line)
            yield (
                entry["frame"],
                {one["instance"]: rle_decode(one["mask"]) for one in entry["instances"]},
            )
