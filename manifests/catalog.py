"""The DuckDB catalogue: one view per table, showing committed shards only, and a few views with answers.

`catalog.sql` has paths relative to the output, `catalog.duckdb` absolute ones (DuckDB resolves a view's paths from
where it is opened). When an output has moved, `sparrow verify` writes them anew; `sparrow sql` needs neither.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.tables import TABLES

if TYPE_CHECKING:
    # At run time inside the functions: Prefect keeps what a flow's modules name alive beyond the interpreter's end, and
    # DuckDB then complains of leaks, a screen long.
    from duckdb import DuckDBPyConnection

ANSWERS = {
    "samples": """
        SELECT r.source, r.split, r.referent_id, r.caption, m.name AS member, s.path AS tar, m."offset", m.size
        FROM members m JOIN referents r USING (referent_id) JOIN shards s ON s.shard = m.shard""",
    "funnel": """
        SELECT source, split, 'sample' AS stage, 'kept' AS reason, count(*) AS referents FROM referents GROUP BY ALL
        UNION ALL
        SELECT source, split, stage, reason, count(*) FROM quarantine GROUP BY ALL
        ORDER BY source, split, reason <> 'kept', referents DESC""",
    "drops": """
        SELECT r.source, t.dropped AS reason, count(*) AS frames
        FROM tracks t JOIN referents r USING (referent_id) WHERE NOT t.kept GROUP BY ALL ORDER BY ALL""",
    "iou_histogram": """
        SELECT r.source, floor(least(t.iou, 0.999) * 10) / 10 AS iou_from, count(*) AS frames
        FROM tracks t JOIN referents r USING (referent_id)
        WHERE t.iou IS NOT NULL AND t.origin = 'tracked' GROUP BY ALL ORDER BY ALL""",
    "track_lengths": """
        SELECT referent_id, source, caption, n_kept, n_boxes, n_frames, n_kept / n_frames AS kept_share
        FROM referents""",
    "templates": "SELECT source, family, template, question, count(*) AS uses FROM qa GROUP BY ALL",
    "stage_seconds": """
        SELECT split_part(shard, '-', 1) AS source, stage, sum(seconds) AS seconds, sum(frames) AS frames,
               sum(frames) / nullif(sum(seconds), 0) AS frames_per_second, quantile_cont(seconds, 0.95) AS p95_seconds
        FROM timings WHERE note = '' GROUP BY ALL ORDER BY source, seconds DESC""",
    "events": """
        SELECT split_part(shard, '-', 1) AS source, stage AS event, note, count(DISTINCT clip_id) AS clips
        FROM timings WHERE note <> '' GROUP BY ALL ORDER BY ALL""",
}


def catalog_sql(prefix: str) -> str:
    """CREATE VIEW statements for an output whose `manifests` folder is `prefix`manifests."""
    lines = []
    for table in ("shards", "runs", *(t for t in TABLES if t not in ("shards", "runs"))):
        files = f"read_parquet('{_quote(prefix)}manifests/{table}/*.parquet')"
        rows = "" if table in ("shards", "runs") else " WHERE shard IN (SELECT shard FROM shards)"
        lines.append(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM {files}{rows};")
    lines += [f"CREATE OR REPLACE VIEW {name} AS {' '.join(query.split())};" for name, query in ANSWERS.items()]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return text.replace("'", "''")


def build_catalog(out: Path) -> None:
    """Write `catalog.sql` and `catalog.duckdb`, each in one atomic step. Needs at least one committed shard."""
    if not any((out / "manifests" / "shards").glob("*.parquet")):
        return
    text = "-- Run in this folder: duckdb -init catalog.sql\n" + catalog_sql("")
    _replace(out / "catalog.sql", text.encode())
    import duckdb

    temporary = out / f"catalog.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    with duckdb.connect(str(temporary)) as connection:
        connection.execute(catalog_sql(f"{out.resolve()}/"))
    os.replace(temporary, out / "catalog.duckdb")


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def connect(out: Path) -> "DuckDBPyConnection":
    """An in-memory DuckDB with the views over `out`, wherever it is now. FileNotFoundError if it has no shard."""
    if not any((out / "manifests" / "shards").glob("*.parquet")):
        raise FileNotFoundError(f"{out} holds no committed shards (nothing under {out / 'manifests' / 'shards'})")
    import duckdb

    connection = duckdb.connect()
    connection.execute(catalog_sql(f"{out.resolve()}/"))
    return connection


def query(out: Path, sql: str) -> list[dict]:
    """Rows of one query over the catalogue."""
    with connect(out) as connection:
        return rows_of(connection, sql)


def rows_of(connection: "DuckDBPyConnection", sql: str, parameters: list | None = None) -> list[dict]:
    """Rows of a query over an open catalogue. Values that come from data go into `parameters`, never into `sql`."""
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
