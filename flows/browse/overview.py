"""What the overview shows: totals, distributions, funnel, throughput, runs."""

from collections.abc import Callable
from typing import Any

from flows.browse import charts
from manifests.quality import COVERAGE

_SUMS = f"""count(*) AS samples, count(DISTINCT clip_id) AS clips, sum(n_frames)::BIGINT AS frames,
    sum(n_kept) / sum(n_frames) AS "kept share", avg(mean_iou) AS "mean IoU",
    {COVERAGE} AS "IoU covers", sum(n_masks)::BIGINT AS masks,
    sum(n_qa)::BIGINT AS QA"""
_STAGES = """SELECT source, stage, sum(seconds) AS seconds, sum(frames)::BIGINT AS frames,
    sum(frames) / nullif(sum(seconds), 0) AS pace,
    sum(seconds) / nullif(sum(sum(seconds)) OVER (PARTITION BY source), 0) AS share
    FROM (SELECT * REPLACE ({source} AS source) FROM stage_seconds) 
    GROUP BY source, stage ORDER BY source, seconds DESC"""
_FUNNEL = """SELECT *, referents / sum(referents) OVER (PARTITION BY source, split) AS share
    FROM funnel ORDER BY source, split, reason <> 'kept', referents DESC"""
_SAMPLES_IOU = """SELECT floor(least(mean_iou, 0.999) * 10) / 10 AS iou_from, count(*) AS n
    FROM samples WHERE mean_iou IS NOT NULL GROUP BY ALL"""
_RUNS = """SELECT strftime(started, '%Y-%m-%d %H:%M') AS started, source || ' ' || split AS what, status,
    executor || ' × ' || workers AS by, shards_done AS shards, clips_done AS clips, epoch(ended - started) AS seconds
    FROM runs ORDER BY runs.started DESC NULLS LAST LIMIT 20"""


def numbers(ask: Callable[[str], list[dict]]) -> dict[str, Any]:
    """The words of overview.html. ask: rows of a query over the catalogue."""
    lost = ask("SELECT count(*) AS n FROM quarantine")[0]["n"]
    return {
        "synthetic": bool(ask("SELECT 1 FROM runs WHERE synthetic LIMIT 1")),
        "totals": ask(f"SELECT {_SUMS} FROM samples")[0] | {"in quarantine": lost},
        "counts": ask(f"SELECT source, split, {_SUMS} FROM samples GROUP BY ALL ORDER BY ALL"),
        "ious": charts.iou_histogram(ask(_SAMPLES_IOU), links=True),
        "frames_iou": charts.iou_histogram(ask("SELECT iou_from, frames AS n FROM iou_histogram")),
        "lengths": charts.length_histogram(
            ask("SELECT n_frames, count(*) AS n FROM samples GROUP BY ALL")
        ),
        "funnel": ask(_FUNNEL),
        "seconds": ask(_STAGES.format(source="'all'")),
        "by_source": ask(_STAGES.format(source="source")),
        "events": ask("SELECT * FROM events"),
        "runs": ask(_RUNS),
    }
