"""Prefect flows. Prefect owns schedules, parameters and what people see; the driver owns the work.

`curate` is one flow with a deployment per source, `shards` the parent of all sources, and the demo is `curate/demo`.
Tasks are coarse (plan, run, verify, report): tens per run, never one per clip. Nothing here is cached by Prefect:
the manifest knows what is done.
"""

from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows import driver
from flows.executors import Executor, executor_for, make_executor
from flows.extras import require_networks
from flows.forecast import forecast
from flows.jobs import SourceName, make_jobs, sources_under, unknown_keys
from flows.run_page import RunPage, shorten_logs
from manifests.catalog import query
from manifests.quarantine import splits_of, tally
from manifests.sheet import contact_sheet
from manifests.verify import verify as verify_output
from pipeline.plan import Job
from pipeline.presets import PRESETS, CurateConfig
from schemas.records import Quarantined

ExecutorName = Literal["ray", "inline"]
LITE = PRESETS["lite"]


shorten_logs()


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_task(jobs: list[Job], replan: bool) -> list[dict]:
    """Save the plans (or find them saved) and say what they hold."""
    with RunPage() as page:
        planned = [forecast(job, driver.ensure_plan(job, page, replan=replan)) for job in jobs]
        if lost := unknown_keys(jobs):
            page.log.warning(lost)
    return planned


def _may_pass(_task: object, _run: object, state: Any) -> bool:
    """Try again what the machine spoiled; what the user has to mend fails at once."""
    return not isinstance(state.result(raise_on_failure=False), (ValueError, Quarantined))


@task(
    name="run",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=1,
    retry_delay_seconds=5,
    retry_condition_fn=_may_pass,
)
def run_task(jobs: list[Job], executor: Executor, replan: bool) -> list[dict]:
    """Curate and commit. Safe to retry: finished work is found finished."""
    with RunPage() as page:
        runs = driver.run(jobs, executor, page, replan=replan)
    return [
        {
            "job": r.job.name,
            "clips": r.clips_done,
            "resumed": r.clips_resumed,
            "shards": r.shards_done,
            "up to date": r.shards_skipped,
            "seconds": (driver.now() - r.started).total_seconds(),
        }
        for r in runs
    ]


@task(name="verify", cache_policy=NO_CACHE, persist_result=False)
def verify_task(out: Path) -> dict:
    """The fast check of the whole output. Other sources may be running beside this one: only ours must be whole."""
    return verify_output(out).as_dict()


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report_task(
    out: Path, source: str, planned: list[dict], ran: list[dict], checked: dict
) -> None:
    """A contact sheet under `report/`, and counts, funnel and throughput as an artifact on the run's page."""
    sheet = out / "report" / f"{source}.png"
    shown = contact_sheet(out, sheet, source=source)
    create_markdown_artifact(
        key=f"summary-{source.replace('_', '-')}",
        markdown=summary(out, source, planned, ran, checked, sheet if shown else None),
        description=f"What became of {source}",
    )


def summary(
    out: Path, source: str, planned: list[dict], ran: list[dict], checked: dict, sheet: Path | None
) -> str:
    """Markdown: plan, funnel, throughput, check."""
    funnel = query(
        out, f"SELECT split, stage, reason, referents FROM funnel WHERE source = '{source}'"
    )
    stages = query(
        out,
        f"SELECT stage, seconds, frames, frames_per_second FROM stage_seconds WHERE source = '{source}'",
    )
    events = query(out, f"SELECT event, note, clips FROM events WHERE source = '{source}'")
    lines = [
        f"# {source}",
        "",
        f"Output: `{out}`",
        "",
        "## Plan",
        *_markdown(planned, ("split", "clips", "referents", "qa", "shards", "quarantined")),
    ]
    lines += [
        "",
        "## Run",
        *_markdown(ran),
        "",
        "## Funnel (referents)",
        *_markdown(funnel),
        "",
        "## Time",
        *_markdown(stages),
    ]
    lines += [
        "",
        *(["## Events", *_markdown(events), ""] if events else []),
        "## Check",
        f"{checked['shards']} shards, {checked['samples']} samples, {len(checked['problems'])} problems",
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Contact sheet: `{sheet}`" if sheet else "No sample survived: see the funnel.",
        ]
    )


def _markdown(rows: list[dict], columns: tuple[str, ...] = ()) -> list[str]:
    if not rows:
        return ["none"]
    names = columns or tuple(rows[0])
    body = [
        "| "
        + " | ".join(f"{r[n]:.2f}" if isinstance(r[n], float) else str(r[n]) for n in names)
        + " |"
        for r in rows
    ]
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names), *body]


@flow(name="curate", log_prints=True, persist_result=False, validate_parameters=True)
def curate(
    source: SourceName,
    data_root: str,
    out: str,
    config: CurateConfig = LITE,
    splits: list[str] | None = None,
    corpus: Literal["all", "paper"] = "all",
    limit: int | None = None,
    workers: int = 2,
    executor: ExecutorName = "ray",
    follow_links: bool = False,
    replan: bool = False,
    exclude: str | None = None,
    max_dropped: float | None = None,
) -> dict:
    """Curate one source: official layout under `data_root` -> shards and manifests under `out`.

    limit: at most so many clips per split (a deterministic sample). replan: replace shards of another config.
    exclude: a file of referent or clip ids to leave out, one a line. max_dropped: the run fails, with all that was kept
    committed, if more than this share of the clips is dropped.
    """
    require_networks(config)
    jobs = make_jobs(
        source,
        data_root,
        out,
        config,
        splits=splits,
        corpus=corpus,
        limit=limit,
        follow_links=follow_links,
        exclude=exclude,
    )
    done = _stages(jobs, source, Path(jobs[0].out), executor_for(config, executor, workers), replan)
    _within_budget(Path(out), jobs, max_dropped)
    return done


def _within_budget(out: Path, jobs: list[Job], max_dropped: float | None) -> None:
    """Say how many clips were dropped and why. OverBudget turns the run red."""
    found = tally(out, [(job.source, job.split) for job in jobs])
    get_run_logger().info("%s: %s", jobs[0].source, found)
    found.judge(max_dropped, jobs[0].source)


def _stages(jobs: list[Job], source: str, out: Path, executor: Executor, replan: bool) -> dict:
    planned = plan_task(jobs, replan)
    try:
        ran = run_task(jobs, executor, replan)
    finally:
        executor.close()
    checked = verify_task(out)
    report_task(out, source, planned, ran, checked)
    return {
        "planned": planned,
        "ran": ran,
        "samples": checked["samples"],
        "problems": len(checked["problems"]),
    }


@flow(name="curate", log_prints=True, persist_result=False)
def demo(
    out: str = "outputs/demo",
    scale: int = 1,
    seed: int = 0,
    workers: int = 2,
    executor: ExecutorName = "ray",
) -> None:
    """The demo as a deployment: synthetic corpus, all seven sources, scores against exact truth."""
    from flows.demo import run_demo

    with RunPage() as page:
        done = run_demo(Path(out), make_executor(executor, workers), page, scale=scale, seed=seed)
    text = "\n".join(
        ["# SYNTHETIC corpus, scored against its exact truth", *_markdown(done.scores)]
    )
    create_markdown_artifact(key="summary-demo", markdown=text, description="Scores of the demo")


@flow(name="shards", log_prints=True, persist_result=False)
def shards(
    data_root: str,
    out: str,
    config: CurateConfig = LITE,
    corpus: Literal["all", "paper"] = "all",
    limit: int | None = None,
    workers: int = 2,
    executor: ExecutorName = "ray",
    replan: bool = False,
    exclude: str | None = None,
    max_dropped: float | None = None,
) -> dict:
    """All sources that have a folder under `data_root` (named as the sources are), one after the other on one Ray.

    max_dropped: as of `curate`, of each source; judged when all are done.
    """
    require_networks(config)
    found = sources_under(data_root)
    get_run_logger().info("sources: %s", ", ".join(found))
    engine = executor_for(config, executor, workers)
    try:
        engine.open()  # one Ray for all sources: the sub-flows join it
        done = {
            s: curate(
                source=s,
                data_root=f"{data_root}/{s}",
                out=out,
                config=config,
                corpus=corpus,
                limit=limit,
                workers=workers,
                executor=executor,
                replan=replan,
                exclude=exclude,
            )
            for s in found
        }
    finally:
        engine.close()
    for s in found:
        tally(Path(out), splits_of(Path(out), s)).judge(max_dropped, s)
    return done
