"""`sparrow eval`: a model's score on a benchmark, and the paper's tables with the runs beside them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows import complete
from flows.extras import MODEL, require
from flows.text import say

app = typer.Typer(
    help="Score a model on a benchmark; show runs in the paper's tables.", no_args_is_help=True
)

BENCHMARKS = {
    "mevis": "MeViS: motion expressions (splits val_u, val).",
    "ref-ytvos": "Ref-YouTube-VOS (val).",
    "ref-davis17": "Ref-DAVIS17 (val).",
    "vidstg": "VidSTG: sentences and questions, boxes (test, val).",
    "videogcg": "VideoGCG: grounded captions (test).",
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
    app.command(
        _name,
        short_help=_help,
        epilog=f"Example: sparrow eval {_name} --data-root /data/{_name} --out runs/{_name} --size tiny --answer force",
    )(evaluate)


@app.command(epilog="Example: sparrow eval table runs --format markdown")
def table(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs, or folders of runs.", show_default=False)
    ],
    form: Annotated[
        Literal["text", "markdown", "csv", "json"], typer.Option("--format", help="Of the output.")
    ] = "text",
) -> None:
    """Tables 1-5 and 15 and Figure 5 of the paper, with the runs beside its numbers."""
    from model.evaluate import table as tables

    done = tables.read_runs(runs)
    found, notes = tables.tables(done), tables.legend(done)
    if form == "text":
        show_tables(found, notes)
    elif form == "markdown":
        say(tables.markdown(found, notes))
    elif form == "csv":
        say(tables.as_csv(found), end="")
    else:
        say(json.dumps({"numbers": tables.records(found), "runs": notes}, indent=2))


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
        scale = paper.get("scale", 100.0)
        low, high = results["intervals"].get(key, (None, None))
        bounds = "" if low is None else f"{low * scale:.3f} to {high * scale:.3f}"
        rows.append(
            [key, results["summary"][key] * scale, bounds, paper.get("host"), paper.get("sparrow")]
        )
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


def show_tables(found: Any, notes: list[str]) -> None:
    from flows.show import table as print_table

    for one in found:
        rows = [[row.method, row.source, *map(str, row.cells)] for row in one.rows]
        print_table(f"{one.name}: {one.title}", ["method", "source", *one.columns], rows)
    say(
        "\nIn brackets: 95 % bounds, videos drawn anew. Blank: not run, or lost with the paper's pictures of tables."
    )
    for note in notes:
        say(f"  {note}")
