"""`sparrow sql` prints values as DuckDB prints them, and text of the data as text."""

import csv
import io
import json
import time

import duckdb
import pytest

from flows.sql import as_text, to_csv, to_markdown, to_table, visible


@pytest.fixture
def connection():
    return duckdb.connect()


def table(connection, query: str) -> list[str]:
    return to_table(*as_text(connection, query)).splitlines()


def test_numbers_are_not_rounded_and_have_no_commas(connection):
    query = "SELECT 0.0004::DOUBLE AS x, 2026 AS year, 12345678 AS frame_id, 0.7::FLOAT AS f"
    header, _, row = table(connection, query)
    assert header.split() == ["x", "year", "frame_id", "f"]
    assert row.split() == ["0.0004", "2026", "12345678", "0.7"]


@pytest.mark.parametrize(
    "value",
    [
        "1e-9::DOUBLE",
        "1e300::DOUBLE",
        "'nan'::FLOAT",
        "1::DECIMAL(9, 3)",
        "[1, 2]",
        "{'a': 1.5}",
        "DATE '2026-01-02'",
        "TIMESTAMP '2026-01-02 03:04:05.6'",
        "true",
        "'\\xAA'::BLOB",
        "170141183460469231731687303715884105727::HUGEINT",
    ],
)
def test_a_value_is_written_as_duckdb_casts_it(connection, value):
    [[expected]] = connection.execute(f"SELECT ({value})::VARCHAR").fetchall()
    columns, _, rows = as_text(connection, f"SELECT {value} AS v")
    assert (columns, rows) == (["v"], [[expected]])


def test_text_of_the_data_is_text(connection):
    query = (
        "SELECT '[/b]' AS a, '[red] car' AS b, chr(27) || '[31m' AS c, 'x' || chr(10) || 'y' AS d"
    )
    lines = table(connection, query)
    assert lines[2] == r"[/b]  [red] car  \u001b[31m  x\ny"
    assert visible("čeština  ✓") == "čeština  ✓"


def test_null_is_not_the_text_null(connection):
    columns, numeric, rows = as_text(connection, "SELECT NULL::VARCHAR AS a, 'NULL' AS b")
    assert rows == [[None, "NULL"]]
    assert to_csv(columns, rows) == "a,b\n,NULL\n"
    assert to_markdown(columns, numeric, rows).splitlines()[2] == "|  | NULL |"


def test_csv_and_markdown_can_be_read_back(connection):
    values = ["a,b", 'c"d', "e|f", "g\nh"]
    listed = ", ".join("'" + value + "'" for value in values)
    columns, numeric, rows = as_text(connection, f"SELECT unnest([{listed}]) AS v")
    assert [row[0] for row in csv.reader(io.StringIO(to_csv(columns, rows)))][1:] == values
    assert r"| e\|f |" in to_markdown(columns, numeric, rows)
    assert r"| g\nh |" in to_markdown(columns, numeric, rows)


def test_statements_that_are_no_query_and_columns_of_one_name(connection):
    assert as_text(connection, "CREATE TABLE t (a INTEGER)")[2] == []
    assert as_text(connection, "SHOW TABLES")[2] == [["t"]]
    assert as_text(connection, "SELECT 1 AS a, 'b' AS a")[2] == [["1", "b"]]
    assert table(connection, "SELECT * FROM t") == ["no rows"]
    assert as_text(connection, 'SELECT 1 AS "a ""quoted"" name"')[0] == ['a "quoted" name']


def test_thousands_of_rows_take_no_time(connection):
    start = time.process_time()
    lines = table(connection, "SELECT range AS n, 'a caption of ' || range AS t FROM range(3000)")
    assert len(lines) == 3002
    assert time.process_time() - start < 1


def test_every_format_from_the_command_line(tmp_path, monkeypatch):
    from contextlib import contextmanager

    from typer.testing import CliRunner

    from flows.cli import app
    from manifests import catalog

    @contextmanager
    def connect(out):
        yield duckdb.connect()

    monkeypatch.setattr(catalog, "connect", connect)

    def said(*options: str) -> str:
        done = CliRunner().invoke(
            app, ["sql", str(tmp_path), "SELECT 0.0004::DOUBLE AS x", *options]
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    assert said().splitlines()[2] == "0.0004"
    assert said("--format", "csv") == "x\n0.0004\n"
    assert said("--format", "md").splitlines()[2] == "| 0.0004 |"
    assert json.loads(said("--json")) == json.loads(said("--format", "json")) == [{"x": 0.0004}]
