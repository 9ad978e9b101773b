"""`sparrow publish`: committed shards go to an object store, where others train from them (docs/object-stores.md)."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.complete import SOURCES, names
from flows.text import say

if TYPE_CHECKING:
    from manifests.publish import Outcome


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("publish", epilog="Example: sparrow publish outputs/tsf s3://bucket/tsf")(command)


def command(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    to: Annotated[str, typer.Argument(help="Where to: s3://bucket/prefix.", show_default=False)],
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only this source (repeatable).", autocompletion=names(*SOURCES)),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split (repeatable).")] = None,
    workers: Annotated[int, typer.Option(help="Shards at once.", min=1)] = 4,
    endpoint: Annotated[
        str, typer.Option(help="Address of a store that is not Amazon's. Or AWS_ENDPOINT_URL.")
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Write over shards of another content.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every object back, and mend what differs.")
    ] = False,
    unconditional: Annotated[
        bool,
        typer.Option(
            "--unconditional",
            help="For stores without conditional writes: nobody else may publish.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Put committed shards into an object store, each exactly once. Run it again to go on, or to add new shards."""
    from flows.progress import Bars, Quiet
    from manifests.publish import forecast, open_store, publish, publish_rest

    shards = chosen(out, source or [], split or [])
    store = open_store(to, endpoint=endpoint, unconditional=unconditional, workers=workers)
    progress, rest, why = Quiet() if as_json else Bars(), 0, ""
    if dry_run:
        done = forecast(out, store, shards, replace=replace, workers=workers)
    else:
        with progress.stage("publish", unit="shards", total=len(shards)) as tick:
            done = publish(
                out, store, shards, replace=replace, deep=deep, workers=workers, tick=tick
            )
        failed = any(d.failed for d in done)
        splits = {d.shard.rpartition("-")[0] for d in done if not d.failed}
        rest, why = publish_rest(out, store, splits, card=not failed)
    if as_json:
        told = [
            {
                "shard": d.shard,
                "state": d.state,
                "objects": d.objects,
                "bytes": d.bytes,
                "why": d.why,
            }
            for d in done
        ]
        said = {
            "to": store.url,
            "conditional": store.conditional,
            "dry_run": dry_run,
            "shards": told,
        }
        say(
            json.dumps(
                said | ({} if dry_run else {"other_objects": rest, "card": why or "published"}),
                indent=2,
            )
        )
    else:
        _show(done, store.url, store.conditional, dry_run, rest, why)
    if any(d.failed for d in done):
        raise typer.Exit(1)


def chosen(out: Path, sources: list[str], splits: list[str]) -> list[str]:
    """Names of the committed shards of an output, of these sources and splits. FileNotFoundError if it has none."""
    from flows.jobs import normal
    from schemas.parts import part_names

    folder = out / "manifests" / "shards"
    names = part_names(out)
    if not names:
        raise FileNotFoundError(f"{out} holds no committed shards (nothing under {folder})")
    wanted = {normal(source) for source in sources}
    found = []
    for name in names:
        source, _, split = name.rpartition("-")[0].partition("-")
        if source in (wanted or {source}) and split in (splits or [split]):
            found.append(name)
    if not found:
        there = sorted({name.rpartition("-")[0] for name in names})
        raise ValueError(
            f"{out} has no shard of {' '.join([*wanted, *splits])}: it has {', '.join(there)}"
        )
    return found


def _show(
    done: "list[Outcome]", url: str, conditional: bool, dry_run: bool, rest: int, why: str
) -> None:
    failed = [d for d in done if d.failed]
    for outcome in failed[:20]:
        say(f"{outcome.state}: {outcome.why}")
    if len(failed) > 20:
        say(f"{len(failed) - 20} more, all with --json")
    counts = Counter((d.shard.rpartition("-")[0], d.state) for d in done)
    for (name, state), n in sorted(counts.items()):
        mine = [d for d in done if (d.shard.rpartition("-")[0], d.state) == (name, state)]
        size = sum(d.bytes for d in mine) / 1e6
        say(
            f"{name:<20} {n:>6} {state:<12} {sum(d.objects for d in mine):>7} objects {size:>10.1f} MB"
        )
    if not conditional:
        say("nothing was conditional: if two publish here at once, shards may end up mixed")
    if dry_run:
        say(f"\nnothing was written to: {url}")
        return
    if why:
        say(f"the data card was not published: {why}")
    but = f", but for {len(failed)} shards" if failed else ""
    say(
        f"\npublished to: {url} ({rest} objects beside the shards){but}\nhow to read:  docs/object-stores.md"
    )
