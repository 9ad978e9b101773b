"""`sparrow report`, and what every run leaves beside its shards: the run report and the data card."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.progress import Progress
from flows.text import say
from schemas.parts import part_names, plan_paths

REPORT = "report/index.html"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: sparrow report outputs/demo")(report)


def report(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write report/index.html: one page with funnel, statistics, time, contact sheets and configuration."""
    path = make_report(out)
    say(json.dumps(str(path)) if as_json else f"written: {path}")


def make_report(out: Path) -> Path:
    """The run report of an output, made anew. FileNotFoundError if it has no committed shard."""
    from flows.stats import saved_check
    from manifests.report import write_report
    from pipeline.corpora import PAPER_COUNTS, PAPER_TOTAL

    paper = {name: (count.clips, count.qa) for name, count in PAPER_COUNTS.items()}
    total = (PAPER_TOTAL.clips, PAPER_TOTAL.qa)
    return write_report(out, paper, total, planned=planned(out), leaks=saved_check(out))


def planned(out: Path) -> dict[str, int]:
    """Referents in each plan of an output, by "<source>-<split>"."""
    from pipeline.plan import read_plan_header

    headers = [read_plan_header(path) for path in plan_paths(out)]
    return {job.name: counts.referents for job, _, counts in headers}


def after_run(out: Path, progress: Progress, *, changed: bool = True) -> None:
    """Report and card of an output in which a run has just ended. What goes wrong here costs a warning, not the run.

    changed: whether the run has committed anything; if not, only what is not there is written.
    """
    if not part_names(out):
        return
    if not changed and all(
        (out / name).exists() for name in (REPORT, "README.md", "croissant.json")
    ):
        return
    with progress.stage("report", unit="files", total=3) as tick:
        for write in (make_report, _make_card):
            try:
                written = write(out)
                tick(len(written) if isinstance(written, list) else 1)
            except Exception as error:  # noqa: BLE001 - whatever it is, shards and manifests are safe
                what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                verb = "report" if write is make_report else "card"
                say(
                    f"warning: the run is complete, but `sparrow {verb} {out}` failed: {what}",
                    file=sys.stderr,
                )


def _make_card(out: Path) -> list[Path]:
    from manifests.card import write_card
    from pipeline.corpora import PAPER_COUNTS, PAPER_TOTAL

    paper = {name: (count.clips, count.qa) for name, count in PAPER_COUNTS.items()}
    return write_card(out, paper, (PAPER_TOTAL.clips, PAPER_TOTAL.qa))
