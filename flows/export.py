"""`sparrow export` and `sparrow card`: what was curated, for other people's programs and eyes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.complete import FORMATS, SOURCES, names
from flows.text import say

Out = Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def register(app: typer.Typer) -> None:
    """Add both verbs to the command line."""
    app.command(
        epilog="Example: sparrow export outputs/demo --format sparrow --to outputs/demo-sparrow"
    )(export)
    app.command(epilog="Example: sparrow card outputs/demo")(card)


def export(
    out: Out,
    to: Annotated[
        Path, typer.Option(help="New or empty folder, or an earlier export, which is replaced.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="sparrow, artemis, coco (single frames), ytvis or fiftyone (docs/export.md).",
            autocompletion=names(*FORMATS),
        ),
    ] = "sparrow",
    source: Annotated[
        list[str] | None,
        typer.Option(help="Only this source (repeatable).", autocompletion=names(*SOURCES)),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split (repeatable).")] = None,
    where: Annotated[
        str, typer.Option(help='SQL condition over `referents`, e.g. "n_kept > 10".')
    ] = "true",
    as_json: Json = False,
) -> None:
    """Write curated samples for SPARROW's released loaders, as Artemis records, COCO or YouTube-VIS json, or for FiftyOne."""
    from flows.jobs import normal
    from flows.progress import Bars, Quiet
    from manifests.export import export as write
    from manifests.export import noise_note
    from schemas.members import EXPORT_MARKER

    progress = Quiet() if as_json else Bars()
    with progress.stage(f"export {format}", unit="samples") as tick:
        sources = [normal(name) for name in source or []]
        done = write(out, to, format, sources=sources, splits=split or [], where=where, tick=tick)
    if as_json:
        say((to / EXPORT_MARKER).read_text(), end="")
        return
    for item, why in done.skipped[:20]:
        say(f"skipped: {item}: {why}")
    if len(done.skipped) > 20:
        say(f"skipped: {len(done.skipped) - 20} more, all in {to / EXPORT_MARKER}")
    if done.noisy:
        say(f"note: {noise_note(done)}")
    for name, n in sorted(done.samples.items()):
        licence = done.licences[name.split("-")[0]]
        say(f"{name:<20} {n:>7} samples   {licence}")
    say(f"\nwritten to: {to}\nwhat it is: {to / EXPORT_MARKER}, docs/export.md")


def card(
    out: Out,
    url: Annotated[
        str, typer.Option(help="Where the dataset will be found; goes into both files.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Write the data card (README.md, as Hugging Face shows it) and croissant.json (Croissant 1.0) of an output."""
    from manifests.card import write_card
    from pipeline.corpora import PAPER_COUNTS, PAPER_TOTAL

    paper = {name: (count.clips, count.qa) for name, count in PAPER_COUNTS.items()}
    written = write_card(out, paper, (PAPER_TOTAL.clips, PAPER_TOTAL.qa), url=url)
    if as_json:
        say(json.dumps([str(path) for path in written]))
        return
    for path in written:
        say(f"written: {path}")
