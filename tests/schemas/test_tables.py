"""The Parquet tables: exact columns, NaN as NULL, same rows give same bytes."""

import math

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import SCHEMA_VERSION, tables


def blank(table: str, dim: int | None = None) -> dict:
    return dict.fromkeys(tables.schema(table, dim=dim).names)


@pytest.mark.parametrize("table", tables.TABLES)
def test_every_table_is_written_and_read_back(table, tmp_path):
    dim = 4 if table == "tsf_features" else None
    path = tmp_path / "part.parquet"
    tables.write(path, table, [blank(table, dim)], dim=dim)
    back = pq.read_table(path)
    assert back.schema.names == tables.schema(table, dim=dim).names
    assert back.num_rows == 1
    assert back.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert back.schema.metadata[b"table"] == table.encode()


@pytest.mark.parametrize("table", tables.TABLES)
def test_an_empty_part_has_the_same_columns(table, tmp_path):
    """A shard whose clips all failed still writes its parts, and one glob must read them with the others."""
    dim = 4 if table == "tsf_features" else None
    tables.write(tmp_path / "a.parquet", table, [], dim=dim)
    tables.write(tmp_path / "b.parquet", table, [blank(table, dim)], dim=dim)
    assert pq.read_schema(tmp_path / "a.parquet").equals(pq.read_schema(tmp_path / "b.parquet"))
    [(count,)] = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/*.parquet'").fetchall()
    assert count == 1


@pytest.mark.parametrize("table", [t for t in tables.TABLES if t != "runs"])
def test_every_row_names_its_shard(table):
    assert "shard" in tables.schema(table, dim=4).names


def test_boxes_are_four_flat_columns():
    names = tables.schema("tracks").names
    assert {"x1", "y1", "x2", "y2", "ann_x1", "ann_y1", "ann_x2", "ann_y2"} <= set(names)


def test_missing_and_unknown_columns_are_named():
    row = blank("members")
    del row["sha256"]
    with pytest.raises(ValueError, match=r"missing columns \['sha256'\], unknown \['sha'\]"):
        tables.to_table("members", [row | {"sha": "x"}])


@pytest.mark.parametrize("nan", [math.nan, np.float32("nan"), np.float64("nan")])
def test_nan_becomes_null(nan):
    """NULL is skipped by avg(); NaN would spread through it."""
    table = tables.to_table(
        "tracks", [blank("tracks") | {"iou": nan}, blank("tracks") | {"iou": 0.5}]
    )
    assert table["iou"].to_pylist() == [None, 0.5]


def test_features_are_fixed_size_lists_of_halves():
    row = blank("tsf_features", 3) | {"feature": np.array([1, 2, 3], np.float16), "rank": 0}
    table = tables.to_table("tsf_features", [row], dim=3)
    assert table.schema.field("feature").type == pa.list_(pa.float16(), 3)
    assert table["feature"].to_pylist() == [[1, 2, 3]]
    with pytest.raises(ValueError, match="needs dim"):
        tables.schema("tsf_features")
    with pytest.raises(pa.ArrowInvalid):
        tables.to_table("tsf_features", [row], dim=4)


def test_same_rows_same_bytes(tmp_path):
    rows = [blank("qa") | {"qa_id": f"q{i}", "family": "region", "template": i} for i in range(50)]
    for name in ("a", "b"):
        tables.write(tmp_path / name, "qa", rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
