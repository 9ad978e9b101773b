"""What the run report says, asked of the manifests. Everything is counted in DuckDB; lists are short."""

import json
from typing import TYPE_CHECKING, Any

from manifests.catalog import rows_of
from manifests.quality import COVERAGE

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

QUALITY = "mean_iou, n_compared, iou_coverage, box_rule, n_kept, n_frames"
"""Columns of `referents` that `iou_words` needs."""
LAST_RUNS, SLOWEST, WORST, EVENTS = 14, 8, 4, 12

STAGES = (
    "plan",
    "ingest",
    "decode",
    "media",
    "annotate",
    "detect",
    "track",
    "agree",
    "segment",
    "corrupt",
    "encode",
    "select",
    "sample",
    "worker",
)
"""In the order of the pipeline. Quarantine rows of other stages (a module's name) come last."""


def totals(catalogue: "DuckDBPyConnection") -> dict[str, Any]:
    """Counts over everything committed."""
    [row] = rows_of(
        catalogue,
        """
        SELECT (SELECT count(*) FROM referents) AS samples, (SELECT count(*) FROM qa) AS qa,
               (SELECT count(DISTINCT clip_id) FROM referents) AS clips, (SELECT count(*) FROM quarantine) AS dropped,
               (SELECT count(*) FROM shards) AS shards, (SELECT sum(bytes) FROM shards) AS bytes,
               (SELECT coalesce(bool_or(synthetic), false) FROM runs) AS synthetic,
               (SELECT list_sort(list(DISTINCT preset)) FROM shards WHERE preset IS NOT NULL) AS presets,
               (SELECT list_sort(list(DISTINCT code_version)) FROM shards WHERE code_version IS NOT NULL) AS code,
               (SELECT max(coalesce(ended, started)) FROM runs) AS ended""",
    )
    [frames] = rows_of(
        catalogue,
        "SELECT sum(n_frames) AS frames, sum(n_boxes) AS boxes, sum(n_kept) AS kept, "
        "sum(n_masks) AS masks, avg(mean_iou) AS iou, count(mean_iou) AS compared, "
        f"{COVERAGE} AS coverage "
        "FROM referents",
    )
    figures = ("iou", "coverage")
    return row | {name: value if name in figures else value or 0 for name, value in frames.items()}


def waiting(catalogue: "DuckDBPyConnection", planned: dict[str, int]) -> int:
    """Referents of the plans ("<source>-<split>" -> referents) that are in no committed shard yet."""
    rows = rows_of(
        catalogue,
        "SELECT source || '-' || split AS name, sum(n_referents)::BIGINT AS n FROM shards "
        "GROUP BY ALL",
    )
    done = {row["name"]: row["n"] for row in rows}
    return sum(max(0, n - done.get(name, 0)) for name, n in planned.items())


def sources(catalogue: "DuckDBPyConnection") -> list[str]:
    return [
        row["source"]
        for row in rows_of(catalogue, "SELECT DISTINCT source FROM shards ORDER BY source")
    ]


def funnel(catalogue: "DuckDBPyConnection") -> list[dict]:
    """What is left after each stage that dropped something. First what the annotations hold, last the samples.

    Rows: stage; left and dropped, by source; reasons: (reason, count, an example), most frequent first.
    """
    kept = {
        row["source"]: row["n"]
        for row in rows_of(catalogue, "SELECT source, count(*) AS n FROM referents GROUP BY source")
    }
    lost = rows_of(
        catalogue,
        """
        SELECT source, coalesce(stage, '') AS stage, coalesce(reason, '') AS reason, count(*) AS n,
               min(message) AS example FROM quarantine GROUP BY ALL ORDER BY ALL""",
    )
    left = dict(kept)
    for row in lost:
        left[row["source"]] = left.get(row["source"], 0) + row["n"]
    steps = [{"stage": "", "left": dict(left), "dropped": {}, "reasons": []}]
    order = {stage: i for i, stage in enumerate(STAGES)}
    for stage in sorted(
        {row["stage"] for row in lost}, key=lambda name: (order.get(name, len(order)), name)
    ):
        dropped: dict[str, int] = {}
        reasons: dict[str, tuple[int, str]] = {}
        for row in (row for row in lost if row["stage"] == stage):
            dropped[row["source"]] = dropped.get(row["source"], 0) + row["n"]
            n, example = reasons.get(row["reason"], (0, row["example"] or ""))
            reasons[row["reason"]] = n + row["n"], example
        left = {name: n - dropped.get(name, 0) for name, n in left.items()}
        listed = sorted(
            ((reason, *rest) for reason, rest in reasons.items()), key=lambda one: (-one[1], one[0])
        )
        steps.append({"stage": stage, "left": dict(left), "dropped": dropped, "reasons": listed})
    return steps


def per_source(
    catalogue: "DuckDBPyConnection", statistics: list[dict], paper: dict[str, tuple[int, int]]
) -> list[dict]:
    """The row of statistics of each source, with splits, bytes, and the paper's counts where it has any.

    For VID-Sentence, whose sentences have spans of their own, the paper's clips are videos.
    """
    shards = {
        row["source"]: row
        for row in rows_of(
            catalogue,
            """
        SELECT source, list_sort(list(DISTINCT split)) AS splits, sum(bytes) AS bytes, count(*) AS shards
        FROM shards GROUP BY source""",
        )
    }
    rows = []
    for row in statistics:
        clips, qa = paper.get(row["source"], (None, None))
        compared = row["videos"] if row["source"] == "vid_sentence" else row["clips"]
        rows.append(
            row
            | shards.get(row["source"], {"splits": [], "bytes": 0, "shards": 0})
            | {"paper_clips": clips, "paper_qa": qa, "compared": compared}
        )
    return rows


def drops(catalogue: "DuckDBPyConnection") -> list[dict]:
    """Why frames inside tracks were dropped, over all sources."""
    return rows_of(
        catalogue,
        "SELECT coalesce(dropped, '') AS reason, count(*) AS n FROM tracks WHERE NOT kept "
        "GROUP BY ALL ORDER BY n DESC, reason LIMIT 8",
    )


def time_spent(catalogue: "DuckDBPyConnection") -> dict[str, Any]:
    """Seconds per stage, per source and stage, and of the runs by the clock.

    wall: seconds in which at least one finished run was going; workers: the most that one had; cores: worker seconds
    of those runs. Runs that were killed have left no row, so their seconds are in `stages` only.
    """
    stages = rows_of(
        catalogue,
        """
        SELECT stage, sum(seconds) AS seconds, sum(frames) AS frames, count(*) AS clips,
               sum(frames) / nullif(sum(seconds), 0) AS pace, quantile_cont(seconds, 0.95) AS p95
        FROM timings WHERE note = '' GROUP BY stage ORDER BY seconds DESC, stage""",
    )
    by_source = rows_of(
        catalogue,
        """
        SELECT s.source, t.stage, sum(t.seconds) AS seconds FROM timings t JOIN shards s USING (shard)
        WHERE t.note = '' GROUP BY ALL ORDER BY ALL""",
    )
    spans = rows_of(
        catalogue,
        """
        SELECT epoch(started) AS a, epoch(ended) AS b, workers FROM runs
        WHERE ended IS NOT NULL AND started IS NOT NULL AND clips_done > 0 ORDER BY a, b""",
    )
    wall = cores = 0.0
    until = float("-inf")
    for span in spans:
        new = max(0.0, span["b"] - max(span["a"], until))
        wall, cores, until = wall + new, cores + new * (span["workers"] or 1), max(until, span["b"])
    spent = sum(row["seconds"] for row in stages)
    return {"stages": stages, "by_source": by_source, "spent": spent, "wall": wall, "cores": cores}


def slowest(catalogue: "DuckDBPyConnection") -> list[dict]:
    """The clips that took longest, and the stage that took most of it. referent_id: a sample of it, if any is left."""
    return rows_of(
        catalogue,
        f"""
        WITH t AS (SELECT clip_id, shard, sum(seconds) AS seconds, max(frames) AS frames,
                          arg_max(stage, seconds) AS stage, max(seconds) AS most
                   FROM timings WHERE note = '' GROUP BY ALL ORDER BY seconds DESC, clip_id LIMIT {SLOWEST})
        SELECT t.*, s.source, (SELECT min(referent_id) FROM referents r WHERE r.clip_id = t.clip_id) AS referent_id
        FROM t JOIN shards s USING (shard) ORDER BY seconds DESC, clip_id""",
    )


def worst(catalogue: "DuckDBPyConnection") -> list[dict]:
    """Samples with the lowest IoU, then, of the others, those of which the least was kept."""
    columns = f"referent_id, source, split, caption, {QUALITY}"
    low = rows_of(
        catalogue,
        f"SELECT {columns} FROM referents WHERE mean_iou IS NOT NULL "
        f"ORDER BY mean_iou, referent_id LIMIT {WORST}",
    )
    short = rows_of(
        catalogue,
        f"SELECT {columns} FROM referents ORDER BY n_kept / n_frames, referent_id "
        f"LIMIT {2 * WORST}",
    )
    seen = {row["referent_id"] for row in low}
    return (
        low
        + [
            row
            for row in short
            if row["referent_id"] not in seen and row["n_kept"] < row["n_frames"]
        ][:WORST]
    )


def sheet(catalogue: "DuckDBPyConnection") -> dict[str, list[dict]]:
    """For each source its worst, a middling and its best sample, by IoU or else by kept share."""
    rows = rows_of(
        catalogue,
        f"""
        SELECT referent_id, source, split, caption, {QUALITY} FROM referents
        WINDOW ranked AS (PARTITION BY source ORDER BY mean_iou NULLS FIRST, n_kept / n_frames, referent_id)
        QUALIFY row_number() OVER ranked IN (1, (1 + count(*) OVER (PARTITION BY source)) // 2,
                                             count(*) OVER (PARTITION BY source))
        ORDER BY source, mean_iou NULLS FIRST, n_kept / n_frames, referent_id""",
    )
    picked: dict[str, list[dict]] = {}
    for row in rows:
        picked.setdefault(row["source"], []).append(row)
    return picked


def repeats(catalogue: "DuckDBPyConnection") -> dict[str, Any]:
    """Expressions and videos that several sources or splits have."""
    [counts] = rows_of(
        catalogue,
        """
        SELECT (SELECT count(*) FROM expressions WHERE len(sources) > 1) AS expressions,
               (SELECT coalesce(sum(referents), 0)::BIGINT FROM expressions WHERE len(sources) > 1) AS referents,
               (SELECT count(*) FROM videos WHERE len(splits) > 1) AS videos""",
    )
    return counts


def events(catalogue: "DuckDBPyConnection") -> list[dict]:
    return rows_of(catalogue, f"SELECT source, event, note, clips FROM events LIMIT {EVENTS}")


def runs(catalogue: "DuckDBPyConnection") -> list[dict]:
    """The last runs, newest first."""
    return rows_of(
        catalogue,
        f"""
        SELECT source, split, status, executor, workers, started, epoch(ended) - epoch(started) AS seconds,
               clips_done, clips_resumed, shards_done, shards_skipped
        FROM runs ORDER BY started DESC NULLS LAST, source, split LIMIT {LAST_RUNS}""",
    )


def configs(catalogue: "DuckDBPyConnection") -> list[dict]:
    """The configs of the newest run of every source and split; jobs with the same one together. No folder of this
    machine is in them."""
    rows = rows_of(
        catalogue,
        """
        SELECT source, split, arg_max(config, started) AS config, arg_max(versions, started) AS versions,
               arg_max(config_hash, started) AS hash, arg_max(code_version, started) AS code
        FROM runs WHERE config IS NOT NULL GROUP BY ALL ORDER BY ALL""",
    )
    groups: dict[str, dict] = {}
    for row in rows:
        job = json.loads(row["config"])
        take = {
            name: value for name, value in job.get("take", {}).items() if value not in (None, {}, 0)
        }
        text = json.dumps(job.get("config"), indent=2, sort_keys=True)
        group = groups.setdefault(
            text + row["versions"],
            {
                "jobs": [],
                "text": text,
                "hash": row["hash"],
                "code": row["code"],
                "versions": json.loads(row["versions"] or "{}"),
            },
        )
        group["jobs"].append(
            (f"{row['source']}-{row['split']}", json.dumps(take, sort_keys=True) if take else "")
        )
    return list(groups.values())
