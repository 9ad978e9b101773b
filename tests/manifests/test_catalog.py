"""The catalogue: committed rows only, from anywhere, and answers to what people ask."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import ANSWERS, build_catalog, connect, query
from manifests.sheet import contact_sheet, fetch
from manifests.verify import verify
from pipeline.presets import ShardConfig, configure
from schemas.tables import TABLES


@pytest.fixture(scope="module")
def out(tiny_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("it's a catalog") / "out"  # a quote in the path must not matter
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    driver.run(make_jobs("hcstvg", tiny_root, out, config), Inline(), Quiet())
    return out


@pytest.mark.parametrize("view", [*TABLES, *ANSWERS])
def test_every_view_answers_and_has_rows(out, view):
    rows = query(out, f"SELECT * FROM {view} LIMIT 3")
    assert rows or view in (
        "drops",
        "events",
    )  # nothing was dropped inside these tracks, memory sufficed


def test_catalog_duckdb_opens_from_anywhere(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(str(out / "catalog.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM referents").fetchone() == (5,)


def test_catalog_sql_runs_inside_the_folder(out, monkeypatch):
    monkeypatch.chdir(out)
    with duckdb.connect() as connection:
        connection.execute((out / "catalog.sql").read_text())
        assert connection.execute("SELECT count(*) FROM tracks").fetchone() == (100,)


def test_rows_of_an_uncommitted_shard_are_not_shown(out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "manifests" / "shards" / "hcstvg-train-000000.parquet").unlink()
    assert query(copy, "SELECT count(*) AS n FROM referents") == [{"n": 3}]
    assert query(copy, "SELECT count(DISTINCT shard) AS n FROM members") == [{"n": 2}]


def test_a_first_run_that_has_not_ended_can_be_asked(out, tmp_path):
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "manifests" / "runs")
    assert query(tmp_path / "out", "SELECT count(*) AS n FROM referents") == [{"n": 5}]
    assert query(tmp_path / "out", "SELECT * FROM runs") == []
    build_catalog(tmp_path / "out")
    with duckdb.connect(str(tmp_path / "out" / "catalog.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM referents").fetchone() == (5,)


def test_a_moved_output_is_found_again(out, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    build_catalog(moved)
    with duckdb.connect(str(moved / "catalog.duckdb"), read_only=True) as connection:
        (path,) = connection.execute("SELECT any_value(path) FROM shards").fetchone()
    assert (moved / path).exists()


def test_features_come_back_as_they_were_stored(out):
    (row,) = query(
        out,
        "SELECT referent_id, list(feature ORDER BY rank) AS f FROM tsf_features GROUP BY 1 LIMIT 1",
    )
    with connect(out) as catalogue:
        members = fetch(catalogue, out, row["referent_id"])
    stored = np.load(io.BytesIO(members["tsf.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(np.array(row["f"], np.float16), stored)


def test_no_output_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no committed shards"):
        connect(tmp_path)


def test_contact_sheet_shows_every_source_and_says_when_there_is_nothing(out, tmp_path):
    assert contact_sheet(out, tmp_path / "sheet.png", rows=3) == 3
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert contact_sheet(out, tmp_path / "none.png", source="lasot") == 0
    assert not (tmp_path / "none.png").exists()


def test_an_output_is_read_by_its_own_name_beside_others_that_it_would_fit(out, tmp_path):
    """As a pattern `x[1]` fits x1, and as a partition the folders above say another source."""
    odd = tmp_path / "source=foo" / "split=bar" / "x[1]"
    shutil.copytree(out, odd)
    other = odd.with_name("x1")
    shutil.copytree(out, other)
    for part in (other / "manifests" / "clips").iterdir():
        part.unlink()
    build_catalog(odd)
    wanted = query(out, "SELECT source, split, count(*) AS n FROM clips GROUP BY ALL ORDER BY ALL")
    sql = "SELECT source, split, count(*) AS n FROM clips GROUP BY ALL ORDER BY ALL"
    assert query(odd, sql) == wanted
    with duckdb.connect(str(odd / "catalog.duckdb"), read_only=True) as catalogue:
        assert [
            dict(zip(("source", "split", "n"), row, strict=True))
            for row in catalogue.execute(sql).fetchall()
        ] == wanted


def test_strays_change_nothing(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    before = query(copy, "SELECT count(*) AS n FROM tracks")
    for folder in ("shards", "clips", "tracks", "runs"):
        for name in ("._x.parquet", "hcstvg-train-000000 (copy).parquet"):
            (copy / "manifests" / folder / name).write_bytes(b"not parquet")
    (copy / "plan").mkdir(exist_ok=True)
    (copy / "plan" / "._hcstvg-train.parquet").write_bytes(b"mac")
    assert query(copy, "SELECT count(*) AS n FROM tracks") == before
    build_catalog(copy)
    report = verify(copy)
    assert report.problems == verify(out).problems
    assert "manifests/shards/._x.parquet" in report.strays
    assert "plan/._hcstvg-train.parquet" in report.strays
    assert len(report.strays) == 9


def test_catalog_duckdb_opens_and_answers_in_the_oldest_version(out, tmp_path):
    """DuckDB 1.4 in an environment of its own."""
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    build_catalog(copy)
    uv = Path(sys.executable).with_name("uv")
    python = tmp_path / "old" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", tmp_path / "old"], check=True)
    install = [uv, "pip", "install", "-q", "--python", python, "duckdb==1.4.*", "pytz"]
    subprocess.run(install, check=True)
    code = (
        "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True);"
        "views = c.execute('SELECT view_name FROM duckdb_views() WHERE NOT internal').fetchall();"
        "[c.execute(f'SELECT * FROM {v}').fetchall() for (v,) in views];"
        "print(duckdb.__version__, len(views))"
    )
    done = subprocess.run(
        [python, "-c", code, copy / "catalog.duckdb"], check=True, capture_output=True, text=True
    )
    version, views = done.stdout.split()
    assert version.startswith("1.4")
    assert int(views) > 20
