"""Textured rectangles on textured ground, and small datasets of them in the official formats with planted faults."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Boxes = list[list[int]]


def picture(
    seed: int, height: int = 96, width: int = 160, objects: int = 2
) -> tuple[Image.Image, np.ndarray]:
    """Rectangles of one texture each, and their boxes xyxy; they do not overlap."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(
        rng.integers(60, 110, (height // 8, width // 8, 3)), np.ones((8, 8, 1))
    ).astype(np.uint8)
    boxes = []
    for k in range(objects):
        left, room = k * width // objects, width // objects
        w, h = (
            int(rng.integers(room // 3, room * 4 // 5)),
            int(rng.integers(height // 4, height * 3 // 4)),
        )
        x, y = left + int(rng.integers(0, room - w)), int(rng.integers(0, height - h))
        coarse = rng.integers(0, 255, (-(-h // 6), -(-w // 6), 3))
        pixels[y : y + h, x : x + w] = np.kron(coarse, np.ones((6, 6, 1)))[:h, :w]
        boxes.append([x, y, x + w, y + h])
    return Image.fromarray(pixels), np.array(boxes, np.float32)


def write_picture(path: Path, seed: int, **size: int) -> tuple[int, int, np.ndarray]:
    """-> height, width, boxes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, boxes = picture(seed, **size)
    image.save(path, quality=95)
    return image.height, image.width, boxes


def xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def coco_like(
    root: Path,
    annotations: str,
    images: list[tuple[str, str]],
    faults: Sequence[dict] = (),
    extra: Sequence[dict] = (),
) -> list[np.ndarray]:
    """images: (file_name, where it is under root; "" for nowhere). faults: more annotations; extra: more images."""
    rows, boxes, found = [], [], []
    for k, (name, place) in enumerate(images):
        height, width, there = write_picture(root / (place or "nowhere.jpg"), k)
        if not place:
            (root / "nowhere.jpg").unlink()
        rows.append(
            {"id": 100 - k, "file_name": name, "height": height, "width": width, "license": 1}
        )
        boxes += [
            {
                "id": 10 * k + j,
                "image_id": 100 - k,
                "category_id": j,
                "bbox": xywh(b),
                "iscrowd": 0,
                "area": 1.0,
            }
            for j, b in enumerate(there)
        ]
        found.append(there)
    whole = {
        "info": {"year": 2017},
        "images": [*rows, *extra],
        "annotations": [*boxes[::-1], *faults],
        "categories": [],
    }
    (root / annotations).parent.mkdir(parents=True, exist_ok=True)
    (root / annotations).write_text(json.dumps(whole))
    return found


def fault(image_id: object, bbox: object, **more: object) -> dict:
    return {"id": 0, "image_id": image_id, "category_id": 1, "bbox": bbox, "iscrowd": 0} | more


def openimages(root: Path, ids: list[str], faults: list[list]) -> list[np.ndarray]:
    columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    columns += ",XClick1X,XClick2X"  # version 6 has click columns behind
    (root / "train").mkdir(parents=True)
    found = []
    with (root / "oidv6-train-annotations-bbox.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns.split(","))
        for k, name in enumerate(ids):
            height, width, boxes = write_picture(
                root / "train" / f"{name}.jpg", k, height=64 + 16 * k
            )
            for x1, y1, x2, y2 in boxes:
                rows.writerow(
                    [
                        name,
                        "xclick",
                        "/m/01",
                        1,
                        x1 / width,
                        x2 / width,
                        y1 / height,
                        y2 / height,
                        0,
                        0,
                        0,
                        0,
                        0,
                        0.1,
                        0.2,
                    ]
                )
            found.append(boxes)
        rows.writerows(faults)
    return found
