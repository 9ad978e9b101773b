"""`sparrow quarantine`: what was dropped, and why; and trying it again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.text import say
from schemas.parts import part_names

if TYPE_CHECKING:
    from manifests.quarantine import Tally
    from pipeline.plan import Job

app = typer.Typer(help="What was dropped, and why; and trying it again.", no_args_is_help=True)

Out = Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MaxDropped = Annotated[
    float | None,
    typer.Option(
        help="Exit with 4 if more than this share of the clips is dropped: 0.1 is a tenth.",
        min=0,
        max=1,
    ),
]


@app.command(
    "list", epilog="Example: sparrow quarantine list outputs/demo --where \"source = 'a2d'\""
)
def list_(
    out: Out,
    where: Annotated[
        str,
        typer.Option(
            help="SQL condition: source, stage, reason, error_class, retryable, first_seen, runs, ..."
        ),
    ] = "true",
    by: Annotated[
        str, typer.Option(help="Count by columns instead, e.g. stage,reason or traceback_hash.")
    ] = "",
    as_json: Json = False,
) -> None:
    """All dropped clips and referents with stage, reason, message, and since when."""
    from flows.show import show_json, show_rows
    from manifests.quarantine import dropped

    if by:
        names = ", ".join(f'"{name.strip()}"' for name in by.replace('"', "").split(","))
        group = f"GROUP BY {names} ORDER BY n DESC, {names}"
        rows = dropped(
            out, where, columns=f"{names}, count(*) AS n, min(message) AS example", then=group
        )
    else:
        columns = (
            "source, split, clip_id, referent_id, stage, reason, message, retryable, first_seen"
        )
        columns += ", last_seen, runs, attempt, error_class, traceback_hash" if as_json else ""
        rows = dropped(
            out, where, columns=columns, then="ORDER BY source, split, clip_id, referent_id"
        )
        if not as_json:
            for row in rows:
                row["first_seen"] = row["first_seen"] and f"{row['first_seen']:%Y-%m-%d}"
    show_json(rows) if as_json else show_rows(rows, empty="nothing is in quarantine")


@app.command("show", epilog="Example: sparrow quarantine show outputs/demo hcstvg-train-…")
def show(
    out: Out,
    item: Annotated[str, typer.Argument(help="A clip_id or referent_id, or the start of one.")],
    as_json: Json = False,
) -> None:
    """Everything about one dropped item."""
    from flows.show import show_json
    from manifests.quarantine import dropped

    rows = dropped(
        out, "starts_with(clip_id, $1) OR starts_with(coalesce(referent_id, ''), $1)", [item]
    )
    if not rows:
        raise ValueError(
            f"{item!r} is not in quarantine; `sparrow quarantine list {out}` shows what is"
        )
    if as_json:
        show_json(rows)
        return
    width = max(map(len, rows[0]))
    for row in rows:
        say("\n".join(f"{name:<{width}}  {value}" for name, value in row.items()), end="\n\n")


@app.command(
    "retry",
    epilog="Example: sparrow quarantine retry outputs/demo --where \"reason = 'media_missing'\"",
)
def retry(
    out: Out,
    where: Annotated[
        str, typer.Option(help="Which rows; default: those that a second run may cure.")
    ] = "retryable",
    workers: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 2,
    executor: Annotated[
        str, typer.Option(help="ray, or inline: everything in this process (debugging).")
    ] = "ray",
    max_dropped: MaxDropped = None,
) -> None:
    """Curate the shards of dropped items again, with the config they were made with."""
    from flows import driver
    from flows.executors import make_executor
    from flows.progress import Bars
    from flows.show import show_run
    from pipeline.requeue import requeued

    finishes = requeued(out)
    tried, before = _items(out, where), _items(out)
    engine = make_executor(executor, workers)
    try:
        runs = driver.retry(out, where, engine, Bars())
    finally:
        engine.close()
    if not runs:
        say("nothing to retry: no quarantine row matches")
        return
    show_run(out, runs)
    if finishes:
        say(f"of these, an interrupted command had begun with: {', '.join(sorted(finishes))}")
    cured = min(len(tried), max(0, len(before) - len(_items(out))))
    say(f"tried again: {len(tried)} items; {cured} are cured, {len(tried) - cured} dropped")
    jobs = [run.job for run in runs]
    show_tally(out, jobs).judge(max_dropped, ", ".join(job.name for job in jobs))


def _items(out: Path, where: str = "true") -> set[tuple[str, str, str]]:
    """Source, split and id of what is in quarantine and matches `where` (SQL)."""
    from manifests.quarantine import dropped
    from pipeline.requeue import requeued

    if not part_names(out) and requeued(out):
        return set()
    rows = dropped(out, where, columns="source, split, coalesce(referent_id, clip_id) AS item")
    return {(row["source"], row["split"], row["item"]) for row in rows}


def show_tally(out: Path, jobs: "list[Job]") -> "Tally":
    """Print, for the end of a run, how many clips were dropped and why."""
    from manifests.quarantine import tally

    found = tally(out, [(job.source, job.split) for job in jobs])
    say(found)
    return found
