"""The Parquet tables of `manifests/`: explicit, flat, versioned.

Every shard writes one part file per table, all parts of a table have the same schema, so one glob reads them. A box
is four float columns (`x1 y1 x2 y2`, `schemas.geometry`); NULL where there is no box. Changes are additive and raise
SCHEMA_VERSION.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas import SCHEMA_VERSION, checksum

_S, _I, _L, _F, _B = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.bool_()
_D = pa.float64()
_WORD = pa.dictionary(pa.int32(), pa.string())  # few distinct values


def _box(prefix: str = "") -> dict[str, pa.DataType]:
    return {f"{prefix}{c}": _F for c in ("x1", "y1", "x2", "y2")}


_PLACE = {"source": _WORD, "split": _WORD}
_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "clips": {
        "clip_id": _S,
        **_PLACE,
        "video_id": _S,
        "media_kind": _WORD,
        "media_path": _S,
        "start": _L,
        "stop": _L,
        "step": _I,
        "n_frames": _I,
        "fps": _F,
        "height": _I,
        "width": _I,
        "n_resized": _I,
        "source_bytes": _L,
        "source_mtime_ns": _L,
        "source_sha256": _S,
        "decoder": _WORD,
        # Of the video file that was read; NULL for folders of images.
        "container": _WORD,
        "codec": _WORD,
        "video_stream": _I,  # of all streams of the file, from 0
        "n_video_streams": _I,
        "orientation": _WORD,  # what its display matrix asks for, and was done
        "pixel_aspect": _WORD,  # recorded, pixels are not stretched
        "colour": _WORD,
        "variable_rate": _B,
        "n_interlaced": _I,  # pictures of the video that are two woven fields
        "n_concealed": _I,  # pictures of the clip whose damage the decoder covered up
        "media": _WORD,
        "media_gop": _I,
        "licence": _WORD,
        "preset": _WORD,
        "config_hash": _WORD,
        "code_version": _WORD,
        "weights_hash": _WORD,
    },
    "referents": {
        "referent_id": _S,
        "clip_id": _S,
        **_PLACE,
        "video_id": _S,
        "caption": _S,
        "raw_caption": _S,
        "category": _WORD,
        "object_ids": pa.list_(pa.field("element", _S)),
        "n_objects": _I,
        "n_frames": _I,
        "n_known": _I,
        "n_visible": _I,
        "n_boxes": _I,
        "n_kept": _I,
        "n_masks": _I,
        "n_qa": _I,
        "key_frame": _I,
        "detector": _WORD,
        "detector_score": _F,
        "detector_margin": _F,
        "text_used": _B,
        "tracker": _WORD,
        "segmenter": _WORD,
        "encoder": _WORD,
        "box_rule": _WORD,
        "mask_rule": _WORD,
        "mean_iou": _F,  # of tracked with annotated boxes; NULL where none was compared
        "n_compared": _I,  # frames that mean_iou rests on, those that were dropped included
        "iou_coverage": _F,  # of the kept frames, the share that was compared; NULL for boxes that were not tracked
        "n_fallback_masks": _I,
        "n_dropped_masks": _I,
        # Noise on purpose, on the boxes that TSF is made of (Table 10); never on `tracks`.
        "corruption": _WORD,  # none, jitter, id_switch or dropout
        "corruption_level": _F,  # that was asked for; NULL for none
        "n_corrupted": _I,  # kept frames whose box was moved, replaced or removed
        "n_corruptible": _I,  # kept frames with a box before that
        "n_switchable": _I,  # of these, where another target of the video has a box; NULL unless id_switch
        "preset": _WORD,
    },
    "tracks": {
        "referent_id": _S,
        "clip_id": _S,
        "frame": _I,
        "source_frame": _L,
        "time": _D,  # seconds on the video's clock; NULL where it has none
        **_box(),
        "origin": _WORD,
        "score": _F,
        "known": _B,
        **_box("ann_"),
        **{f"raw_{i}": _F for i in range(4)},
        "raw_format": _WORD,
        "iou": _F,
        "kept": _B,
        "dropped": _WORD,
    },
    "masks": {
        "referent_id": _S,
        "clip_id": _S,
        "frame": _I,
        "source_frame": _L,
        "origin": _WORD,
        "score": _F,
        "box_iou": _F,
        "area": _L,
        "height": _I,
        "width": _I,
        "counts": _S,
    },
    "tsf": {
        "referent_id": _S,
        "clip_id": _S,
        "rank": _I,
        "frame": _I,
        "source_frame": _L,
        **_box(),
        "crop_height": _I,
        "crop_width": _I,
        "repeated": _B,
        "n_candidates": _I,
        "encoder": _WORD,
    },
    "qa": {
        "qa_id": _S,
        "referent_id": _S,
        "clip_id": _S,
        **_PLACE,
        "family": _WORD,
        "template": _I,
        "question": _S,
        "answer": _S,
    },
    "shards": {
        "path": _S,
        **_PLACE,
        "index": _I,
        "bytes": _L,
        "sha256": _S,
        "n_clips": _I,
        "n_referents": _I,
        "n_samples": _I,
        "n_quarantined": _I,
        "n_qa": _I,
        "templates": _S,  # the pool of question templates, as JSON
        "templates_hash": _WORD,
        "plan_hash": _S,
        "config_hash": _WORD,
        "code_version": _WORD,
        "preset": _WORD,
        "schema_version": _I,
        "parts_sha256": _S,
    },
    "members": {
        "key": _S,
        "referent_id": _S,
        "name": _WORD,
        "offset": _L,
        "size": _L,
        "sha256": _S,
    },
    "quarantine": {
        **_PLACE,
        "clip_id": _S,
        "referent_id": _S,
        "stage": _WORD,
        "reason": _WORD,
        "error_class": _WORD,
        "message": _S,
        "where": _S,
        "traceback_hash": _S,
        "attempt": _I,
        "retryable": _B,
    },
    "timings": {
        "clip_id": _S,
        "stage": _WORD,
        "seconds": _F,
        "frames": _I,
        "bytes": _L,
        "note": _S,
    },
    "runs": {
        "run_id": _S,
        "source": _WORD,
        "split": _WORD,
        "started": pa.timestamp("us", "UTC"),
        "ended": pa.timestamp("us", "UTC"),
        "status": _WORD,
        "executor": _WORD,
        "workers": _I,
        "host": _S,
        "shards_done": _I,
        "shards_skipped": _I,
        "clips_done": _I,
        "clips_resumed": _I,
        "config": _S,
        "config_hash": _S,
        "versions": _S,
        "code_version": _S,
        "synthetic": _B,
        "dropped": pa.list_(pa.field("element", _S)),
    },
}
TABLES = (*_COLUMNS, "tsf_features")
"""Every table, each a folder of `manifests/`."""
VOLATILE = ("timings", "runs")
"""Tables that tell of one run, when it was and how long it took. Equal runs give equal bytes of all others."""

CHECKSUMMED = ("shards", *VOLATILE)
"""Tables whose parts have a checksum of their own. Those of the others are in `shards.parts_sha256`."""

ROW_GROUP = {"tsf_features": 8192}
"""Rows per group; wide rows get small groups. The rest: DuckDB's own unit of parallel work."""
_ROW_GROUP = 122_880


def schema(table: str, *, dim: int | None = None) -> pa.Schema:
    """The schema of a table. `tsf_features` needs the encoder's `dim`: features are fixed-size lists of float16.

    All tables but `runs` carry `shard`, the name of the shard that committed the row.
    """
    if table == "tsf_features":
        if dim is None:
            raise ValueError("tsf_features needs dim, the length of the encoder's features")
        columns = {
            "referent_id": _S,
            "rank": _I,
            "encoder": _WORD,
            "feature": pa.list_(pa.field("element", pa.float16()), dim),
        }
    else:
        columns = dict(_COLUMNS[table])
    if table != "runs":
        columns["shard"] = _WORD
    return pa.schema(
        list(columns.items()), metadata={"schema_version": str(SCHEMA_VERSION), "table": table}
    )


def to_table(table: str, rows: list[dict], *, dim: int | None = None) -> pa.Table:
    """Rows -> a table of exactly the schema: a missing or unknown column is a ValueError. NaN becomes NULL."""
    form = schema(table, dim=dim)
    names = set(form.names)
    for row in rows:
        if row.keys() != names:
            raise ValueError(
                f"table {table}: missing columns {sorted(names - row.keys())}, unknown {sorted(row.keys() - names)}"
            )
    columns = {
        name: [None if isinstance(v := row[name], _FLOATS) and v != v else v for row in rows]
        for name in form.names
    }
    return pa.Table.from_pydict(columns, schema=form)


_FLOATS = (float, np.floating)


def write(path: Path, table: str, rows: list[dict], *, dim: int | None = None) -> None:
    """One part file: zstd, dictionary-coded strings, row groups sized for scans. Same rows, same bytes."""
    write_table(path, to_table(table, rows, dim=dim), table)


def write_table(path: Path, data: pa.Table, table: str) -> None:
    """As `write`, of rows that are a table already."""
    with pq.ParquetWriter(path, data.schema, compression="zstd", write_page_index=True) as writer:
        if len(data):  # others' readers stop at a row group without rows
            writer.write_table(data, row_group_size=ROW_GROUP.get(table, _ROW_GROUP))
        if table in CHECKSUMMED:
            checksum.add_metadata(writer, {})
    if table in CHECKSUMMED:
        checksum.stamp(path)


def digests(parts: Mapping[str, Path]) -> str:
    """What `shards.parts_sha256` holds of a shard's parts (table -> file): JSON, table -> sha256. Volatile and its own
    table are left out."""
    names = [table for table in TABLES if table not in (*VOLATILE, "shards")]
    return json.dumps(
        {table: hashlib.sha256(parts[table].read_bytes()).hexdigest() for table in names}
    )
