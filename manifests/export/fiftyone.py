"""A FiftyOne video dataset, in the JSON that `fiftyone.types.FiftyOneDataset` imports; FiftyOne itself is not needed.

    metadata.json               the fields of samples and frames, as FiftyOne's database describes them
    samples.json, frames.json   a sample per clip; a frame per picture that has a target or says that it has none
    data/<clip_id>.mp4          the stored video, unchanged; clips stored as pictures are encoded

In a frame, `targets` are the tracked boxes and `masks` the segmented ones, each with the box around its own pixels,
since FiftyOne keeps a mask inside its box. Boxes are x, y, width, height as shares of the video's size, which is even
(an odd clip was padded). `index` is the place of the target, from 1, in the sample's `captions` and `referent_ids`.
Frames count from 1. `absent` lists targets that the dataset says are not there, `unknown` those it is silent about.

Masks are .npy bytes, compressed by zlib, in base64: FiftyOne's own form; it holds numbers, never objects.
"""

import base64
import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.export.read import Clip, Target
from manifests.export.stream import Array
from manifests.export.video import encode_video
from schemas.geometry import RLE, rle_box, rle_decode
from schemas.video.container import open_container

VERSION = "1.0.0"
"""Of FiftyOne, whose descriptions of fields these are; a newer one migrates them when it imports."""
NO_CATEGORY = "object"
"""Label of targets whose dataset names no class."""

_EMPTY = (
    "classes",
    "mask_targets",
    "default_mask_targets",
    "group_media_types",
    "skeletons",
    "annotation_runs",
    "brain_methods",
    "evaluations",
    "runs",
)
_FIELDS = "fiftyone.core.fields."
_TEXT, _WHOLE, _REAL = "StringField", "IntField", "FloatField"


class FiftyOne:
    """See the module."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "data").mkdir()
        self._samples = Array(folder / "samples.json", "samples")
        self._frames = Array(folder / "frames.json", "frames")
        self._licences: dict[str, str] = {}

    def add(self, clip: Clip) -> dict[str, str]:
        """Write a clip's video, its sample and its frames; no target is left out."""
        video, about = _video(clip)
        sample = _id(clip.key)
        labels = [(i, target, _masks(target)) for i, target in enumerate(clip.targets, start=1)]
        (self.folder / "data" / f"{clip.key}.mp4").write_bytes(video)
        row = clip.row
        licence = self._licences.setdefault(row["source"], row["licence"] or "not stated")
        self._samples.add(
            {
                "_id": sample,
                "_media_type": "video",
                "_rand": int(sample["$oid"][:8], 16) / 2**32,
                "filepath": f"data/{clip.key}.mp4",
                "tags": [row["source"], row["split"]],
                "metadata": about,
                "clip_id": clip.key,
                "source": row["source"],
                "split": row["split"],
                "video_id": row["video_id"],
                "licence": licence,
                "captions": [target.info["caption"] for target in clip.targets],
                "referent_ids": [target.key for target in clip.targets],
            }
        )
        size = np.array([about["frame_width"], about["frame_height"]] * 2, np.float64)
        for t in range(row["n_frames"]):
            found = {
                "targets": [
                    _detection(t, i, one, one.boxes_t4[t], None, size)
                    for i, one, _ in labels
                    if one.kept_t[t]
                ],
                "masks": [
                    _detection(t, i, one, *masks[t], size) for i, one, masks in labels if t in masks
                ],
            }
            absent = [i for i, one, _ in labels if one.absent_t[t]]
            unknown = [i for i, one, _ in labels if not one.kept_t[t] and not one.absent_t[t]]
            self._frames.add(
                {
                    "_id": _id(clip.key, t),
                    "_sample_id": sample,
                    "frame_number": t + 1,
                    **{
                        name: {"_cls": "Detections", "detections": many}
                        for name, many in found.items()
                    },
                    "absent": absent,
                    "unknown": unknown,
                }
            )
        return {}

    def close(self) -> None:
        self._samples.close()
        self._frames.close()
        about = {
            "version": VERSION,
            "media_type": "video",
            "tags": [],
            "sample_fields": _SAMPLE,
            "frame_fields": _FRAME,
            "info": {"made by": "SPARROW-TSF", "licences": self._licences},
            **{name: [] for name in ("saved_views", "workspaces", "default_classes")},
            **{name: {} for name in _EMPTY},
        }
        (self.folder / "metadata.json").write_text(
            json.dumps(about, indent=1) + "\n", encoding="utf-8"
        )


def _video(clip: Clip) -> tuple[bytes, dict[str, Any]]:
    """The clip as an mp4, and what FiftyOne keeps about it. ValueError where it has another number of frames."""
    fps = (clip.row["fps"] or 25.0) / (clip.row["step"] or 1)
    stored = clip.media is not None and clip.media["name"] == "mp4"
    data = clip.stored() if stored else encode_video(clip.pictures(), clip.size, fps)
    with open_container(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        count, height, width = (
            stream.frames,
            stream.codec_context.height,
            stream.codec_context.width,
        )
        rate = float(stream.average_rate or fps)
    padded = (height - clip.size[0], width - clip.size[1])
    if count != clip.row["n_frames"] or not {0, 1}.issuperset(padded):
        raise ValueError(
            f"{clip.tar.name}: the media has {count} frames of {width}x{height}, the clip "
            f"{clip.row['n_frames']} of {clip.size[1]}x{clip.size[0]}"
        )
    return data, {
        "_cls": "VideoMetadata",
        "size_bytes": len(data),
        "mime_type": "video/mp4",
        "frame_width": width,
        "frame_height": height,
        "frame_rate": rate,
        "total_frame_count": count,
        "duration": count / rate,
        "encoding_str": "avc1",
    }


def _masks(target: Target) -> dict[int, tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """frame -> the box around a mask, in whole pixels, and the mask inside it."""
    return {t: found for t, rle in target.masks.items() if (found := _inside(rle)) is not None}


def _inside(rle: RLE) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    box = rle_box(rle)
    if not np.isfinite(box).all():
        return None
    x1, y1, x2, y2 = box.astype(int)
    return box, rle_decode(rle)[y1:y2, x1:x2]


def _detection(
    t: int,
    index: int,
    target: Target,
    box: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    size: NDArray[np.float64],
) -> dict[str, Any]:
    """box: pixels, half-open. mask: what is inside the box. size: width, height, width, height of the video."""
    x1, y1, x2, y2 = (box / size).tolist()
    return {
        "_id": _id(target.key, t, mask is not None),
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": target.info["category"] or NO_CATEGORY,
        "bounding_box": [x1, y1, x2 - x1, y2 - y1],
        **({} if mask is None else {"mask": _binary(mask)}),
        "index": index,
        "caption": target.info["caption"],
        "referent_id": target.key,
    }


def _binary(mask: NDArray[np.bool_]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    return {
        "$binary": {
            "base64": base64.b64encode(zlib.compress(buffer.getvalue())).decode(),
            "subType": "00",
        }
    }


def _id(*parts: object) -> dict[str, str]:
    """A document's id, the same in every export of the same thing."""
    return {"$oid": hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}


# --- metadata.json: the fields, as FiftyOne's database wants them described ------------------------------------------


def _field(
    name: str, kind: str, *fields: dict, of: str | None = None, document: str | None = None
) -> dict[str, Any]:
    """of: what a list holds; document: what an embedded document is, of which `fields` are declared."""
    return {
        "name": name,
        "ftype": _FIELDS + kind,
        "subfield": of and _FIELDS + of,
        "fields": list(fields),
        "embedded_doc_type": document and f"fiftyone.core.{document}",
        "db_field": "_id" if name == "id" else name,
        "description": None,
        "info": None,
        "read_only": False,
        "created_at": None,
    }


_DATES = [_field("created_at", "DateTimeField"), _field("last_modified_at", "DateTimeField")]
_METADATA = [
    _field("size_bytes", _WHOLE),
    _field("mime_type", _TEXT),
    _field("frame_width", _WHOLE),
    _field("frame_height", _WHOLE),
    _field("frame_rate", _REAL),
    _field("total_frame_count", _WHOLE),
    _field("duration", _REAL),
    _field("encoding_str", _TEXT),
]
_SAMPLE = [
    _field("id", "ObjectIdField"),
    _field("filepath", _TEXT),
    _field("tags", "ListField", of=_TEXT),
    _field("metadata", "EmbeddedDocumentField", *_METADATA, document="metadata.VideoMetadata"),
    *_DATES,
    *(_field(name, _TEXT) for name in ("clip_id", "source", "split", "video_id", "licence")),
    *(_field(name, "ListField", of=_TEXT) for name in ("captions", "referent_ids")),
]


def _detections(name: str) -> dict[str, Any]:
    parts = [
        _field("id", "ObjectIdField"),
        _field("tags", "ListField", of=_TEXT),
        _field("label", _TEXT),
        _field("bounding_box", "ListField", of=_REAL),
        _field("mask", "ArrayField"),
        _field("mask_path", _TEXT),
        _field("confidence", _REAL),
        _field("index", _WHOLE),
        _field("caption", _TEXT),
        _field("referent_id", _TEXT),
    ]
    listed = _field(
        "detections", "ListField", *parts, of="EmbeddedDocumentField", document="labels.Detection"
    )
    return _field(name, "EmbeddedDocumentField", listed, document="labels.Detections")


_FRAME = [
    _field("id", "ObjectIdField"),
    _field("frame_number", "FrameNumberField"),
    *_DATES,
    _detections("targets"),
    _detections("masks"),
    _field("absent", "ListField", of=_WHOLE),
    _field("unknown", "ListField", of=_WHOLE),
]
