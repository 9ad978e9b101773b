"""`sparrow eval`: a model's score on a benchmark, and the paper's tables with the runs beside them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows import complete
from flows.extras import MODEL, require
from flows.text import say

if TYPE_CHECKING:
    from model.evaluate.table import PrintedTable

app = typer.Typer(
    help="Score a model on a benchmark; show runs in the paper's tables.", no_args_is_help=True
)

BENCHMARKS = {
    "mevis": "MeViS: motion expressions (splits val_u, val).",
    "ref-ytvos": "Ref-YouTube-VOS (val).",
    "ref-davis17": "Ref-DAVIS17 (val).",
    "vidstg": "VidSTG: sentences and questions, boxes (test, val).",
    "videogcg": "VideoGCG: grounded captions (test).",
    "regions": "Held-out curated shards: what is the region doing? (val, valid_u, test, train).",
}


def parse(sets: list[str]) -> dict[str, dict[str, Any]]:
    """`field=value` pairs -> changes of the model's config ("model"), of how it is asked ("asking", from
    asking.field) and of the benchmark ("options", from benchmark.field)."""
    from schemas.config import assignment

    found: dict[str, dict[str, Any]] = {"model": {}, "asking": {}, "options": {}}
    for pair in sets:
        name, value = assignment(pair)
        section, _, rest = name.partition(".")
        kind = {"asking": "asking", "benchmark": "options"}.get(section, "model")
        found[kind][name if kind == "model" else rest] = value
    return found


def evaluate(
    context: typer.Context,
    data_root: Annotated[
        Path, typer.Option("--data-root", help="The benchmark's folder, official layout.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command again goes on.")],
    host: Annotated[
        str,
        typer.Option(
            help="videoglamm, unipixel or glus.", autocompletion=complete.names(*complete.HOSTS)
        ),
    ] = "videoglamm",
    size: Annotated[
        Literal["full", "tiny"], typer.Option(help="tiny: made-up weights, to see it run.")
    ] = "full",
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Weights, in order (docs/checkpoints.md).")
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="paper, release, or host: without SPARROW.",
            autocompletion=complete.names(*complete.MODEL_PRESETS),
        ),
    ] = "paper",
    split: Annotated[
        str | None, typer.Option(help="Default: the first that the benchmark has.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="host: as the host's release asks; paper: one template.")
    ] = "host",
    answer: Annotated[
        Literal["generate", "force"], typer.Option(help="force the grounding tokens.")
    ] = "generate",
    tsf: Annotated[
        Literal["off", "full", "full-tiny"],
        typer.Option(
            help="Curation preset that finds the target for the prompt: TSF at inference (Table 4)."
        ),
    ] = "off",
    limit: Annotated[int | None, typer.Option(help="Only the first N videos.", min=1)] = None,
    workers: Annotated[
        int, typer.Option(help="Models at once, each on a GPU of its own.", min=1)
    ] = 1,
    executor: Annotated[
        str, typer.Option(help="inline or ray. Default: ray for more than one worker.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of everything random; decoding is greedy.")] = 0,
    archive: Annotated[
        Path | None, typer.Option(help="Also write a zip for the benchmark's server.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field: decode.prompts=seg, asking.merge=union, benchmark.scorer=expression.",
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Ask again where a query failed.")] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Allow links that leave the data root.")
    ] = False,
) -> None:
    """Score a model on this benchmark. Resumes; failures count as zero and are listed with their reasons."""
    from flows.evaluation import Request, run
    from flows.progress import Bars

    require(*MODEL)
    assert context.info_name is not None
    changes = parse(sets or [])
    if answer == "force":
        changes["asking"]["answer"] = "force"
    request = Request(  # workers may start in another folder
        benchmark=context.info_name,
        data_root=str(data_root.absolute()),
        out=str(out.absolute()),
        split=split,
        host=host,
        size=size,
        checkpoints=tuple(str(path.absolute()) for path in checkpoint or []),
        preset=preset,
        protocol=protocol,
        tsf=tsf,
        seed=seed,
        follow_links=follow_links,
        **changes,
    )
    results = run(
        request,
        limit=limit,
        workers=workers,
        executor=executor,
        retry=retry,
        archive=archive,
        progress=Bars(),
    )
    show(results, out, print)
    if archive is not None:
        say(f"  {archive}")
    if results["failed"] + results["unscored"] == results["queries"]:
        raise typer.Exit(3)


for _name, _help in BENCHMARKS.items():
    _data = f"/data/{_name} --answer force"
    if _name == "regions":  # its answers are words, and cannot be forced
        _data = "outputs/demo --split val"
    _example = f"sparrow eval {_name} --data-root {_data} --out runs/{_name} --size tiny"
    app.command(_name, short_help=_help, epilog=f"Example: {_example}")(evaluate)


Format = Annotated[
    Literal["text", "markdown", "csv", "json"], typer.Option("--format", help="Of the output.")
]


@app.command(epilog="Example: sparrow eval table runs --format markdown")
def table(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Runs of eval, and of train proposer --recall; or folders of runs.",
            show_default=False,
        ),
    ],
    form: Format = "text",
) -> None:
    """Tables 1-5, 9-12 and 15 and Figure 5 of the paper, with the runs beside its numbers.

    A run stands in the rows whose whole config it has (docs/tables.md). Runs that are in no row are listed.
    """
    from model.evaluate.finished import finished_runs
    from model.evaluate.formats import LEGEND
    from model.evaluate.table import legend, runs_in_no_row, tables

    done = finished_runs(runs)
    lost = runs_in_no_row(done)
    notes = [LEGEND, *legend(done), *map(str, lost)]
    if form == "json":
        print_numbers(tables(done), legend(done), in_no_row=[asdict(stray) for stray in lost])
    else:
        print_tables(tables(done), notes, form)


@app.command(epilog="Example: sparrow eval cost outputs/tsf runs/stage1 runs/stage2")
def cost(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Runs of train (proposer, stage1, stage2), and curated outputs.",
            show_default=False,
        ),
    ],
    form: Format = "text",
) -> None:
    """Tables 13 and 14 of the paper: GPU-hours of curation and training, from the runs' own timings.

    Hours of a CPU are listed with the device, and are not GPU-hours.
    """
    from flows.cost import read_costs, tables_of_cost

    found = tables_of_cost(read_costs(runs))
    if form == "json":
        print_numbers(found, [])
    else:
        print_tables(found, ["CPU: hours of a CPU, which are no GPU-hours."], form)


@app.command(epilog="Example: sparrow eval rows --format markdown")
def rows(
    form: Annotated[
        Literal["text", "markdown"], typer.Option("--format", help="Of the output.")
    ] = "text",
) -> None:
    """Every row of the paper's tables: the config that makes it, and the paper's numbers."""
    from flows.show import table as print_table
    from model.tables.listing import COLUMNS, listing, listing_markdown

    if form == "markdown":
        say(listing_markdown(listing()))
        return
    for name, lines in listing().items():
        print_table(name, list(COLUMNS), [list(line) for line in lines])


def show(results: dict[str, Any], out: Path, tell: Callable[[str], None]) -> None:
    """The headline beside the paper's numbers, caveats, failures, files."""
    from flows.show import table as print_table
    from model.evaluate.results import caveats

    rows: list[list[object]] = []
    for key in [
        *results["headline"],
        *(key for key in results["summary"] if key not in results["headline"]),
    ]:
        if key not in results["summary"]:
            continue
        paper = results["paper"].get(key, {})
        sparrow = paper.get("sparrow")
        if paper.get("reported"):
            sparrow = f"~{sparrow}"
        scale = paper.get("scale", 100.0)
        low, high = results["intervals"].get(key, (None, None))
        bounds = "" if low is None else f"{low * scale:.3f} to {high * scale:.3f}"
        rows.append([key, results["summary"][key] * scale, bounds, paper.get("host"), sparrow])
    if rows:
        title = f"{results['benchmark']} {results['split']}: {results['host']}, preset {results['preset']}, "
        columns = [
            "",
            "ours",
            "95 % (videos drawn)",
            f"paper: {results['host']}",
            "paper: + SPARROW",
        ]
        print_table(
            title + f"protocol {results['protocol']}",
            columns,
            rows,
            caption="  ".join(f"{key}: {value}" for key, value in results["scoring"].items()),
        )
    for words in caveats(results):
        tell(f"  - {words}")
    for failure in results["failures"][:10]:
        tell(f"    {failure['video']}/{failure['query']}: {failure['error']}")
    if len(results["failures"]) > 10:
        tell(f"    and {len(results['failures']) - 10} more, in results.json")
    for name in ("results.json", "per_query.parquet", "parts", "timings.csv"):
        tell(f"  {out / name}")


def print_tables(found: "Sequence[PrintedTable]", notes: list[str], form: str) -> None:
    """Tables as text, Markdown or CSV; notes go below."""
    from flows.show import table as print_table
    from model.evaluate.formats import as_csv, markdown

    if form == "markdown":
        say(markdown(found, notes))
        return
    if form == "csv":
        say(as_csv(found), end="")
        return
    for one in found:
        lines: list[list[object]] = [
            [row.method, row.source, *map(str, row.cells)] for row in one.rows
        ]
        print_table(f"{one.name}: {one.title}", ["method", "source", *one.columns], lines)
    say("")
    for note in notes:
        say(f"  {note}")


def print_numbers(found: "Sequence[PrintedTable]", notes: list[str], **more: Any) -> None:
    """Tables as JSON: a record per number, what the runs are, and `more`."""
    from model.evaluate.formats import records

    say(json.dumps({"numbers": records(found), "runs": notes, **more}, indent=2))
