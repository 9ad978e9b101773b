"""`sparrow weights`: which files the `full` preset needs, whether they are the right ones, and how to get them."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import complete
from flows.extras import require
from flows.text import say

if TYPE_CHECKING:
    from pipeline.weights import Checked, WeightFile

app = typer.Typer(
    help="The full preset's weight files: list, check, fetch, convert.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Names from `sparrow weights list`. Default: what is needed.",
        autocompletion=complete.weights,
    ),
]


@app.command("list", epilog="Example: sparrow weights list")
def list_(as_json: Json = False) -> None:
    """Every weight file: is it needed, is it there, where does it come from, and under which licence."""
    from pipeline.weights import WEIGHTS
    from trackers.runtime import weights_root

    root = weights_root().absolute()
    rows = [_row(entry, root) for entry in WEIGHTS]
    if as_json:
        say(json.dumps({"root": str(root), "weights": rows}, indent=2))
        return
    for columns in (
        "name needed there MB path licence",
        "name purpose published_as",
        "name source",
    ):
        cells = [columns.split(), *([str(row[key]) for key in columns.split()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        say(
            "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells),
            end="\n\n",
        )
    say(
        f"weights root: {root} (SPARROW_WEIGHTS=/another/folder changes it). MB: on disk, else about.\n"
        "docs/weights.md says what to do, from here to the first shard."
    )


def _row(entry: "WeightFile", root: Path) -> dict:
    place = entry.found(root)
    size = sum(path.stat().st_size for path in entry.parts(place)) if place else 0
    there = "yes" if place == root / entry.path else "not converted" if place else "no"
    return asdict(entry) | {
        "needed": "needed" if entry.needed else "alternative",
        "there": there,
        "on_disk": size,
        "MB": round((size or entry.bytes) / 1e6, 1) or "?",
        "path": place.name if place else entry.path,
    }


@app.command(epilog="Example: sparrow weights check sam2.1-l")
def check(names: Names = None, as_json: Json = False) -> None:
    """Load each file into its real model on the CPU, one at a time. Exits 0 only if all are good."""
    from flows.progress import Bars, Quiet
    from pipeline.weights import check as examine
    from pipeline.weights import choose

    require("torch")
    entries, results = choose(names or ()), []
    with (Quiet() if as_json else Bars()).stage("check", unit="files", total=len(entries)) as tick:
        for entry in entries:
            results.append(examine(entry, lambda note: tick(0, note)))
            tick(1)
    if as_json:
        say(json.dumps([asdict(result) | {"good": result.good} for result in results], indent=2))
    else:
        for result in results:
            _show(result)
    if not all(result.good for result in results):
        raise typer.Exit(1)


def _show(result: "Checked") -> None:
    say(f"\n{result.name}: {'good' if result.good else 'NOT GOOD'}, {result.path}")
    if result.tensors:
        kinds = ", ".join(f"{n} {kind}" for kind, n in result.dtypes.items())
        say(
            f"  {result.bytes / 1e6:,.1f} MB, {result.tensors} tensors ({kinds}), {result.elements:,} elements, "
            f"{sum(result.not_finite.values())} of them not finite"
        )
    for name, digest in result.sha256.items():
        say(f"  sha256  {digest}  {name}")
    if zero := result.all_zero:
        say(f"  all zero: {', '.join(zero[:6])}{f' and {len(zero) - 6} more' if zero[6:] else ''}")
    for line in [*result.notes, *(f"problem: {problem}" for problem in result.problems)]:
        say(f"  {line}")


@app.command(epilog="Example: sparrow weights fetch --from https://mirror.example.org/weights")
def fetch(
    names: Names = None,
    mirror: Annotated[
        str,
        typer.Option(
            "--from",
            envvar="SPARROW_MIRROR",
            help="Folder URL that holds the files under their paths.",
        ),
    ] = "",
) -> None:
    """Download from a mirror of yours what its licence allows to be handed on. Resumes; verifies against SHA256SUMS."""
    import httpx

    from flows.download import Refused, fetch_file, fetch_sums
    from flows.progress import Bars
    from pipeline.weights import choose
    from trackers.runtime import weights_root

    if not re.match(r"https?://[^/]", mirror):
        raise ValueError(
            f"--from {mirror!r} is not an http(s) URL: name a mirror that holds the files (there is no "
            "default), or download them from the pages in `sparrow weights list`"
        )
    entries, root, bars = choose(names or ()), weights_root(), Bars()
    by_hand = [
        f"{e.name} has to be downloaded by hand ({e.licence}): {e.source}"
        for e in entries
        if not e.fetchable
    ]
    problems = by_hand if names else []
    with httpx.Client(timeout=30, headers={"User-Agent": "sparrow-tsf"}) as client:
        base = httpx.URL(mirror.rstrip("/") + "/")
        sums = fetch_sums(client, base, root)
        for path, size, known in (
            file for entry in entries if entry.fetchable for file in entry.files
        ):
            try:
                with bars.stage(path, unit="MB", total=round(size / 1e6) or None) as tick:
                    done = fetch_file(
                        client, base, root, path, size, sums.get(path), known, _megabytes(tick)
                    )
                say(f"{path}: {done}")
            except Refused as error:
                problems = [*problems, str(error)]
    for text in by_hand if not names else []:
        say(f"note: {text}")
    for text in problems:
        say(f"problem: {text}")
    if problems:
        raise typer.Exit(1)


def _megabytes(tick: Callable[[int, str], None]) -> Callable[[int], None]:
    """Bytes so far -> steps of whole megabytes, with the rate as a note."""
    start, shown = time.monotonic(), 0

    def to(done: int) -> None:
        nonlocal shown
        if step := done // 10**6 - shown:
            shown += step
            tick(step, f"{shown / (time.monotonic() - start):.1f} MB/s")

    return to


@app.command(
    epilog="Example: sparrow weights convert cldtracker.pth.tar --out weights/cldtracker.safetensors"
)
def convert(
    path: Annotated[
        Path, typer.Argument(help="CLDTracker's or OSTrack's checkpoint as published.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The .safetensors file to write.")],
    whole: Annotated[
        bool, typer.Option("--all", help="Keep CLDTracker's text branch (default: drop it).")
    ] = False,
) -> None:
    """Take the network out of a training checkpoint: no pickle, no optimizer state, a fraction of the size."""
    from trackers.checkpoints import read_state_dict
    from trackers.cldtracker.checkpoint import convert_checkpoint, text_branch_report

    for key, value in convert_checkpoint(path, out, subset=not whole).items():
        say(f"{key:14} {value}")
    say(f"{'text branch':14} {text_branch_report(read_state_dict(path))['verdict']}")
