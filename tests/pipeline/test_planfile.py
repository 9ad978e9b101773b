"""Rows of a plan file: the bytes that hashes count, only what is wanted is read, and ids are seen in little memory."""

import json
import tracemalloc
from dataclasses import asdict, replace

import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.plan import build_plan, outlines, plan_items, read_plan
from pipeline.planfile import from_record, read_records, table, to_record
from pipeline.seen import Seen
from schemas import SCHEMA_VERSION
from schemas.config import canonical_json, digest
from schemas.records import Clip, Media, Planned, Reason, Referent, Rejected

FOLDER = Media("frames", "a/b", names=("0001.jpg", "0003.jpg"))
CLIP = Clip("mevis-c", "mevis", "train", "ü", FOLDER, 0, 2, fps=None, licence="x")
REFERENT = Referent(
    "mevis-c-0", "mevis-c", "the “left” cat", ("1", "2"), pointer={"at": [1, 2], "file": "x.json"}
)
ITEMS = [
    Planned(CLIP, (REFERENT,)),
    Rejected("mevis", "train", "row 3", Reason.MALFORMED_ROW, "no box", "meta.json:3"),
    Rejected("mevis", "train", "c/1", Reason.NO_OBJECT, "none", clip_id="mevis-c"),
    Rejected("mevis", "train", "mevis-d", Reason.EXCLUDED, "excluded", referent_id="mevis-d-0"),
]


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: type(i).__name__)
def test_a_record_is_the_whole_item_and_comes_back(item):
    kind, record = to_record(item)
    fields = asdict(item)
    if isinstance(item, Planned):
        assert fields.pop("others") == ()
    else:
        fields = {name: value for name, value in fields.items() if value is not None}
    assert record == canonical_json(fields)
    assert from_record(kind, record) == item


def test_other_targets_come_back_and_the_same_clip_is_not_repeated():
    far = replace(CLIP, clip_id="mevis-d", start=1)
    blank = replace(REFERENT, referent_id="mevis-d-0", caption="")
    item = replace(ITEMS[0], others=((CLIP, blank), (far, blank)))
    kind, record = to_record(item)
    assert from_record(kind, record) == item
    assert [other["clip"] is None for other in json.loads(record)["others"]] == [True, False]
    assert "others" not in json.loads(to_record(ITEMS[0])[1])


def test_a_shard_s_hash_is_of_its_rows_and_the_configs(tiny_job):
    """As it has always been: outputs that exist must be found again."""
    build_plan(tiny_job)
    base = [
        SCHEMA_VERSION,
        "stages",
        tiny_job.config.digest(),
        tiny_job.take.qa,
        tiny_job.load().config.digest(),
    ]
    items = list(plan_items(tiny_job))
    for shard in read_plan(tiny_job, "stages"):
        mine = [items.pop(0) for _ in shard.items]
        assert shard.hash == digest([base, [[*to_record(item)] for item in mine]])
    assert items == []


def test_outlines_are_the_shards_without_their_rows(tiny_job):
    build_plan(tiny_job)
    shards = list(read_plan(tiny_job, "stages"))
    told = [(s.name, s.index, s.hash, len(s.clips)) for s in shards]
    assert [(o.name, o.index, o.hash, o.clips) for o in outlines(tiny_job, "stages")] == told


def test_of_shards_that_nobody_wants_no_row_is_read(tiny_job, monkeypatch):
    monkeypatch.setattr(plan, "ROWS", 2)
    build_plan(tiny_job)
    whole = list(read_plan(tiny_job, ""))
    with pq.ParquetFile(tiny_job.plan_path) as file:
        assert file.num_row_groups > 2
        page = file.metadata.row_group(0).column(2)
    data = bytearray(tiny_job.plan_path.read_bytes())
    start = page.dictionary_page_offset or page.data_page_offset
    data[start : start + page.total_compressed_size] = bytes(
        page.total_compressed_size
    )  # nobody can read this now
    tiny_job.plan_path.write_bytes(data)
    last = whole[-1]
    assert list(read_plan(tiny_job, "", only={last.name})) == [last]
    assert list(read_plan(tiny_job, "", only=set())) == []
    with pytest.raises(OSError, match="Couldn't deserialize"):
        list(read_plan(tiny_job, "", only={whole[0].name}))


def test_a_shard_that_spans_row_groups_is_read_whole(tmp_path):
    rows = [(n // 5, "rejected", str(n)) for n in range(20)]
    with pq.ParquetWriter(tmp_path / "plan.parquet", table([]).schema) as writer:
        for start in range(0, 20, 3):
            writer.write_table(table(rows[start : start + 3]))
    found = list(read_records(tmp_path / "plan.parquet", lambda shard: shard in (1, 3)))
    assert found == [(s, [("rejected", str(n)) for n in range(5 * s, 5 * s + 5)]) for s in (1, 3)]


def test_seen_is_a_set():
    seen, names = Seen(), [f"hcstvg-train-{n % 700}" for n in range(1000)]
    assert [seen.add(name) for name in names] == [n < 700 for n in range(1000)]
    assert len(seen) == 700


def test_the_end_of_one_key_and_the_beginning_of_the_next_are_not_a_third():
    import hashlib

    key = hashlib.sha256(b"x").digest()
    seen = Seen()
    seen._buckets[int.from_bytes(key[:2])] = bytearray(b"\0" * 5 + key[2:12] + b"\0" * 5)
    assert seen.add("x")
    assert not seen.add("x")


def test_seen_needs_little_memory():
    tracemalloc.start()
    try:
        seen = Seen()
        empty = tracemalloc.get_traced_memory()[0]
        for n in range(30_000):
            seen.add(f"a{n}")
        grown = tracemalloc.get_traced_memory()[0] - empty
    finally:
        tracemalloc.stop()
    assert (
        grown / 30_000 < 130
    )  # half a bytearray each: 65,536 buckets are dear for so few, and cheap for a million
