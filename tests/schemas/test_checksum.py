"""A file's own checksum: any bit that changes is noticed, and readers do not mind it."""

import random

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.checksum import KEY, add_metadata, stamp, why_damaged

TABLE = pa.table({"word": ["a dog", "a cat", None] * 50, "n": list(range(150))})


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, TABLE.schema, compression="zstd") as writer:
        writer.write_table(TABLE)
        add_metadata(writer, {"job": "{}"})
    stamp(path)
    return path


def test_a_file_as_written_is_whole_and_readers_read_it(path):
    assert why_damaged(path) == ""
    assert pq.read_table(path).equals(TABLE)
    assert duckdb.sql(f"SELECT sum(n) FROM '{path}'").fetchall() == [(sum(range(150)),)]
    metadata = pq.read_metadata(path).metadata
    assert metadata[b"job"] == b"{}"
    assert len(metadata[KEY.encode()]) == 64


def test_the_same_rows_give_the_same_bytes(path):
    first = path.read_bytes()
    stamp(path)  # again: the digits are no part of what is digested
    assert path.read_bytes() == first


def test_every_bit_counts(path):
    data = path.read_bytes()
    places = (
        range(len(data)) if len(data) < 4000 else random.Random(0).sample(range(len(data)), 4000)
    )
    for place in places:
        bit = 1 << (place % 8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        assert why_damaged(path), place


@pytest.mark.parametrize("cut", [0, 3, 8, 100, -1])
def test_a_cut_file_is_no_whole_one(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    assert "not a whole Parquet file" in why_damaged(path)


def test_a_file_of_another_program_has_no_checksum(path):
    pq.write_table(TABLE, path)
    assert "no checksum" in why_damaged(path)
    with pytest.raises(ValueError, match="no checksum"):
        stamp(path)
