"""What `sparrow ground` writes, frame by frame as it comes.

<out>/masks.jsonl       a line per frame: {"frame", "instances": [{"instance", "object_score", "box", "mask"}]}; masks
                        are COCO RLE, boxes xyxy around them in pixels, half-open, null where the mask is empty
<out>/png/<instance>/   %05d.png, 255 inside (`--png`); frames before an instance was found have none
<out>/result.json       what was asked, answered and found: instances with phrase, prompted boxes, confidence
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.geometry import is_box, rle_box, rle_decode, rle_encode

if TYPE_CHECKING:
    from model.grounding import FrameMasks
    from model.instances import Target

LINES, RESULT, PNG = "masks.jsonl", "result.json", "png"


class MaskWriter:
    """Writes frames in any order; the lines are in order of frames when it is closed."""

    def __init__(self, out: Path, *, png: bool = False):
        self.out, self.png = out, png
        out.mkdir(parents=True, exist_ok=True)
        for stale in (out / RESULT, *(out / PNG).glob("*/*.png")):
            stale.unlink(missing_ok=True)
        self._file = (out / LINES).open("wb")
        self._places: dict[int, int] = {}

    def add(self, step: "FrameMasks") -> None:
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

    def _picture(self, name: int, frame: int, mask: NDArray[np.bool_]) -> None:
        from PIL import Image

        folder = self.out / PNG / str(name)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{frame:05d}.png")

    def close(self, about: dict[str, Any], targets: "list[Target]") -> None:
        """about: what goes into result.json before the instances."""
        self._file.close()
        if list(self._places) != sorted(self._places):
            self._sort()
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
        (self.out / RESULT).write_text(
            json.dumps({**about, "instances": instances}, indent=2) + "\n"
        )

    def _sort(self) -> None:
        """Frames before the first prompted one came last, and backwards."""
        path = self.out / LINES
        with (
            path.open("rb") as lines,
            (sorted_path := path.with_suffix(".sorted")).open("wb") as file,
        ):
            for _, place in sorted(self._places.items()):
                lines.seek(place)
                file.write(lines.readline())
        sorted_path.replace(path)


def read_masks(out: Path) -> Iterator[tuple[int, dict[int, NDArray[np.bool_]]]]:
    """Frame and its masks [H, W] by instance, in order of frames, one at a time."""
    with (out / LINES).open("rb") as lines:
        for line in lines:
            entry = json.loads(line)
            yield (
                entry["frame"],
                {one["instance"]: rle_decode(one["mask"]) for one in entry["instances"]},
            )
