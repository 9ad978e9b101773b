"""`sparrow`: every verb of the project. Heavy imports are inside the verbs, so that `--help` answers at once."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from flows import (
    complete,
    evaluate,
    export,
    model,
    publish,
    quarantine,
    repair,
    report,
    reshard,
    sql,
    stats,
    verify,
    weights,
)
from flows.extras import TRAINING, MissingPackage, missing_package, require, require_networks
from flows.text import say

app = typer.Typer(
    name="sparrow",
    help="Curate referring-video datasets into Target-Specific Feature (TSF) shards and manifests.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)]
Root = Annotated[
    Path,
    typer.Option("--data-root", help="The dataset's folder, official layout (docs/datasets/)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Workers = Annotated[int, typer.Option(help="Worker processes.", min=1)]
Executor = Annotated[
    str,
    typer.Option(
        help="ray, or inline: everything in this process (debugging).",
        autocompletion=complete.names(*complete.EXECUTORS),
    ),
]
Preset = Annotated[
    str, typer.Option(help="Preset.", autocompletion=complete.names(*complete.PRESETS))
]
ModelPreset = Annotated[
    str,
    typer.Option(
        help="paper, release, or host: without SPARROW.",
        autocompletion=complete.names(*complete.MODEL_PRESETS),
    ),
]
Host = Annotated[
    str,
    typer.Option(
        help="videoglamm, unipixel or glus.", autocompletion=complete.names(*complete.HOSTS)
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a config field, e.g. --set media.media=none."),
]
SourceSets = Annotated[
    list[str] | None,
    typer.Option("--source-set", help="Replace a field of the source's config: rules.min_iou=0.4."),
]
Splits = Annotated[
    list[str] | None,
    typer.Option("--split", help="Only this split (repeatable). Default: all there."),
]
Corpus = Annotated[
    Literal["all", "paper"],
    typer.Option(help="How much to take: all, or paper (the paper's counts)."),
]
Limit = Annotated[
    int | None, typer.Option(help="At most N clips of each split: a deterministic sample.", min=1)
]
Replan = Annotated[
    bool, typer.Option("--replan", help="Replace shards made with another plan or config.")
]
Exclude = Annotated[
    Path | None,
    typer.Option(help="Leave these out: a file with a referent or clip id a line, # comments."),
]
Links = Annotated[
    bool, typer.Option("--follow-links", help="Allow links that leave the data root.")
]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("sparrow-tsf")
    except PackageNotFoundError:
        found = "of unknown version: this checkout is not installed"
    say(f"sparrow-tsf {found}")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command(epilog="Example: sparrow demo --out outputs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("outputs/demo"),
    workers: Workers = 2,
    scale: Annotated[int, typer.Option(help="Make the corpus N times larger.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic corpus.")] = 0,
    executor: Executor = "ray",
) -> None:
    """Run the whole pipeline on a synthetic corpus: seven datasets, no weights, no GPU, about a minute."""
    from flows.demo import run_demo
    from flows.executors import make_executor
    from flows.progress import Bars
    from flows.show import show_run, show_scores

    done = run_demo(out, make_executor(executor, workers), Bars(), scale=scale, seed=seed)
    show_run(out, done.runs)
    show_scores(done.scores)
    _where(out, done.sheets)


@app.command(epilog="Example: sparrow plan lasot --data-root /data/LaSOT")
def plan(
    source: Annotated[
        str,
        typer.Argument(
            help="A source, or all: every folder of DATA_ROOT that is named as one.",
            autocompletion=complete.names(*complete.SOURCES, "all"),
        ),
    ],
    data_root: Root,
    preset: Preset = "lite",
    split: Splits = None,
    corpus: Corpus = "all",
    limit: Limit = None,
    sets: Sets = None,
    source_sets: SourceSets = None,
    workers: Workers = 2,
    follow_links: Links = False,
    as_json: Json = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="Print the resolved config and stop.")
    ] = False,
) -> None:
    """Say what a run would do: clips, referents, shards, bytes, time, and what it will skip and why. Writes nothing."""
    from flows.forecast import Forecast, plan_advice, settle_counts
    from flows.jobs import SOURCES, beside_paper, make_jobs, normal, totals
    from flows.progress import Bars, Quiet
    from pipeline.corpora import take
    from pipeline.plan import build_plan, configured_source
    from pipeline.presets import configure, override

    config = configure(preset, sets)
    if show_config:
        own = configured_source(normal(source), take(corpus, normal(source))).config
        chosen = override(own.model_dump(mode="json"), source_sets or [])
        own = type(own).model_validate(chosen)
        say(
            json.dumps(
                {"config": config.model_dump(mode="json"), "source": own.model_dump(mode="json")},
                indent=2,
            )
        )
        return
    places = (
        {s: data_root / s for s in SOURCES if (data_root / s).is_dir()}
        if source == "all"
        else {source: data_root}
    )
    if not places:
        raise ValueError(f"{data_root} has none of the folders {', '.join(SOURCES)}")
    jobs = [
        job
        for name, place in places.items()
        for job in make_jobs(
            name,
            place,
            "outputs",
            config,
            splits=split,
            corpus=corpus,
            limit=limit,
            follow_links=follow_links,
            source_sets=source_sets,
        )
    ]
    rows = []
    progress = Quiet() if as_json else Bars()
    for job in jobs:
        with progress.stage(f"plan {job.name}", unit="clips") as tick:
            looking = Forecast(job)
            counts = build_plan(job, tick=tick.to, watch=looking.see, save=False)
            tick.to(counts.clips)
        rows.append(looking.row(counts, workers))
    settle_counts(rows)
    if as_json:
        name = "all" if source == "all" else jobs[0].source
        say(
            json.dumps(
                {"source": name, **totals(rows), "splits": rows, "paper": beside_paper(rows)},
                indent=2,
            )
        )
    else:
        from flows.show import show_plan

        show_plan(rows)
        for line in plan_advice(jobs, rows):
            say(f"try: {line}")


@app.command(
    epilog="Example: sparrow curate hcstvg --data-root /data/HC-STVG --out outputs/tsf --preset lite --limit 20"
)
def curate(
    source: Annotated[
        str,
        typer.Argument(
            help="hcstvg, vid_sentence, a2d, lasot, mevis, got10k or refsav.",
            autocompletion=complete.names(*complete.SOURCES),
        ),
    ],
    data_root: Root,
    out: Annotated[Path, typer.Option(help="Output folder; may hold other sources already.")],
    preset: Preset = "lite",
    limit: Limit = None,
    workers: Workers = 2,
    executor: Executor = "ray",
    split: Splits = None,
    corpus: Corpus = "all",
    sets: Sets = None,
    source_sets: SourceSets = None,
    follow_links: Links = False,
    replan: Replan = False,
    exclude: Exclude = None,
    max_dropped: quarantine.MaxDropped = None,
    deadline: Annotated[float, typer.Option(help="Seconds that one clip may take.")] = 1800.0,
    in_flight: Annotated[
        int, typer.Option(help="Clips at once in each worker; 0: 96 on a GPU, else 1.", min=0)
    ] = 0,
) -> None:
    """Curate one source into shards and manifests. Run it again to resume; finished work is skipped."""
    from flows import driver
    from flows.executors import executor_for
    from flows.jobs import make_jobs, unknown_keys
    from flows.progress import Bars
    from flows.show import show_run
    from manifests.sheet import contact_sheet
    from pipeline.presets import configure

    config = configure(preset, sets)
    require_networks(config)
    jobs = make_jobs(
        source,
        data_root,
        out,
        config,
        splits=split,
        corpus=corpus,
        limit=limit,
        follow_links=follow_links,
        source_sets=source_sets,
        exclude=exclude,
    )
    engine = executor_for(config, executor, workers, deadline, in_flight)
    try:
        runs = driver.run(jobs, engine, Bars(), replan=replan)
    finally:
        engine.close()
    sheet = out / "report" / f"{jobs[0].source}.png"
    samples = contact_sheet(out, sheet, source=jobs[0].source)
    show_run(out, runs)
    dropped = quarantine.show_tally(out, jobs)
    if lost := unknown_keys(jobs):
        say(f"warning: {lost}", file=sys.stderr)
    _where(out, [sheet] if samples else [])
    if not samples:
        raise typer.Exit(3)
    dropped.judge(max_dropped, jobs[0].source)


@app.command(epilog="Example: sparrow shards --data-root /data --out outputs/tsf")
def shards(
    data_root: Annotated[
        Path, typer.Option("--data-root", help="Folder with one folder per source.")
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")],
    preset: Preset = "lite",
    corpus: Corpus = "all",
    limit: Limit = None,
    workers: Workers = 2,
    replan: Replan = False,
    exclude: Exclude = None,
    max_dropped: quarantine.MaxDropped = None,
) -> None:
    """Curate every source under a folder through the parent Prefect flow (DATA/hcstvg, DATA/lasot, ...)."""
    from flows.shards import Request, run_shards
    from pipeline.presets import configure

    config = configure(preset)
    require_networks(config)
    request = Request(data_root, out, config, corpus, limit, workers, replan, exclude, max_dropped)
    run_shards(request)
    _where(out, sorted((out / "report").glob("*.png")))


@app.command(epilog="Example: sparrow status outputs/demo")
def status(
    out: Out,
    as_json: Json = False,
    live: Annotated[
        bool, typer.Option("--follow", "-f", help="Watch the live runs until they end.")
    ] = False,
) -> None:
    """How far each source of an output is: planned, staged, committed, quarantined. Works beside a live run."""
    if live:
        from flows.follow import follow

        follow(out, as_json=as_json)
        return
    from flows.show import show_status, status_rows

    rows = status_rows(out)
    say(json.dumps(rows, indent=2)) if as_json else show_status(rows)


@app.command(epilog="Example: sparrow browse outputs/demo")
def browse(
    out: Out,
    port: Annotated[int, typer.Option(help="Port; 0: any free one.", min=0, max=65535)] = 8787,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this let your network look in.")
    ] = ("127.0.0.1"),
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a web browser.")] = False,
    flags: Annotated[
        Path | None, typer.Option(help="File of flagged samples. Default: in ~/.local/share.")
    ] = None,
) -> None:
    """Look at samples in a web browser: video with boxes and masks, filters, SQL. Never writes to the output."""
    from flows.browse.server import serve

    serve(out, host, port, flags, open_browser=not no_open)


@app.command(
    epilog='Example: sparrow ground clip.mp4 "the dog that jumps" --size tiny --answer force'
)
def ground(
    video: Annotated[
        Path, typer.Argument(help="A video, or a folder of pictures.", show_default=False)
    ],
    phrases: Annotated[
        list[str], typer.Argument(help="What to find; each phrase on its own.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("outputs/ground"),
    host: Host = "videoglamm",
    size: Annotated[
        Literal["full", "tiny"], typer.Option(help="tiny: random weights, to see it run.")
    ] = "full",
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Weights, in order (docs/checkpoints.md).")
    ] = None,
    preset: ModelPreset = "paper",
    prompt_frame: Annotated[
        list[int] | None, typer.Option(help="Prompt here (repeatable). Default: 0.")
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Only so many frames from the start.", min=1)
    ] = None,
    answer: Annotated[
        Literal["generate", "force"], typer.Option(help="force the grounding tokens.")
    ] = "generate",
    png: Annotated[
        bool, typer.Option("--png", help="Masks as PNG too, a folder per instance.")
    ] = False,
    tsf: Annotated[
        Literal["off", "on", "auto"], typer.Option(help="TSF at inference; auto: by Table 8.")
    ] = "off",
    tsf_preset: Annotated[
        Literal["full", "full-tiny", "lite"] | None,
        typer.Option(help="lite needs --box. Default: as --size."),
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="The target: x1,y1,x2,y2, one per phrase; for --tsf.")
    ] = None,
    timing: Annotated[
        bool, typer.Option("--timing", help="What TSF costs, beside Table 7.")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Then ask on: FRAME: PHRASE, q quits.")
    ] = False,
) -> None:
    """Masks of what words refer to in a video of any length: COCO RLE, boxes, an overlay mp4 (docs/grounding.md)."""
    from pydantic import ValidationError

    from flows import ground as grounding

    try:
        request = grounding.Request(
            video=video,
            phrases=tuple(phrases),
            out=out,
            host=host,
            size=size,
            preset=preset,
            checkpoints=tuple(checkpoint or []),
            prompt_frames=tuple(prompt_frame or [0]),
            max_frames=max_frames,
            answer=answer,
            png=png,
            tsf=tsf,
            tsf_preset=tsf_preset,
            boxes=tuple(map(grounding.parse_box, box or [])),
            timing=timing,
            interactive=interactive,
        )
    except ValidationError as error:
        raise ValueError(
            f"sparrow ground: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
        ) from error
    grounding.run(request)


@app.command(
    epilog="Example: sparrow train stage1 --data outputs/demo --out runs/stage1 --size tiny --steps 200"
)
def train(
    what: Annotated[
        Literal["proposer", "stage1", "stage2", "check"],
        typer.Argument(help="What to train; check: which samples the host cannot take."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Curated output, s3:// too; proposer: or a folder of detection datasets."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; the same one again goes on.")
    ] = None,
    host: Host = "videoglamm",
    size: Annotated[Literal["full", "tiny"], typer.Option(help="tiny: made-up weights.")] = "full",
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="Weights, in order (docs/checkpoints.md).")
    ] = None,
    preset: ModelPreset = "paper",
    start: Annotated[
        str, typer.Option("--from", help="Export to begin with; stage2: stage 1's.")
    ] = "",
    resume: Annotated[
        Literal["newest", "last-good"],
        typer.Option(
            help="The newest state; last-good: the newest one that is not damaged and did not diverge."
        ),
    ] = "newest",
    steps: Annotated[int | None, typer.Option(help="Default: the release's.", min=1)] = None,
    frames: Annotated[int, typer.Option(help="Mask frames of a sample.", min=1)] = 8,
    workers: Annotated[int, typer.Option(help="Processes that read and decode.", min=0)] = 2,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field: --set tsf.path=none, --set train.lr=1e-4."),
    ] = None,
    max_missing: Annotated[
        float, typer.Option(help="proposer: share of images that may be missing.", min=0, max=1)
    ] = 0.05,
    official: Annotated[
        bool, typer.Option("--official", help="Also export in the published layout.")
    ] = False,
    ray: Annotated[
        int, typer.Option(help="So many processes by Ray Train; 0: this one, or torchrun's.", min=0)
    ] = 0,
    recall: Annotated[
        bool,
        typer.Option(
            "--recall",
            help="proposer: measure the trained one on the validation data (Table 12), into recall.json.",
        ),
    ] = False,
) -> None:
    """Train SPARROW from shards: the proposer, stage 1 (TSF injection), stage 2 (dual prompt). Resumes by itself."""
    from flows import train as training

    # Object stores are first opened when the model is there, which takes minutes at full size.
    is_in_s3 = data.startswith(("s3://", "s3a://"))
    require(*TRAINING, *(["s3fs"] if is_in_s3 else []))
    changes, options = training.parse(sets or [])
    if out is None and what != "check":
        raise typer.BadParameter("--out is missing: the folder of the run")
    request = training.Request(
        what="stage1" if what == "check" else what,
        data=data,
        out=str(out or ""),
        host=host,
        size=size,
        checkpoints=tuple(map(str, checkpoint or [])),
        preset=preset,
        changes=changes,
        train=options | ({} if steps is None else {"steps": steps}),
        start=start,
        resume=resume,
        frames=frames,
        workers=workers,
        max_missing=max_missing,
        official=official,
    )
    if what == "check":
        from flows.train_check import check

        check(request, say)
    elif recall:
        from flows.recall import measure_recall

        if what != "proposer":
            raise ValueError(f"--recall measures the proposer, not {what}: train proposer --recall")
        say(f"  {measure_recall(request)}")
    elif ray:
        training.with_ray(request, ray)
    elif code := training.run(request):
        raise typer.Exit(code)


@app.command(epilog="Example: sparrow study --scale cpu --out outputs/study")
def study(
    out: Annotated[
        Path, typer.Option(help="Output folder; a study that was stopped goes on.")
    ] = Path("outputs/study"),
    scale: Annotated[Literal["cpu", "gpu"], typer.Option(help="How large.")] = "cpu",
    host: Host = "videoglamm",
    workers: Annotated[
        int, typer.Option(help="Models trained at once; on a CPU, cores.", min=1)
    ] = 2,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a field of the scale: seeds=3.")
    ] = None,
) -> None:
    """Does SPARROW help? Train small models from nothing on made-up video, and fill the paper's ablation tables."""
    from flows.progress import Bars

    require(*TRAINING)
    from flows.study import configure, run_study

    written, failed = run_study(configure(scale, host, sets or []), out, workers, Bars())
    for path in written:
        typer.echo(f"  {path}")
    if failed:
        raise ValueError(f"{len(failed)} models of the study failed, the first: {failed[0]}")


app.add_typer(weights.app, name="weights")
app.add_typer(model.app, name="model")
app.add_typer(evaluate.app, name="eval")
export.register(app)
verify.register(app)
sql.register(app)
app.add_typer(quarantine.app, name="quarantine")
repair.register(app)
reshard.register(app)
publish.register(app)
report.register(app)
stats.register(app)


@app.command(epilog="Example: sparrow doctor")
def doctor(
    out: Annotated[Path, typer.Argument(help="Folder for output, whose disk is looked at.")] = Path(
        "outputs"
    ),
    as_json: Json = False,
) -> None:
    """What this machine can do, what is missing, and the command that mends it. Exits 1 only if the basics fail."""
    from dataclasses import asdict

    from flows.doctor import abilities, examine
    from flows.show import show_doctor, show_json

    checks = examine(out)
    if as_json:
        show_json({"lacks": abilities(checks), "checks": [asdict(check) for check in checks]})
    else:
        show_doctor(checks)
    if any(check.state == "missing" for check in checks):
        raise typer.Exit(1)


@app.command(epilog="Example: sparrow bench tracker --quick")
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="tracker, models, pipeline, memory, decode, model, loader, eval, browse, scale. All."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cuda, cuda:1 or cpu. Default: cuda if there is one.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small models: figures that mean nothing.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Write the figures as JSON.")] = Path(
        "outputs/bench.json"
    ),
) -> None:
    """Measure the models and the pipeline, each beside a baseline of the same run. Random weights; none are needed."""
    from benchmarks.__main__ import run

    run(names or [], device=device, quick=quick, out=out, show=lambda line: say(line, flush=True))


def _where(out: Path, pictures: list[Path]) -> None:
    say(
        f'\nshards and manifests: {out}\nask them:             sparrow sql {out} "SELECT * FROM funnel"'
    )
    say(f"look at:              {out / 'report' / 'index.html'}")
    for picture in pictures:
        say(f"                      {picture}")
    say(f"or at single clips:   sparrow browse {out}")


def main() -> None:
    """Run the app; what a user can mend is one clear message, not a traceback."""
    import signal

    _open_streams()

    stopped: list[object] = []

    def stop(*signal_and_frame: object) -> None:
        stopped.append(signal_and_frame)
        raise KeyboardInterrupt

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # also where a shell started us in the background, SIGINT ignored
        signal.signal(number, stop)
    try:
        _be_somewhere()
        app(standalone_mode=True)
    except SystemExit as done:
        if done.code == 130 and stopped:  # a training says itself what it has saved
            say(
                "\nstopped; what is finished is kept, run the same command again to resume",
                file=sys.stderr,
            )
        raise
    except Exception as error:
        message = missing_package(error) or error
        if not _is_for_the_user(message):
            raise
        if isinstance(message, OSError):
            from flows.locks import explain_write_error

            message = explain_write_error(message)
        _fail(message)


def _open_streams() -> None:
    """Reopen closed standard streams to nothing: else the next files would get their numbers."""
    import os

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _be_somewhere() -> None:
    """Ray, Prefect and relative paths need a working folder."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FileNotFoundError(
            "the working folder is no longer there: change to one that is, and run the command again"
        ) from None


def _is_for_the_user(error: Exception) -> bool:
    """Whether the message says all that a user needs. Anything else is a bug, and keeps its traceback."""
    if isinstance(error, (ValueError, OSError, RuntimeError, MissingPackage)):
        return True
    # By name, since help should import neither: a mistake in somebody's SQL, a source that cannot be planned.
    package = type(error).__module__.split(".")[0]
    return package in ("duckdb", "_duckdb") or type(error).__name__ == "Quarantined"


def _fail(error: Exception) -> NoReturn:
    say(f"error: {error}", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
