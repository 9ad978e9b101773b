"""`sparrow model`: what a host is made of, with and without SPARROW."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from flows import complete
from flows.extras import MODEL, require
from flows.text import say

if TYPE_CHECKING:
    from model.describe import Description

app = typer.Typer(help="SPARROW and its three hosts.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a config field: --set proposer.levels=3.")
]


@app.command(epilog="Example: sparrow model describe videoglamm")
def describe(
    host: Annotated[
        str,
        typer.Argument(
            help="videoglamm, unipixel or glus.",
            show_default=False,
            autocompletion=complete.names(*complete.HOSTS),
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="paper, or release: what the released code does.",
            autocompletion=complete.names(*complete.MODEL_PRESETS),
        ),
    ] = "paper",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a config field: --set proposer.levels=3."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of the clip that is counted.", min=1)] = 16,
    as_json: Json = False,
) -> None:
    """Count parameters and operations at the official sizes, beside the paper's tables. No weights are needed."""
    require(*MODEL)
    from model.config import configure
    from model.describe import describe as count
    from model.describe import proposers
    from schemas.config import assignment

    config = configure(preset, **dict(map(assignment, sets or [])))
    with _progress(f"counting {host} on the meta device"):
        found = count(host, config, frames)
        table_11 = proposers()
    if as_json:
        names = ("kind", "parameters", "with_selector", "gflops_64x64")
        rows = [dict(zip(names, row, strict=True)) for row in table_11]
        say(json.dumps(found.as_dict() | {"table_11": rows}, indent=2))
        return
    _components(found)
    _table_15(found)
    _table_11(table_11)


def _progress(text: str):  # type: ignore[no-untyped-def]
    from rich.console import Console

    return Console(stderr=True).status(text)


def _components(found: "Description") -> None:
    from rich.table import Table

    table = Table(
        title=f"{found.host}: a clip of {found.frames} frames, one object, prompted on the first"
    )
    for name in ("component", "parameters", "GFLOPs / clip", "counted"):
        table.add_column(name, justify="left" if name in ("component", "counted") else "right")
    for part in found.components:
        table.add_row(part.name, f"{part.parameters:,}", _number(part.gflops_clip), part.what)
    table.add_section()
    for part in found.sparrow:
        table.add_row(
            f"SPARROW {part.name}", f"{part.parameters:,}", _number(part.gflops_clip), part.what
        )
    _print(table)


def _table_15(found: "Description") -> None:
    from rich.table import Table

    from model.describe import TABLE_15, WHY

    table = Table(title="Table 15 (GFLOPs are 2 x MACs; ours / the paper's)")
    for name in (
        "",
        "parameters (B)",
        "paper",
        "GFLOPs / clip",
        "GFLOPs / frame",
        "GMACs / frame",
        "paper / frame",
    ):
        table.add_column(name, justify="left" if not name else "right")
    paper = TABLE_15[found.host]
    rows = (("host", False, paper[0], paper[1]), ("+ SPARROW", True, paper[2], paper[3]))
    for name, sparrow, billions, gflops in rows:
        clip = found.gflops(sparrow=sparrow)
        table.add_row(
            name,
            f"{found.parameters(sparrow=sparrow) / 1e9:.4f}",
            f"{billions:.3f}",
            _number(clip),
            _number(clip / found.frames),
            _number(clip / found.frames / 2),
            f"{gflops:,}",
        )
    added = found.parameters(sparrow=True) - found.parameters(sparrow=False)
    more = found.gflops(sparrow=True) - found.gflops(sparrow=False)
    table.add_row(
        "difference",
        f"+{added / 1e9:.4f}",
        f"+{paper[2] - paper[0]:.3f}",
        f"+{_number(more)}",
        f"+{_number(more / found.frames)}",
        f"+{_number(more / found.frames / 2)}",
        f"+{paper[3] - paper[1]}",
    )
    _print(table)
    for note in (WHY["params"], WHY["flops"], WHY[found.host]):
        say(f"  - {note}")


def _table_11(rows: list[tuple[str, int, int, float]]) -> None:
    from rich.table import Table

    from model.describe import TABLE_11

    table = Table(title="Table 11 (paper: + parameters, M)")
    for name in (
        "proposer",
        "parameters",
        "with selector's 197,376",
        "paper (M)",
        "GFLOPs on 64 x 64",
    ):
        table.add_column(name, justify="left" if name == "proposer" else "right")
    for kind, own, added, gflops in rows:
        table.add_row(kind, f"{own:,}", f"{added:,}", f"{TABLE_11[kind]:.2f}", _number(gflops))
    _print(table)


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.05 else f"{value:.4f}" if value else "-"


def _print(table: object) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 140).print(table)
