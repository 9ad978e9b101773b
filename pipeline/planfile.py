"""The rows of a plan file: number of the shard, kind, and the record as canonical JSON, in Parquet."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import canonical_json
from schemas.records import Clip, Media, Planned, Reason, Referent, Rejected

SCHEMA = pa.schema([("shard", pa.int32()), ("kind", pa.string()), ("record", pa.string())])
ROWS = 2048
"""Rows of a row group: what is held while planning, and the least that is read of a saved plan."""

Records = list[tuple[str, str]]
"""(kind, record) of each row of a shard."""


def table(rows: list[tuple[int, str, str]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def read_records(
    path: Path, wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, Records]]:
    """Number and records of each shard of a plan file, in order. wanted: of the others nothing is read, but for those
    that share a row group with one that is."""
    with pq.ParquetFile(path) as file:
        groups = [n for n in range(file.num_row_groups) if wanted is None or _any(file, n, wanted)]
        batches = file.iter_batches(1024, row_groups=groups) if groups else iter(())
        rows = (
            row
            for batch in batches
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        for shard, group in groupby(rows, key=itemgetter(0)):
            if wanted is None or wanted(shard):
                yield shard, [(kind, record) for _, kind, record in group]


def _any(file: pq.ParquetFile, n: int, wanted: Callable[[int], bool]) -> bool:
    """Whether a row group has rows of a wanted shard, by the lowest and the highest number that it says it has."""
    known = file.metadata.row_group(n).column(0).statistics
    return (
        known is None or not known.has_min_max or any(map(wanted, range(known.min, known.max + 1)))
    )


def to_record(item: Planned | Rejected) -> tuple[str, str]:
    """Kind and record. The hash of a shard counts these bytes."""
    if isinstance(item, Planned):
        record: dict = {
            "clip": _clip_fields(item.clip),
            "referents": [_fields(r) for r in item.referents],
        }
        if item.others:  # without them a record is as it was before there were any
            record["others"] = [_other_fields(*other, item.clip) for other in item.others]
        return "clip", canonical_json(record)
    fields = _fields(item)
    given = {name: value for name, value in fields.items() if value is not None}
    return "rejected", canonical_json(given)


def _fields(record: Clip | Media | Referent | Rejected) -> dict:
    """`dataclasses.asdict` without its deep copies, in which planning spent most of its time."""
    return {name: getattr(record, name) for name in record.__slots__}


def _clip_fields(clip: Clip) -> dict:
    return _fields(clip) | {"media": _fields(clip.media)}


def _other_fields(clip: Clip, referent: Referent, mine: Clip) -> dict:
    """Another target; its clip is null where it is the same one."""
    place = None if clip == mine else _clip_fields(clip)
    return {"clip": place, "referent": _fields(referent)}


def from_record(kind: str, record: str) -> Planned | Rejected:
    fields = json.loads(record)
    if kind == "rejected":
        return Rejected(**{**fields, "reason": Reason(fields["reason"])})
    clip = _clip(fields["clip"])
    referents = tuple(map(_referent, fields["referents"]))
    others = tuple(
        (_clip(other["clip"]) if other["clip"] else clip, _referent(other["referent"]))
        for other in fields.get("others", ())
    )
    return Planned(clip, referents, others)


def _clip(fields: dict) -> Clip:
    media = dict(fields["media"])
    names = media.pop("names")
    where = Media(names=tuple(names) if names is not None else None, **media)
    return Clip(**{**fields, "media": where})


def _referent(fields: dict) -> Referent:
    return Referent(**{**fields, "object_ids": tuple(fields["object_ids"])})
