"""Quarantine: what was dropped, since when, and whether it is too much.

The rows of the `quarantine` table are the same whenever equal runs are made. When an item was dropped is a fact of one
run, and lives in `runs.dropped`; `DROPPED` joins the two.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from manifests.catalog import connect, query, rows_of
from schemas.parts import part_paths

DROPPED = """
    SELECT q.*, seen.first_seen, seen.last_seen, coalesce(seen.runs, 0) AS runs
    FROM quarantine q LEFT JOIN (
        SELECT source, split, item, min(ended) AS first_seen, max(ended) AS last_seen, count(*) AS runs
        FROM (SELECT source, split, ended, unnest(dropped) AS item FROM runs) GROUP BY ALL
    ) seen ON seen.source = q.source AND seen.split = q.split AND seen.item = coalesce(q.referent_id, q.clip_id)"""
"""SQL for the quarantine with `first_seen`, `last_seen` (ends of runs, UTC; NULL until a run that dropped it has ended)
and `runs`, how many tried the item and dropped it."""

EXCLUDED = "excluded"
"""Reason of what was left out because the user asked for it (`--exclude`)."""


class OverBudget(RuntimeError):
    """More was dropped than the run was allowed to drop. What was kept is committed."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Tally:
    """Clips of some splits: `kept` have a sample, `dropped` have none. `reasons`: clips dropped, by reason. `parts`:
    rows of quarantine that concern clips which are kept. What was excluded on purpose is not counted."""

    kept: int
    dropped: int
    reasons: dict[str, int] = field(default_factory=dict)
    parts: int = 0

    @property
    def share(self) -> float:
        """Of all clips, the part that was dropped; 0 of none."""
        return self.dropped / (self.kept + self.dropped) if self.dropped else 0.0

    def __str__(self) -> str:
        why = ", ".join(f"{n} {reason}" for reason, n in self.reasons.items())
        parts = f"; of the clips kept, {self.parts} referents or rows" if self.parts else ""
        whole = self.kept + self.dropped
        return (
            f"dropped: {self.dropped} of {whole} clips ({self.share:.1%})"
            + (f": {why}" if why else "")
            + parts
        )

    def judge(self, budget: float | None, what: str) -> None:
        """OverBudget if more than `budget` (a share, 0 to 1) of the clips of `what` was dropped; None allows all."""
        if budget is not None and self.share > budget:
            raise OverBudget(
                f"{what}: {self.dropped} of {self.kept + self.dropped} clips were dropped ({self.share:.1%}), "
                f"--max-dropped allows {budget:.1%}. What was kept is committed; "
                f"`sparrow quarantine list` says why each was dropped, `sparrow quarantine retry` tries again"
            )


def dropped(
    out: Path,
    where: str = "true",
    parameters: list | None = None,
    *,
    columns: str = "*",
    then: str = "",
) -> list[dict]:
    """Rows of DROPPED that match `where` (SQL of the user's; values that come from data go into `parameters`). then:
    what follows in the query, ORDER BY for one."""
    with connect(out) as connection:
        return rows_of(
            connection, f"SELECT {columns} FROM ({DROPPED}) WHERE ({where}) {then}", parameters
        )


def tally(out: Path, splits: Collection[tuple[str, str]]) -> Tally:
    """What became of the clips of these (source, split) pairs, in the committed shards."""
    kept, all_dropped, parts = 0, set[tuple[str, str]](), 0
    reasons: dict[str, set[tuple[str, str]]] = {}
    with connect(out) as connection:
        for place in splits:
            clips = rows_of(
                connection,
                "SELECT clip_id FROM clips WHERE source = $1 AND split = $2",
                list(place),
            )
            there = {row["clip_id"] for row in clips}
            kept += len(there)
            find = "SELECT clip_id, reason FROM quarantine WHERE source = $1 AND split = $2 AND reason <> $3"
            for row in rows_of(connection, find, [*place, EXCLUDED]):
                if row["clip_id"] in there:
                    parts += 1
                    continue
                all_dropped.add((place[0], row["clip_id"]))
                reasons.setdefault(row["reason"], set()).add((place[0], row["clip_id"]))
    counts = sorted(
        ((reason, len(clips)) for reason, clips in reasons.items()), key=lambda r: (-r[1], r[0])
    )
    return Tally(kept, len(all_dropped), dict(counts), parts)


def splits_of(out: Path, source: str) -> list[tuple[str, str]]:
    """The (source, split) pairs of one source that have committed shards."""
    rows = query(out, "SELECT DISTINCT source, split FROM shards ORDER BY ALL")
    return [(row["source"], row["split"]) for row in rows if row["source"] == source]


def newly_dropped(out: Path, name: str, fresh: Collection[str]) -> list[str]:
    """What the run that ends now has dropped: items in quarantine in the shards that it committed (`fresh`), and those
    that no run has listed, because the run that committed them was killed. name: `<source>-<split>`."""
    manifests = out / "manifests"
    listed = set[str]()
    for path in part_paths(out, "runs", name):
        for items in pq.read_table(path, columns=["dropped"], partitioning=None)[
            "dropped"
        ].to_pylist():
            listed.update(items or [])
    found = set[str]()
    for path in part_paths(out, "shards", name):
        part = manifests / "quarantine" / path.name
        for row in (
            pq.ParquetFile(part)
            .read(columns=["clip_id", "referent_id"], use_threads=False)
            .to_pylist()
        ):
            item = row["referent_id"] or row["clip_id"]
            if path.stem in fresh or item not in listed:
                found.add(item)
    return sorted(found)
