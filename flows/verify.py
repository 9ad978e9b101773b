"""`sparrow verify`: is an output whole, and are its pictures those of the data set?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.text import say
from schemas.parts import part_names

if TYPE_CHECKING:
    from flows.against_source import SourceReport
    from manifests.verify import Report


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("verify", epilog="Example: sparrow verify outputs/demo --deep")(command)


def command(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read and decode every member of every shard.")
    ] = False,
    against_source: Annotated[
        bool,
        typer.Option(
            "--against-source",
            help="Also read every clip again from its source, and compare the stored pictures with it.",
        ),
    ] = False,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root", help="With --against-source: where the dataset is now, if it has moved."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes of a deep check; default: one per processor.", min=1),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check that everything is there and whole. Writes nothing. Exits 0 only if all is as it was written.

    Without --deep: every byte of all tables and plans is as it was written (sha256), their rows fit together, all
    planned shards are there, and each tar has its size and its first and last member. A changed byte inside a tar
    is not found. --deep reads every tar as well (sha256), decodes each member, and compares it with its rows. Neither
    proves who wrote the files.
    """
    from flows.against_source import compare_with_source
    from flows.progress import Bars, Quiet
    from manifests.verify import verify
    from manifests.verify.processes import default_workers

    progress = Quiet() if as_json else Bars()
    total = len(part_names(out))
    with progress.stage("verify", unit="shards", total=total) as tick:
        processes = (workers or default_workers()) if deep else 1
        report = verify(out, deep=deep, tick=tick, workers=processes)
    compared = None
    if against_source:
        with progress.stage("compare", unit="clips") as tick:
            compared = compare_with_source(out, data_root, tick)
        report.problems += compared.problems
    if as_json:
        facts = report.as_dict()
        if compared is not None:
            facts["against_source"] = compared.as_dict()
        say(json.dumps(facts, indent=2))
    else:
        _show(out, report, compared)
    if report.problems or not report.shards:
        raise typer.Exit(1)


def _show(out: Path, report: "Report", compared: "SourceReport | None") -> None:
    """Problems, counts, and what to do."""
    problems = report.problems
    for problem in problems:
        say(f"problem: {problem}")
    for stray in report.strays:
        say(f"note: {stray} is no part of this output, and is not read")
    word = "deep" if report.deep else "fast"
    say(
        f"{out}: {report.shards} shards, {report.samples} samples, {report.members} members, "
        f"{report.bytes / 1e6:.1f} MB; {len(problems)} problems ({word} check)"
    )
    if compared is not None:
        say(compared)
    if any(problem.kind == "source" for problem in problems):
        say("`sparrow curate ... --replan` makes clips anew that differ from their source")
    if any(problem.kind != "source" for problem in problems):
        say(f"`sparrow repair {out}` makes again just what is damaged")
