"""`sparrow status --follow`: the live runs of an output, watched from another terminal through their folders."""

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.runlog import read_runs
from flows.text import say, visible, visible_lines

COLUMNS = (
    "run",
    "source, split",
    "clips",
    "shards",
    "dropped",
    "clips/s",
    "left",
    "slowest stage, p50 / p95",
    "state",
)
LAST_EVENTS = 5
TAIL = 1 << 20
"""Bytes at the end of a log in which they are looked for."""


def lines(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per job of a run. `left`, in seconds, is None until clips have been finished.

    Clips of shards that were there before are counted by the mean of their split: a shard's own number is in no count.
    """
    rows = []
    done_by_run = sum(job["clips_done"] for job in run["jobs"].values())
    phases = run.get(
        "phases", {"curating": run["elapsed"]}
    )  # runs from before phases were recorded have none
    rate = done_by_run / phases["curating"] if phases.get("curating") else 0.0
    for name, job in run["jobs"].items():
        before = round(job["clips"] * job["shards_skipped"] / job["shards"]) if job["shards"] else 0
        done = min(job["clips"], before + job["clips_resumed"] + job["clips_done"])
        rows.append(
            {
                "run": run["id"],
                "job": name,
                "state": run["state"],
                "clips": job["clips"],
                "clips_done": done,
                "shards": job["shards"],
                "shards_done": job["shards_skipped"] + job["shards_done"],
                "dropped": run["dropped"],
                "clips_per_second": round(rate, 3),
                "left": round((job["clips"] - done) / rate, 1) if rate else None,
                "phases": phases,
            }
        )
    return rows


def last_runs(out: Path) -> dict[str, dict[str, Any]]:
    """Job -> `run` (id of its last run that has a folder; `run_id` in the table `runs`), `run_state` and `planning`,
    the seconds that it planned, None for a run from before they were recorded."""
    return {
        job: {
            "run": run["id"],
            "run_state": run["state"],
            "planning": run.get("phases", {}).get("planning"),
        }
        for run in read_runs(out)
        for job in run["jobs"]
    }


def follow(out: Path, every: float = 2.0, as_json: bool = False) -> None:
    """Show the runs that are live until none is; if none is, the last one and its end. JSON: a line per look.

    FileNotFoundError if no run has left a folder.
    """
    if not read_runs(out):
        raise FileNotFoundError(
            f"{out} holds no run (nothing under {out / 'runs'}): has a run been started there?"
        )
    console = Console()
    followed: set[str] = set()
    live = None if as_json or not console.is_terminal else Live(console=console, auto_refresh=False)
    if live:
        live.start()
    try:
        while True:
            runs = read_runs(out)
            now = {run["id"] for run in runs if run["state"] == "running"}
            followed |= now or (set() if followed else {runs[-1]["id"]})
            shown = [run for run in runs if run["id"] in followed]
            if as_json:
                say(json.dumps([row for run in shown for row in lines(run)]), flush=True)
            elif live:
                live.update(view(shown), refresh=True)
            else:
                for row in (row for run in shown for row in lines(run)):
                    console.print(
                        "{run} {job}: {clips_done} of {clips} clips, {shards_done} of {shards} shards, "
                        "{dropped} dropped, {said}".format(**row, said=_state(row)),
                        highlight=False,
                        markup=False,
                    )
            if not now:
                return
            time.sleep(every)
    except KeyboardInterrupt:  # stops the watching, not the run
        return
    finally:
        if live:
            live.stop()


def view(runs: list[dict[str, Any]]) -> Group:
    """The table and the last events of each run."""
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold dim")
    events: list[Text] = []
    for run in runs:
        stages = sorted(run["stages"].items(), key=lambda item: -item[1]["seconds"])
        slow = (
            f"{stages[0][0]}, {stages[0][1]['p50']:.2f} / {stages[0][1]['p95']:.2f} s"
            if stages
            else "-"
        )
        for row in lines(run):
            left = "-" if row["left"] is None else f"{row['left'] / 60:.0f} min"
            table.add_row(
                row["run"],
                row["job"],
                f"{row['clips_done']:,} of {row['clips']:,}",
                f"{row['shards_done']:,} of {row['shards']:,}",
                str(row["dropped"]),
                f"{row['clips_per_second']:.2f}",
                left,
                slow,
                _state(row),
            )
        if run["error"]:
            events.append(Text(visible_lines(run["error"]), style="red"))
        events += [
            Text(visible(_said(event)), style="dim") for event in last_events(Path(run["folder"]))
        ]
    return Group(table, *events)


def _state(row: dict[str, Any]) -> str:
    """The state; of a live run that is not curating what it does, and how long it has."""
    phase, seconds = list(row["phases"].items())[-1]
    return (
        f"{phase} for {seconds:.0f} s"
        if row["state"] == "running" and phase != "curating"
        else row["state"]
    )


def last_events(folder: Path, count: int = LAST_EVENTS) -> list[dict[str, Any]]:
    """The last whole lines of the log that are of more than one clip's being done."""
    try:
        with (folder / "log.jsonl").open("rb") as file:
            begin = max(0, file.seek(0, 2) - TAIL)
            file.seek(begin)
            tail = file.read().split(b"\n")[1 if begin else 0 : -1]
    except OSError:
        return []
    events = [json.loads(line) for line in tail]
    return [event for event in events if event["event"] != "clip"][-count:]


def _said(event: dict[str, Any]) -> str:
    words = [
        str(event[k])
        for k in ("shard", "clip", "phase", "stage", "reason", "message", "state")
        if event.get(k)
    ]
    return f"{event['time'][11:19]} {event['event']}: {', '.join(w for w in words if w != event['event'])}"
