"""Tables for people: what a plan promises, what a run did, how an output stands."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.driver import Run, staged_clips
from flows.follow import last_runs
from flows.jobs import beside_paper, totals
from flows.text import say, visible, visible_lines
from manifests.catalog import query
from manifests.quality import COVERAGE
from pipeline.plan import read_plan_header
from pipeline.shards import committed
from schemas.parts import part_names, plan_paths

if TYPE_CHECKING:
    from flows.doctor import Check

console = Console()
if not console.is_terminal:
    console = Console(width=160)  # a log or a pipe: the default of 80 would fold every cell


def table(title: str, columns: list[str], rows: list[list[object]], *, caption: str = "") -> None:
    """A table whose numbers are right-aligned."""
    view = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        caption=Text(caption),
        caption_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold dim",
    )
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(
            isinstance(r[i], int | float) or r[i] in ("", None, "-") for r in rows
        )
        view.add_column(
            Text(visible(column)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        view.add_row(*[_cell(value) for value in row])
    console.print()
    console.print(view)


def _cell(value: object) -> Text:
    """A value as plain text: what looks like markup is none, and control characters are visible."""
    return Text(visible(_words(value)))


def _words(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def show_json(value: object) -> None:
    """Print JSON and nothing else: NaN and infinities, which JSON does not know, as null; dates as text."""
    say(json.dumps(_strict(value), indent=2, default=str, allow_nan=False))


def _strict(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _strict(one) for key, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list | tuple) else value


def show_rows(rows: list[dict], *, empty: str = "no rows") -> None:
    if not rows:
        say(empty)
        return
    table("", list(rows[0]), [list(row.values()) for row in rows])


def show_plan(rows: list[dict]) -> None:
    """A plan per split, the sum, and the paper's counts beside it."""
    columns = [
        "source",
        "split",
        "videos",
        "clips",
        "referents",
        "qa",
        "shards",
        "MB",
        "minutes",
        "will skip",
        "media",
    ]

    def line(row: dict, name: list[object]) -> list[object]:
        minutes = None if row["seconds"] is None else row["seconds"] / 60
        reasons = [f"{n:,} {reason}" for reason, n in row.get("skip", {}).items()]
        skip = ", ".join(reasons) or "nothing"
        return [
            *name,
            row["videos"],
            row["clips"],
            row["referents"],
            row["qa"],
            row["shards"],
            round(row["bytes"] / 1e6),
            minutes,
            skip,
            row.get("media", ""),
        ]

    body = [line(row, [row["source"], row["split"]]) for row in rows]
    if len(rows) > 1:
        body.append(line(totals(rows), ["all", ""]))
    table(
        "Plan",
        columns,
        body,
        caption="MB and minutes are estimates (lite preset, 640x360 where the size is unknown)",
    )
    _show_masks(rows)
    lines = beside_paper(rows)
    columns = ["source", "clips", "paper_clips", "qa", "paper_qa"]
    table(
        "Beside the paper's corpus",
        columns,
        [[line[key] for key in columns] for line in lines],
        caption="The paper prints totals only; its counts by source are inferred (pipeline/corpora.py).\n"
        "vid_sentence: videos are counted. `--corpus paper` takes what these counts imply.",
    )
    _show_notes(rows)


def _show_notes(rows: list[dict]) -> None:
    """What will be skipped, who has no other target to switch to, and what has no media."""
    for row in rows:
        for reason, example in row["examples"].items():
            words = f"{row['source']} {row['split']}: {reason}, for example: {example}"
            console.print(Text(visible(words), style="dim"))
    for row in rows:
        if row["alone"]:
            words = f"{row['source']} {row['split']}: {row['alone']:,} of {row['referents']:,} referents have no "
            console.print(f"{words}other target to switch to in their video", style="dim")
    if bare := [f"{row['source']} {row['split']}" for row in rows if row["media"] == "none"]:
        words = f"no media found for {', '.join(bare)}: this is a plan of the annotations; "
        console.print(Text(f"{words}every clip would be quarantined", style="yellow"))


def _show_masks(rows: list[dict]) -> None:
    """What masks cost, for each way to make them, over all splits that segment."""
    found = [cost for row in rows for cost in row["masks"]]
    if not found:
        return
    columns = ["masks", "mode", "chosen", "pictures", "GPU hours"]
    body = []
    for masks, mode in dict.fromkeys((cost["masks"], cost["mode"]) for cost in found):
        same = [cost for cost in found if (cost["masks"], cost["mode"]) == (masks, mode)]
        hours = [cost["gpu_hours"] for cost in same]
        known = None if None in hours else sum(hours)
        pictures = sum(cost["pictures"] for cost in same)
        body.append([masks, mode, same[0]["chosen"], pictures, known])
    table("Masks by SAM2", columns, body)
    dense = body[0][-1]
    paper = sum(cost["paper_gpu_hours"] for cost in found if cost["masks"] == "none")
    lines = [
        "At most, at SAM2's published speed on an A100. Choose by --set segment.masks=... and segment.mode=...",
        f"The paper's pipeline without masks and decoding, by its own figures: {paper:,.2f} GPU hours.",
    ]
    if isinstance(dense, float) and dense > paper:
        lines.append("A mask on every frame costs more than all of that together.")
    for line in lines:
        console.print(Text(line, style="dim"))


def show_run(out: Path, runs: list[Run]) -> None:
    """What there is now, per source and split, and why the rest was dropped."""
    rows = query(
        out,
        f"""
        SELECT s.source, s.split, count(*) AS shards, sum(n_referents) AS planned, sum(n_samples) AS samples,
               sum(n_qa) AS qa, sum(n_quarantined) AS quarantined, sum(bytes) / 1e6 AS mb,
               any_value(r.frames) AS frames, any_value(r.kept) AS kept, any_value(r.iou) AS iou,
               any_value(r.coverage) AS coverage
        FROM shards s LEFT JOIN (
            SELECT source, split, sum(n_frames) AS frames, sum(n_kept) / sum(n_frames) AS kept, avg(mean_iou) AS iou,
                   {COVERAGE} AS coverage
            FROM referents GROUP BY ALL) r ON r.source = s.source AND r.split = s.split
        GROUP BY ALL ORDER BY ALL""",
    )
    columns = [
        "source",
        "split",
        "shards",
        "referents",
        "samples",
        "qa",
        "quarantined",
        "MB",
        "frames",
        "kept share",
        "IoU to annotation",
        "IoU covers",
    ]
    table(
        "Curated",
        columns,
        [list(row.values()) for row in rows],
        caption="kept share is not accuracy; IoU compares tracked with annotated boxes, in so many of the kept\n"
        "frames as it covers, and is empty where boxes are the dataset's",
    )
    _show_quarantine(out)
    events = query(out, "SELECT source, event, note, clips FROM events")
    if events:
        table(
            "Events",
            ["source", "event", "what happened", "clips"],
            [list(row.values()) for row in events],
        )
    for run in runs:
        parts = [f"{run.clips_done} clips curated"]
        if run.clips_resumed:
            parts.append(f"{run.clips_resumed} found finished")
        if run.shards_skipped:
            parts.append(f"{run.shards_skipped} shards up to date")
        console.print(Text(f"{run.job.name}: {', '.join(parts)}", style="dim"))


def _show_quarantine(out: Path) -> None:
    """Rows in quarantine by reason, each with an example; nothing for none."""
    reasons = query(
        out,
        "SELECT source, stage, reason, count(*) AS n, min(message) AS example FROM quarantine "
        "GROUP BY ALL ORDER BY ALL",
    )
    if reasons:
        table(
            "Quarantine",
            ["source", "stage", "reason", "n", "for example"],
            [[*list(r.values())[:4], r["example"][:90]] for r in reasons],
        )


def show_scores(scores: list[dict]) -> None:
    """The demo's scores against the exact truth of the synthetic corpus."""
    columns = {
        "source": "source",
        "boxes": "box_rule",
        "referents": "n_referents",
        "frames": "n_frames",
        "mean IoU": "iou",
        "success@0.5": "success",
        "J of masks": "mask_j",
        "masks": "n_masks",
        "absent frames": "n_absent",
        "of them with a box": "absent_with_box",
    }
    table(
        "Scores against the exact truth of the SYNTHETIC corpus",
        list(columns),
        [[row.get(key) for key in columns.values()] for row in scores],
        caption="IoU of all boxes before any is dropped, key frames left out, a missing box counts 0; "
        "J over kept frames.\nRows with annotation or mask boxes repeat what the dataset says. "
        "More in report/score.json",
    )


def status_rows(out: Path) -> list[dict]:
    """Per plan: clips and shards planned, staged, committed, quarantined; the last run, and the seconds it planned."""
    plans = plan_paths(out)
    if not plans:
        raise FileNotFoundError(
            f"{out} holds no plan (nothing under {out / 'plan'}): has a run been started there?"
        )
    staged, last, rows = staged_clips(out), last_runs(out), []
    none = {"run": None, "run_state": None, "planning": None}
    has_rows = part_names(out)
    done = (
        query(
            out,
            "SELECT source, split, sum(n_samples) AS samples, sum(n_quarantined) AS bad FROM shards GROUP BY ALL",
        )
        if has_rows
        else []
    )
    sums = {(r["source"], r["split"]): r for r in done}
    for path in plans:
        job, _, counts = read_plan_header(path)
        have = committed(out, job)
        entry = sums.get((job.source, job.split), {"samples": 0, "bad": 0})
        waiting = sum(n for name, n in staged.items() if name.rsplit("-", 1)[0] == job.name)
        rows.append(
            {
                "source": job.source,
                "split": job.split,
                "clips": counts.clips,
                "referents": counts.referents,
                "staged_clips": waiting,
                "shards": counts.shards,
                "committed": len(have),
                "samples": int(entry["samples"]),
                "quarantined": int(entry["bad"]),
                "state": "done" if len(have) == counts.shards else "unfinished",
                **last.get(job.name, none),
            }
        )
    return rows


def show_status(rows: list[dict]) -> None:
    names = [name for name in rows[0] if name != "planning"]
    table("Status", names, [[row[name] for name in names] for row in rows])


def show_doctor(checks: "list[Check]") -> None:
    """What the machine can do, then every check; of those that failed, what it means and the command that mends it."""
    from flows.doctor import ABILITIES, abilities

    marks = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
    for section in dict.fromkeys(check.section for check in checks):
        view = Table(
            title=section.capitalize(),
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            show_header=False,
            padding=(0, 2, 0, 0),
        )
        for _ in range(3):
            view.add_column(overflow="fold")
        for check in (c for c in checks if c.section == section):
            view.add_row(marks[check.state], check.what, Text(visible_lines(check.found)))
            if check.state != "ok":
                view.add_row("", "", Text(f"{check.means}\nto mend it: {check.fix}", style="dim"))
        console.print()
        console.print(view)
    console.print()
    for name, lacks in abilities(checks).items():
        few = ", ".join(lacks[:4]) + (f" and {len(lacks) - 4} more" if lacks[4:] else "")
        state = Text(f"needs {few}", style="yellow") if lacks else Text("works", style="green")
        console.print(Text.assemble((f"{name:<9}", "bold"), state, f"\n{'':9}{ABILITIES[name]}"))
