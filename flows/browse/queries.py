"""What the pages ask: a read-only copy of the manifests' small tables, and filters whose values are always bound.

The SQL that a user types into the WHERE box runs in a process of its own, on a DuckDB file that is opened read-only,
without access to files or network and with its configuration locked: it can read these tables and do nothing else.
"""

import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlencode

import duckdb

from flows.browse.where import WhereProcess
from manifests.catalog import connect, rows_of
from pipeline.sources.base import DataRoot
from schemas.parts import part_paths, read_parquet
from schemas.records import FALLBACK

PAGE = 48
"""Samples on a page of the gallery."""
SECONDS = 10.0
"""A query that takes longer is stopped."""
STALE = 5.0
"""Seconds between two looks at whether a run has committed more."""

TABLES = {
    "samples": """SELECT r.*, r.n_kept / nullif(r.n_frames, 0) AS kept_share,
                  c.* EXCLUDE (clip_id, source, split, video_id, n_frames, preset, shard),
                  lower(concat_ws(' ', r.caption, r.referent_id, r.clip_id)) AS search_text
                  FROM referents r LEFT JOIN clips c USING (clip_id, shard) ORDER BY r.referent_id""",
    "places": """SELECT m.referent_id, m.key, m.name, m."offset", m.size, m.shard, s.path AS tar, s.sha256
                 FROM members m JOIN shards s USING (shard) ORDER BY m.referent_id""",
    "quarantine": "SELECT *, lower(concat_ws(' ', message, clip_id, referent_id)) AS search_text FROM quarantine",
    **{
        name: f"SELECT * FROM {name}"
        for name in (
            "qa",
            "tsf",
            "shards",
            "runs",
            "funnel",
            "iou_histogram",
            "stage_seconds",
            "events",
        )
    },
}
ORDERS = {
    "id": "referent_id",
    "worst IoU first": "mean_iou NULLS LAST, referent_id",
    "best IoU first": "mean_iou DESC NULLS LAST, referent_id",
    "longest first": "n_frames DESC, referent_id",
    "shortest first": "n_frames, referent_id",
    "least kept first": "kept_share NULLS LAST, referent_id",
}


@dataclass(frozen=True)
class Filters:
    """What a page shows of `samples` or `quarantine`. `text`: part of an expression, a message or an id, any case."""

    source: str = ""
    split: str = ""
    text: str = ""
    min_iou: float | None = None
    max_iou: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    flagged: bool = False
    stage: str = ""
    reason: str = ""
    where: str = ""
    order: str = "id"
    page: int = 1

    @classmethod
    def parse(cls, words: Mapping[str, str]) -> "Filters":
        """From a URL's query; what is empty or unknown is left out. ValueError names the field that makes no sense."""
        values: dict[str, object] = {}
        for field in fields(cls):
            word = words.get(field.name, "").strip()
            if not word:
                continue
            try:
                values[field.name] = _READ.get(field.name, str)(word)
            except ValueError as error:
                name = field.name.replace("_", " ")
                raise ValueError(
                    f"{name}: {word[:80]!r} is not a number; leave it empty for no limit"
                ) from error
        filters = cls(**values)  # type: ignore[arg-type]
        if filters.order not in ORDERS:
            raise ValueError(f"order: {filters.order[:80]!r} is none of {', '.join(ORDERS)}")
        return replace(filters, page=min(max(1, filters.page), 10**9))

    def link(self, **changes: object) -> str:
        """The query string of these filters, with changes; nothing that is at its default."""
        one = replace(self, **changes)  # type: ignore[arg-type]
        words = {
            f.name: getattr(one, f.name) for f in fields(one) if getattr(one, f.name) != f.default
        }
        return urlencode({name: 1 if value is True else value for name, value in words.items()})

    def field(self, name: str) -> str:
        return str(getattr(self, name))

    def with_field(self, name: str, value: str) -> str:
        """The query string with another value of one field, from its first page on."""
        return self.link(**{name: value, "page": 1})

    def chips(self) -> list[tuple[str, str]]:
        """What is asked for, in words, each with the query string that no longer asks for it."""
        words = {
            "min_iou": "IoU from",
            "max_iou": "IoU to",
            "min_frames": "frames from",
            "max_frames": "frames to",
        }
        found = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default and f.name not in ("page", "order"):
                text = f.name if value is True else f"{words.get(f.name, f.name)} {value}"
                found.append((text, self.link(**{f.name: f.default, "page": 1})))
        return found

    def condition(self, table: str, flags: set[str]) -> tuple[str, list[object]]:
        """A condition over `table` and its parameters. Only the WHERE box's text is part of the SQL, so a condition
        with `where` is for `WhereProcess` alone."""
        parts: list[tuple[str, object]] = [
            (f"{name} = ?", getattr(self, name))
            for name in ("source", "split")
            if getattr(self, name)
        ]
        if self.text:
            parts.append(("contains(search_text, lower(?))", self.text))
        if table == "quarantine":
            parts += [
                (f"{name} = ?", getattr(self, name))
                for name in ("stage", "reason")
                if getattr(self, name)
            ]
        else:
            limits = (
                ("mean_iou >=", self.min_iou),
                ("mean_iou <=", self.max_iou),
                ("n_frames >=", self.min_frames),
                ("n_frames <=", self.max_frames),
            )
            parts += [(f"{name} ?", value) for name, value in limits if value is not None]
            if self.flagged:
                parts.append(("list_contains(?::VARCHAR[], referent_id)", sorted(flags)))
        own = f" AND (\n{self.where}\n)" if self.where else ""
        return " AND ".join(["true", *(sql for sql, _ in parts)]) + own, [
            value for _, value in parts
        ]


_READ = {
    "min_iou": float,
    "max_iou": float,
    "min_frames": int,
    "max_frames": int,
    "page": int,
    "flagged": bool,
}


@dataclass(frozen=True)
class Place:
    """Where the bytes of one member are."""

    tar: Path
    member: str
    offset: int
    size: int
    etag: str


def pages_of(total: int) -> int:
    """Pages for so many rows; one for none."""
    return max(1, -(-total // PAGE))


class Catalogue:
    """The tables of an output for the pages; follows a live run. FileNotFoundError if there is no shard yet."""

    def __init__(self, out: Path):
        self.out = out.resolve()
        self.root = DataRoot(self.out)
        self._seen = self._state()
        self._tables = _Tables.copy_of(self.out)
        self._parts = duckdb.connect()
        """Reads part files of our own choice; no user's SQL comes here."""
        self._looked = time.monotonic()
        self._lock = threading.Lock()

    def _state(self) -> set[tuple[str, int]]:
        return {(p.name, p.stat().st_mtime_ns) for p in part_paths(self.out)}

    def _follow(self) -> None:
        """Look for new shards, at most every STALE seconds, beside the requests, which see the old tables meanwhile."""
        if time.monotonic() - self._looked > STALE and self._lock.acquire(blocking=False):
            threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        start = time.monotonic()
        try:
            state = self._state()
            if state and state != self._seen:
                self._tables, self._seen = _Tables.copy_of(self.out), state
        except (
            duckdb.Error,
            OSError,
        ):  # a shard is just being replaced: the old tables stay until the next look
            pass
        finally:
            now = time.monotonic()
            self._looked = now + 10 * (now - start)  # never more than a tenth of the time
            self._lock.release()

    def rows(self, sql: str, parameters: list | None = None) -> list[dict]:
        """Rows of one query; duckdb.Error says what is wrong with it, TimeoutError that it took too long."""
        self._follow()
        cursor = self._tables.database.cursor()
        timer = threading.Timer(SECONDS, cursor.interrupt)
        timer.start()
        try:
            return rows_of(cursor, sql, parameters)
        except duckdb.InterruptException as error:
            raise TimeoutError(
                f"the query was stopped after {SECONDS:.0f} seconds; ask for less"
            ) from error
        finally:
            timer.cancel()

    def _filtered_rows(self, filters: Filters, sql: str, parameters: list) -> list[dict]:
        """Rows of a query with the condition of `filters`; errors as of `rows`, and MemoryError."""
        if not filters.where:
            return self.rows(sql, parameters)
        self._follow()
        return self._tables.where_process.rows(filters.where, sql, parameters)

    def find(self, filters: Filters, table: str, flags: set[str]) -> tuple[int, list[dict]]:
        """How many rows there are, and those of the page; of the last one, if the page is behind it."""
        condition, values = filters.condition(table, flags)
        order = (
            ORDERS[filters.order] if table == "samples" else "source, split, clip_id, referent_id"
        )
        count = f"SELECT count(*) AS n FROM {table} WHERE {condition}"
        total = self._filtered_rows(filters, count, values)[0]["n"]
        sql = f"SELECT * EXCLUDE (search_text) FROM {table} WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?"
        first = PAGE * (min(filters.page, pages_of(total)) - 1)
        return total, self._filtered_rows(filters, sql, [*values, PAGE, first])

    def counts(self, table: str, names: tuple[str, ...]) -> dict[str, list[dict]]:
        """Per column, its values and how many rows of the whole table have them, the most frequent first."""
        return {
            name: self.rows(
                f"SELECT {name} AS value, count(*) AS n FROM {table} GROUP BY ALL ORDER BY n DESC, 1"
            )
            for name in names
        }

    def beside(self, filters: Filters, at: int, flags: set[str]) -> dict[int, str]:
        """Position -> referent_id of the samples before and after position `at` (from 0) under the filters."""
        condition, values = filters.condition("samples", flags)
        first = max(0, at - 1)
        sql = f"SELECT referent_id FROM samples WHERE {condition} ORDER BY {ORDERS[filters.order]} LIMIT ? OFFSET ?"
        found = self._filtered_rows(filters, sql, [*values, at + 2 - first, first])
        return {first + i: row["referent_id"] for i, row in enumerate(found) if first + i != at}

    def sample(self, referent_id: str) -> dict | None:
        found = self.rows(
            "SELECT * EXCLUDE (search_text) FROM samples WHERE referent_id = ?", [referent_id]
        )
        return found[0] if found else None

    def members(self, referent_id: str) -> list[dict]:
        return self.rows(
            'SELECT * FROM places WHERE referent_id = ? ORDER BY "offset"', [referent_id]
        )

    def place(self, referent_id: str, name: str) -> Place | None:
        """Where a member is. Its tar is inside the output, whatever the manifests say, or this is Quarantined."""
        found = self.rows(
            "SELECT * FROM places WHERE referent_id = ? AND name = ?", [referent_id, name]
        )
        if not found:
            return None
        row = found[0]
        etag = f'"{(row["sha256"] or "")[:16]}-{row["offset"]}-{row["size"]}"'
        return Place(
            self.root.file(row["tar"]), f"{row['key']}.{name}", row["offset"], row["size"], etag
        )

    def track(self, referent_id: str, shard: str) -> dict[str, list]:
        """Columns of a referent's track by frame, from the part file of its shard alone."""
        part = self.root.file(f"manifests/tracks/{shard}.parquet")
        sql = f"SELECT {', '.join(_TRACK)} FROM {read_parquet([part])} WHERE referent_id = ? ORDER BY frame"
        rows = self._parts.cursor().execute(sql, [referent_id]).fetchall()
        return (
            dict(zip(_TRACK, map(list, zip(*rows, strict=True)), strict=True))
            if rows
            else {n: [] for n in _TRACK}
        )

    def fallback_frames(self, referent_id: str, shard: str) -> list[int]:
        """Frames whose mask is a fallback, from the part file of the shard alone."""
        part = self.root.file(f"manifests/masks/{shard}.parquet")
        if not part.is_file():
            return []
        sql = (
            f"SELECT frame FROM {read_parquet([part])} WHERE referent_id = ? AND ends_with(origin, ?) "
            "ORDER BY frame"
        )
        found = self._parts.cursor().execute(sql, [referent_id, FALLBACK]).fetchall()
        return [frame for (frame,) in found]


_TRACK = (
    "frame",
    "source_frame",
    "x1",
    "y1",
    "x2",
    "y2",
    "ann_x1",
    "ann_y1",
    "ann_x2",
    "ann_y2",
    "origin",
    "score",
    "iou",
    "kept",
    "dropped",
)


@dataclass(frozen=True)
class _Tables:
    """A copy of TABLES in a DuckDB file that has no name any more: read-only and shut off from the rest."""

    database: duckdb.DuckDBPyConnection
    """For queries of ours."""
    where_process: WhereProcess
    """For queries with a condition of the user's."""

    @classmethod
    def copy_of(cls, out: Path) -> "_Tables":
        with tempfile.TemporaryDirectory(prefix="sparrow-browse-") as folder:
            file = Path(folder) / "browse.duckdb"
            with connect(out) as catalogue:
                catalogue.execute("ATTACH '{}' AS copy".format(str(file).replace("'", "''")))
                for name, query in TABLES.items():
                    catalogue.execute(f"CREATE TABLE copy.{name} AS {query}")
            where_process = WhereProcess(file)
            database = duckdb.connect(
                file,
                read_only=True,
                config={"enable_external_access": "false", "lock_configuration": "true"},
            )
            return cls(database, where_process)
