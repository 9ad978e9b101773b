"""From the parts of a run to its numbers.

<out>/results.json        summary, 95 % bounds, the paper's numbers beside them, and every failure with its reason
<out>/per_query.parquet   all rows without masks, for DuckDB
"""

import json
from collections.abc import Sequence
from typing import Any

from model.evaluate.folder import Folder, parquet
from model.evaluate.task import Benchmark, Video
from model.tables.definitions import Reported
from model.tables.registry import beside
from schemas.files import write_whole


def conclude(
    folder: Folder, benchmark: Benchmark, videos: Sequence[Video], total: int
) -> dict[str, Any]:
    """Write and return the results of `videos`, whose parts are all there, of the benchmark's `total` videos."""
    rows = [row for video in videos for row in folder.rows(video)]
    settings = folder.settings
    scored = benchmark.scored and any(not row["unscored"] for row in rows)
    summary = benchmark.summary(rows) if scored else {}
    bounds = benchmark.intervals(rows) if scored else {}
    failures = [
        {name: row[name] for name in ("video", "query", "error")}
        for row in rows
        if row["error"] and not row["unscored"]
    ]
    unscored = [
        {name: row[name] for name in ("video", "query", "unscored")}
        for row in rows
        if row["unscored"]
    ]
    results = {
        "benchmark": settings.benchmark,
        "split": settings.split,
        "scoring": settings.scoring,
        "host": settings.host,
        "size": settings.size,
        "preset": settings.preset,
        "model": settings.model,
        "trained": settings.trained,
        "protocol": settings.asking["name"],
        "answer": settings.asking["answer"],
        "seed": settings.seed,
        "changes": settings.changes,
        "tsf": settings.tsf,
        "weights": settings.weights,
        "note": settings.note,
        "videos": len(videos),
        "of_videos": total,
        "queries": len(rows),
        "failed": len(failures),
        "unscored": len(unscored),
        "without_mask": sum(
            not row["error"]
            and not row["unscored"]
            and not row["tracks"]
            and row["kind"] != "region"  # is answered in words
            for row in rows
        ),
        "headline": list(benchmark.headline),
        "summary": summary,
        "intervals": {key: [bound.low, bound.high] for key, bound in bounds.items()},
        "paper": _paper(settings.benchmark, settings.split, settings.host),
        "failures": failures,
        "annotation_faults": unscored,
    }
    write_whole(folder.out / "per_query.parquet", parquet(rows))
    write_whole(folder.out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def _paper(benchmark: str, split: str, host: str) -> dict[str, dict[str, Any]]:
    """The paper's numbers by key of the summary; "reported" marks one that was not read in the paper."""
    found: dict[str, dict[str, Any]] = {}
    for key, (column, alone, sparrow) in beside(benchmark, split, host).items():
        found[key] = {"host": alone, "sparrow": sparrow, "scale": column.scale}
        if isinstance(sparrow, Reported):
            found[key]["reported"] = True
    return found


def caveats(results: dict[str, Any]) -> list[str]:
    """What must be lines beside the numbers."""
    lines = [results["note"]] if results["note"] else []
    if results["answer"] == "force":
        lines.append("answers were forced: the language model was not asked whether to ground")
    if results["videos"] < results["of_videos"]:
        lines.append(
            f"{results['videos']} of {results['of_videos']} videos: not the benchmark's number"
        )
    if results["failed"]:
        lines.append(
            f"{results['failed']} of {results['queries']} queries failed and count as zero"
        )
    if results.get("unscored"):  # runs of older versions say nothing
        lines.append(
            f"{results['unscored']} of {results['queries']} queries are not scored, because their annotation is at "
            "fault; they are listed in results.json"
        )
    if results["without_mask"]:
        lines.append(
            f"{results['without_mask']} of {results['queries']} answers name no object: they are empty masks"
        )
    if not results["summary"] and results.get("unscored") == results["queries"]:
        lines.append("no query could be scored")
    elif not results["summary"]:
        lines.append("no public truth: make an archive for the benchmark's server (--archive)")
    return lines
