"""The official files of the detection datasets -> `Corpus`. One pass over the annotations, in bounded memory.

Memory is about 30 bytes a box and a name an image while reading, whatever else the annotations hold. Images are looked
for by listing their folders; files are opened only when a corpus is used. Boxes of drawings and reflections stay: an
object is an object.
"""

import csv
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from model.proposer.config import Head
from model.proposer.data.corpora import Corpus, Table, tidy
from model.proposer.data.json_rows import json_rows
from pipeline.sources.base import DataRoot, first_of
from schemas.geometry import from_xywh
from schemas.records import Quarantined

KNOWN_BAD = {
    # listed in the annotations, not in the archives
    "objects365": {
        "patch16/objects365_v2_00908726.jpg",
        "patch6/objects365_v1_00320532.jpg",
        "patch6/objects365_v1_00320534.jpg",
    },
    # truncated or missing
    "v3det": {
        "a00013820/26_275_28143226914_ff3a247c53_c.jpg",
        "n03815615/12_1489_32968099046_be38fa580e_c.jpg",
        "n04550184/19_1480_2504784164_ffa3db8844_c.jpg",
        "a00008703/2_363_3576131784_dfac6fc6ce_c.jpg",
        "n02814533/28_2216_30224383848_a90697f1b3_c.jpg",
        "n12026476/29_186_15091304754_5c219872f7_c.jpg",
        "n01956764/12_2004_50133201066_72e0d9fea5_c.jpg",
        "n03785016/14_2642_518053131_d07abcb5da_c.jpg",
        "a00011156/33_250_4548479728_9ce5246596_c.jpg",
        "a00009461/19_152_2792869324_db95bebc84_c.jpg",
    },
}
"""Images that the users of a dataset know to be broken: the last two parts of their paths."""


class _Finder:
    """Where images are, by listing each folder once."""

    def __init__(self, root: DataRoot):
        self.root = root
        self.names = lru_cache(maxsize=64)(lambda folder: frozenset(root.listdir(folder)))

    def find(self, candidates: Sequence[str]) -> str:
        """The first candidate that exists, "" if none. Quarantined if one leads out of the data root."""
        for candidate in candidates:
            folder, _, name = candidate.rpartition("/")
            if ".." in folder.split("/") or candidate.startswith("/") or name in ("", ".", ".."):
                self.root.file(candidate)
            if name in self.names(folder or "."):
                self.root.file(candidate)
                if self.root.why_not(candidate) is None:
                    return candidate
        return ""


def _need(root: DataRoot, name: str, candidates: Sequence[str]) -> str:
    found = first_of(root, candidates)
    if found is None:
        raise ValueError(
            f"{name}: no annotations under {root.path}; expected one of {', '.join(candidates)}"
        )
    return found


def _coco_like(
    root: DataRoot,
    name: str,
    annotations: str,
    places: Callable[[str], list[str]],
    head: Head = "coco",
) -> Corpus:
    """places: `file_name` of an image -> where it may be under the root, likeliest first."""
    find, bad, dropped = _Finder(root).find, KNOWN_BAD.get(name, set()), Counter[str]()
    files: list[str] = []
    example: list[str] = []
    ids, sizes, box_ids, boxes, crowd = array("q"), array("i"), array("q"), array("f"), array("b")
    for key, row in json_rows(root.file(annotations), ("images", "annotations")):
        try:
            if key == "images":
                identity, height, width = int(row["id"]), int(row["height"]), int(row["width"])
                file_name = str(row["file_name"])
                if height < 1 or width < 1 or max(height, width) > 1 << 20:
                    raise ValueError("no size")
            else:
                of, xywh, flag = (
                    int(row["image_id"]),
                    _numbers(row["bbox"]),
                    bool(row.get("iscrowd")),
                )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            dropped["malformed_image" if key == "images" else "malformed"] += 1
            continue
        if key == "images":
            example = example or places(file_name)
            files.append(
                "" if _is_bad(file_name, bad, dropped) else _place(find, places(file_name), dropped)
            )
            ids.append(identity)
            sizes.extend((height, width))
        else:
            box_ids.append(of)
            boxes.extend(xywh)
            crowd.append(flag)
    _need_images(root, name, files, dropped, example)
    table = Table(
        annotations,
        files,
        np.array(ids, np.int64),
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array(box_ids, np.int64),
        from_xywh(np.array(boxes, np.float32).reshape(-1, 4)),
        {"crowd": np.array(crowd, bool)},
        dropped,
    )
    return tidy(table, name, head, root)


def _need_images(
    root: DataRoot, name: str, files: Sequence[str], dropped: Counter[str], example: Sequence[str]
) -> None:
    """ValueError if images are annotated and not one is there: where they were looked for, and what is there instead.

    example: where the first annotated image may be.
    """
    if any(files) or not dropped["media_missing"]:
        return
    there = []
    for entry in root.listdir("."):
        is_outside = not root.has(entry)
        kind = "/" if (root.path / entry).is_dir() else ""
        there.append(f"{entry}{kind}{' (a link out of it, not followed)' * is_outside}")
    raise ValueError(
        f"{name}: none of {dropped['media_missing']:,} annotated images was found under {root.path}. "
        f"The first was looked for at {', '.join(example)}; {root.path} holds {', '.join(there[:12])}"
    )


def _numbers(box: Any) -> list[float]:
    numbers = [float(number) for number in box]
    if len(numbers) != 4:
        raise ValueError("a box has four numbers")
    return numbers


def _is_bad(file_name: str, bad: set[str], dropped: Counter[str]) -> bool:
    known = "/".join(file_name.split("/")[-2:]) in bad
    dropped["known_bad"] += known
    return known


def _place(
    find: Callable[[Sequence[str]], str], candidates: Sequence[str], dropped: Counter[str]
) -> str:
    try:
        found = find(candidates)
    except Quarantined as error:
        dropped[str(error.reason)] += 1
        return ""
    dropped["media_missing"] += not found
    return found


def read_coco(root: DataRoot, split: str = "train") -> Corpus:
    """COCO 2017: annotations/instances_<split>2017.json, <split>2017/*.jpg. Crowd regions are left out.

    RefCOCO's validation images are among the training images: do not evaluate on them after this.
    """
    annotations = _need(
        root, "coco", [f"annotations/instances_{split}2017.json", f"instances_{split}2017.json"]
    )
    folders = (f"{split}2017", f"images/{split}2017", "images")
    return _coco_like(
        root, "coco", annotations, lambda name: [f"{folder}/{name}" for folder in folders]
    )


def read_objects365(root: DataRoot, split: str = "train") -> Corpus:
    """Objects365 v2: zhiyuan_objv2_<split>.json, <split>/patchN/*.jpg, or all images in <split>/.

    `file_name` says images/v1/patchN/..., with names of versions 1 and 2 mixed; the archives unpack to patchN alone.
    Boxes reach over the border; "crowd" there means a group.
    """
    name = f"zhiyuan_objv2_{split}.json"
    annotations = _need(
        root, "objects365", [name, f"annotations/{name}", f"Annotations/{name}", f"{split}/{name}"]
    )

    def places(file_name: str) -> list[str]:
        short, own = "/".join(file_name.split("/")[-2:]), file_name.rsplit("/", 1)[-1]
        flat = [f"{split}/{own}", f"images/{split}/{own}", f"images/{own}"]
        return [f"{split}/{short}", f"images/{split}/{short}", short, file_name, *flat, own]

    return _coco_like(root, "objects365", annotations, places)


def read_v3det(root: DataRoot, split: str = "train") -> Corpus:
    """V3Det: v3det_2023_v1_<split>.json, images/<class>/*.jpg. Images were crawled: some are gone, some resized."""
    name = f"v3det_2023_v1_{split}.json"
    annotations = _need(root, "v3det", [name, f"annotations/{name}"])
    return _coco_like(
        root, "v3det", annotations, lambda file_name: [file_name, f"images/{file_name}"]
    )


def read_openimages(root: DataRoot, split: str = "train") -> Corpus:
    """OpenImages v6: [oidv6-]<split>-annotations-bbox.csv, <split>/<id>.jpg (or <split>_0 ... <split>_f).

    Boxes are relative to the pixels as stored (the published rotations turn image and boxes together, and are not
    applied); columns are x pair, y pair. Boxes of groups are left out. One object under several labels is one box.
    """
    split = "validation" if split == "val" else split
    names = [f"oidv6-{split}-annotations-bbox.csv", f"{split}-annotations-bbox.csv"]
    annotations = _need(
        root, "openimages", [f"{folder}{name}" for folder in ("", "annotations/") for name in names]
    )
    find, dropped = _Finder(root).find, Counter[str]()
    known: dict[str, int] = {}
    box_ids, boxes, group = array("q"), array("f"), array("b")
    for identity, box, is_group in _openimages_rows(root, annotations, dropped):
        box_ids.append(known.setdefault(identity, len(known)))
        boxes.extend(box)
        group.append(is_group)

    def places(identity: str) -> list[str]:
        folders = (split, f"{split}_{identity[:1]}", f"images/{split}", f"{split}/data")
        return [f"{folder}/{identity}.jpg" for folder in folders]

    files = [_place(find, places(identity), dropped) for identity in known]
    if not known:
        raise ValueError(f"{annotations}: {dropped['malformed']:,} rows, and none can be read")
    _need_images(root, "openimages", files, dropped, places(next(iter(known))))
    table = Table(
        annotations,
        files,
        np.arange(len(known)),
        np.zeros((len(known), 2), np.int32),
        np.array(box_ids, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        {"group_of": np.array(group, bool)},
        dropped,
    )
    return tidy(table, "openimages", "coco", root, relative=True)


def _openimages_rows(
    root: DataRoot, annotations: str, dropped: Counter[str]
) -> Iterator[tuple[str, tuple[float, ...], bool]]:
    with root.file(annotations).open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        wanted = ("ImageID", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
        if missing := [name for name in wanted if name not in header]:
            raise ValueError(
                f"{annotations}: no column {', '.join(missing)}; its columns are {', '.join(header)}"
            )
        identity, *corners, group = (header.index(name) for name in wanted)
        for row in rows:
            try:
                found = (
                    row[identity],
                    tuple(float(row[column]) for column in corners),
                    row[group].strip() == "1",
                )
            except (IndexError, ValueError):
                dropped["malformed"] += 1
            else:
                yield found


READERS: dict[str, Callable[[DataRoot, str], Corpus]] = {
    "coco": read_coco,
    "objects365": read_objects365,
    "openimages": read_openimages,
    "v3det": read_v3det,
}
"""Name -> reader of (data root, split "train" or "val"). ValueError without annotations, or if they make no sense."""


def read(
    name: str,
    root: DataRoot,
    split: str = "train",
    keep: str | Path | None = None,
    max_missing: float = 1.0,
) -> Corpus:
    """A dataset by name. ValueError if more than `max_missing`, a share, of its annotated images is not there.

    keep: a folder for tables: this one is opened if it fits the annotations, otherwise written. A kept table knows
    nothing of images that went since; one that lacks images is read anew, since they may have come.
    """
    if name not in READERS:
        raise ValueError(f"no reader for {name!r}; there are {', '.join(READERS)}")
    table = None if keep is None else Path(keep) / f"{name}-{split}"
    if table is not None:
        with suppress(ValueError):
            kept = Corpus.open(table, root)
            if not kept.missing:
                return kept
    corpus = READERS[name](root, split)
    if corpus.missing > max_missing:
        raise ValueError(
            f"{corpus}\n{corpus.missing:.1%} of the images are missing under {root.path}, "
            f"--max-missing allows {max_missing:.1%}"
        )
    if table is not None:
        corpus.save(table)
    return corpus
