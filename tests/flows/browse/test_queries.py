"""Filters as links, a run that goes on meanwhile, and manifests that lie."""

import shutil
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.browse import queries
from flows.browse.queries import Catalogue, Filters
from schemas.records import Quarantined


def change(part: Path, **columns: object) -> None:
    """The part file again, each row with these values."""
    table = pq.read_table(part)
    for name, value in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.field(at), pa.array([value] * len(table), table.field(at).type)
        )
    pq.write_table(table, part)


@pytest.fixture
def copy(out, tmp_path) -> Path:
    return shutil.copytree(out, tmp_path / "copy")


def test_a_link_says_the_same_filters_again():
    filters = Filters.parse(
        {"text": "a & b", "min_iou": "0.5", "flagged": "1", "split": " ", "where": "n_qa = '&'"}
    )
    link = filters.link(page=3)
    assert link == "text=a+%26+b&min_iou=0.5&flagged=1&where=n_qa+%3D+%27%26%27&page=3"
    assert Filters().link() == ""
    with pytest.raises(ValueError, match="max frames: 'ten' is not a number"):
        Filters.parse({"max_frames": "ten"})


def test_values_are_bound_and_quotes_mean_nothing(out):
    catalogue = Catalogue(out)
    for text in ("' OR true --", "%", "_"):
        assert (
            catalogue.find(Filters(text=text, source="hcstvg' OR '1'='1"), "samples", set())[0] == 0
        )


def test_order_and_neighbours(out):
    catalogue = Catalogue(out)
    total, rows = catalogue.find(Filters(order="worst IoU first"), "samples", set())
    assert [row["mean_iou"] for row in rows] == sorted(row["mean_iou"] for row in rows)
    ids = [row["referent_id"] for row in rows]
    assert catalogue.beside(Filters(order="worst IoU first"), 2, set()) == {1: ids[1], 3: ids[3]}
    assert catalogue.beside(Filters(order="worst IoU first"), 0, set()) == {1: ids[1]}
    assert catalogue.beside(Filters(order="worst IoU first"), total - 1, set()) == {
        total - 2: ids[-2]
    }


def test_what_a_run_commits_meanwhile_is_seen(copy, monkeypatch):
    monkeypatch.setattr(queries, "STALE", 0.0)
    catalogue = Catalogue(copy)
    for table in ("shards", "referents", "clips"):
        (part,) = (copy / "manifests" / table).glob("*.parquet")
        second = part.with_name("hcstvg-train-000001.parquet")
        shutil.copy(part, second)
        change(second, shard="hcstvg-train-000001")
    for _ in range(100):
        if (n := catalogue.rows("SELECT count(*) AS n FROM samples")[0]["n"]) == 10:
            break
        time.sleep(0.05)
    assert n == 10


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "hcstvg/../../x.tar"])
def test_a_tar_outside_the_output_is_refused(copy, path):
    (part,) = (copy / "manifests" / "shards").glob("*.parquet")
    change(part, path=path)
    catalogue = Catalogue(copy)
    (row, *_) = catalogue.rows("SELECT referent_id FROM samples")
    with pytest.raises(Quarantined, match="not inside"):
        catalogue.place(row["referent_id"], "mp4")


def test_the_tables_cannot_be_changed_nor_files_be_read(out):
    catalogue = Catalogue(out)
    for sql in (
        "DROP TABLE samples",
        "CREATE TABLE x AS SELECT 1",
        "COPY samples TO '/tmp/x.csv'",
        f"SELECT * FROM read_text('{__file__}')",
        "SET threads = 1",
    ):
        with pytest.raises(duckdb.Error):
            catalogue.rows(sql)


def test_an_output_without_shards_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no committed shards"):
        Catalogue(tmp_path)
