"""The DuckDB catalogue: one view per table, showing committed shards only, and a few views with answers.

`catalog.sql` has paths relative to the output, `catalog.duckdb` absolute ones (DuckDB resolves a view's paths from
where it is opened). When an output has moved, `sparrow verify` writes them anew; `sparrow sql` needs neither.
"""

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.quality import COVERAGE
from schemas import tables
from schemas.files import write_whole
from schemas.members import refuse_links
from schemas.parts import (
    RUN_GLOB,
    SHARD_GLOB,
    check_output_path,
    escaped,
    part_names,
    part_paths,
    read_parquet,
    read_patterns,
    split_of,
)
from schemas.tables import TABLES

if TYPE_CHECKING:
    # At run time inside the functions: Prefect keeps what a flow's modules name alive beyond the interpreter's end, and
    # DuckDB then complains of leaks, a screen long.
    from duckdb import DuckDBPyConnection

OLDEST_STORAGE = "v1.0.0"
"""Of `catalog.duckdb`: what DuckDB 1.4 opens too."""

WORDS = r"regexp_extract_all(lower({}), '[\pL\pN]+(?:[''’-][\pL\pN]+)*')"
"""SQL for the words of a text: runs of letters and digits, with what apostrophes and hyphens join."""

SHAPES = """
        SELECT referent_id, avg(area) AS area, avg(step) FILTER (WHERE follows) AS motion
        FROM (
            SELECT t.referent_id, (x2 - x1) * (y2 - y1) / (c.width * c.height) AS area,
                   t.frame = lag(t.frame) OVER track + 1 AS follows,
                   sqrt(power(x1 + x2 - lag(x1 + x2) OVER track, 2) + power(y1 + y2 - lag(y1 + y2) OVER track, 2)) / 2
                   / lag(sqrt(greatest((x2 - x1) * (y2 - y1), 1))) OVER track AS step
            FROM tracks t JOIN clips c USING (clip_id) WHERE t.kept AND x1 IS NOT NULL AND {}
            WINDOW track AS (PARTITION BY t.referent_id ORDER BY t.frame))
        GROUP BY referent_id"""
"""SQL for how large targets are (share of the picture) and how they move (way of the box's centre from one frame to the
next, in square roots of the box's area), over kept frames; {} is a condition on `t.referent_id`."""

MEASURES = f"""
        SELECT r.referent_id, r.clip_id, r.source, r.split, r.video_id, r.caption,
               len({WORDS.format("r.caption")}) AS words, r.n_frames,
               r.n_frames * c.step / c.fps AS seconds, r.n_boxes, r.n_kept / r.n_frames AS kept_share,
               1 - least(r.n_visible, r.n_known) / nullif(r.n_known, 0) AS occlusion, r.mean_iou,
               r.n_kept, r.iou_coverage, s.area, s.motion
        FROM referents r LEFT JOIN clips c USING (clip_id) LEFT JOIN {{}} s USING (referent_id)"""
"""SQL for a row of numbers per referent; {} is where `SHAPES` are. `occlusion`: of the frames that the annotation
knows, those where it has no target: hidden or out of view."""

STATISTICS = f"""
        WITH s AS (SELECT DISTINCT source FROM shards UNION ALL SELECT 'all'),
        m AS (
            SELECT coalesce(source, 'all') AS source, count(DISTINCT source || ' ' || video_id) AS videos,
                   count(DISTINCT clip_id) AS clips, count(*) AS referents, avg(words) AS words,
                   avg(n_frames) AS clip_frames, avg(n_boxes) AS track_length, avg(area) AS area, avg(motion) AS motion,
                   avg(occlusion) AS occlusion, avg(mean_iou) AS iou, {COVERAGE} AS iou_coverage,
                   sum(kept_share * n_frames) / sum(n_frames) AS kept_share
            FROM {{}} GROUP BY GROUPING SETS ((source), ())),
        v AS (
            SELECT coalesce(source, 'all') AS source, count(DISTINCT word) AS vocabulary
            FROM (SELECT source, unnest({WORDS.format("caption")}) AS word FROM referents)
            GROUP BY GROUPING SETS ((source), ())),
        q AS (SELECT coalesce(source, 'all') AS source, count(*) AS qa FROM qa GROUP BY GROUPING SETS ((source), ())),
        d AS (SELECT coalesce(source, 'all') AS source, count(*) AS quarantined FROM quarantine
              GROUP BY GROUPING SETS ((source), ()))
        SELECT source, coalesce(videos, 0) AS videos, coalesce(clips, 0) AS clips, coalesce(referents, 0) AS referents,
               coalesce(qa, 0) AS qa, words, coalesce(vocabulary, 0) AS vocabulary,
               m.* EXCLUDE (source, videos, clips, referents, words), coalesce(quarantined, 0) AS quarantined
        FROM s LEFT JOIN m USING (source) LEFT JOIN v USING (source) LEFT JOIN q USING (source)
        LEFT JOIN d USING (source) ORDER BY source = 'all', source"""
"""SQL for a row of statistics per source, and one of all; {} is where `MEASURES` are. A clip or a video counts if it
has a sample; a source of which everything was dropped has a row too."""

ANSWERS = {
    "samples": """
        SELECT r.source, r.split, r.referent_id, r.caption, m.name AS member, s.path AS tar, m."offset", m.size
        FROM members m JOIN referents r USING (referent_id) JOIN shards s ON s.shard = m.shard""",
    "funnel": """
        FROM (
            SELECT source, split, 'sample' AS stage, 'kept' AS reason, count(*) AS referents FROM referents
            GROUP BY ALL
            UNION ALL
            SELECT source, split, stage, reason, count(*) FROM quarantine GROUP BY ALL)
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
    "shapes": SHAPES.format("true"),
    "measures": MEASURES.format("shapes"),
    "statistics": STATISTICS.format("measures"),
    "words": f"""
        SELECT source, word, count(*) AS uses
        FROM (SELECT source, unnest({WORDS.format("caption")}) AS word FROM referents) GROUP BY ALL""",
    "expressions": f"""
        SELECT array_to_string({WORDS.format("caption")}, ' ') AS expression, count(*) AS referents,
               list_sort(list(DISTINCT source)) AS sources FROM referents GROUP BY expression""",
    "videos": """
        SELECT video_id, list_sort(list(DISTINCT source || '-' || split)) AS splits, count(DISTINCT clip_id) AS clips,
               count(*) AS referents FROM referents GROUP BY video_id""",
}


def catalog_sql(place: str | Callable[[str], str] = "", *, without: Collection[str] = ()) -> str:
    """CREATE VIEW statements for an output.

    place: what `manifests/` follows in its address (such as "s3://bucket/tsf/"), or table -> SQL that reads its parts.
    without: tables that are there already, under their names."""
    files = _anywhere(place) if isinstance(place, str) else place
    lines = []
    for table in ("shards", "runs", *(t for t in TABLES if t not in ("shards", "runs"))):
        if table in without:
            continue
        rows = "" if table in ("shards", "runs") else " WHERE shard IN (SELECT shard FROM shards)"
        lines.append(f"CREATE OR REPLACE VIEW {table} AS SELECT * FROM {files(table)}{rows};")
    lines += [
        f"CREATE OR REPLACE VIEW {name} AS {' '.join(query.split())};"
        for name, query in ANSWERS.items()
    ]
    return "\n".join(lines) + "\n"


def _anywhere(prefix: str) -> Callable[[str], str]:
    """Patterns that fit the parts of any split."""

    def files(table: str) -> str:
        name = "[a-z]*" + ("" if table == "runs" else SHARD_GLOB)
        return read_patterns([f"{escaped(f'{prefix}manifests/{table}/')}{name}.parquet"])

    return files


def _listed(out: Path) -> Callable[[str], str]:
    """The parts that are there now, each by its name."""
    place = out.resolve()
    return lambda table: read_parquet(part_paths(place, table))


def _patterns(out: Path, prefix: str) -> Callable[[str], str]:
    """Patterns that also fit the parts that are still to come, of the splits that are there; below `prefix`."""

    def files(table: str) -> str:
        tail = RUN_GLOB if table == "runs" else SHARD_GLOB
        stems: dict[str, None] = {}
        for name in part_names(out, table):
            split = split_of(name, table)
            stems[f"{split}{tail}" if split else name] = None
        start = escaped(f"{prefix}manifests/{table}/")
        return read_patterns(f"{start}{stem}.parquet" for stem in stems)

    return files


def build_catalog(out: Path) -> None:
    """Write `catalog.sql` and `catalog.duckdb`, each in one atomic step. Needs at least one committed shard."""
    if not part_names(out):
        return
    refuse_links(out)
    without = _not_there(out)
    views = catalog_sql(_patterns(out, ""), without=without)
    text = "-- Run in this folder: duckdb -init catalog.sql\n" + views
    write_whole(out / "catalog.sql", text)
    import duckdb

    # Made elsewhere: DuckDB takes a `?` in the path of a database for the start of options.
    with tempfile.TemporaryDirectory(prefix="sparrow-catalog-") as folder:
        file = Path(folder) / "catalog.duckdb"
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{file}' AS catalog (STORAGE_VERSION '{OLDEST_STORAGE}')")
            connection.execute("USE catalog")
            connection.execute(catalog_sql(_patterns(out, f"{out.resolve()}/"), without=without))
        write_whole(out / "catalog.duckdb", file.read_bytes())


def _not_there(out: Path) -> tuple[str, ...]:
    """`runs` until the first run has ended: the shards of one that goes on, or was killed, are good and may be seen."""
    return () if part_names(out, "runs") else ("runs",)


def connect(out: Path) -> "DuckDBPyConnection":
    """An in-memory DuckDB with the views over `out`, wherever it is now. FileNotFoundError if it has no shard."""
    check_output_path(out)
    if not part_names(out):
        raise FileNotFoundError(
            f"{out} holds no committed shards (nothing under {out / 'manifests' / 'shards'})"
        )
    import duckdb

    connection = duckdb.connect()
    without = _not_there(out)
    for table in without:
        connection.register(table, tables.schema(table).empty_table())
    connection.execute(catalog_sql(_listed(out), without=without))
    return connection


def query(out: Path, sql: str) -> list[dict]:
    """Rows of one query over the catalogue."""
    with connect(out) as connection:
        return rows_of(connection, sql)


def rows_of(
    connection: "DuckDBPyConnection", sql: str, parameters: list | None = None
) -> list[dict]:
    """Rows of a query over an open catalogue. Values that come from data go into `parameters`, never into `sql`."""
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
