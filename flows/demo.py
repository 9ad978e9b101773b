"""The demo: a synthetic corpus in seven official layouts, curated with the lite preset, scored against the truth."""

import json
from dataclasses import dataclass
from pathlib import Path

from flows import driver
from flows.executors import Executor
from flows.jobs import SOURCES, make_jobs
from flows.progress import Progress
from manifests.sheet import contact_sheet
from pipeline.corpora import Take
from pipeline.demo.corpus import write_corpus
from pipeline.demo.score import score
from pipeline.plan import Job
from pipeline.presets import CurateConfig, ShardConfig, configure
from schemas.files import write_whole

DEMO_TAKE = {"lasot": Take(source={"segments": 3, "seconds": 2.0, "fps": 30.0})}
"""The synthetic LaSOT sequences are short, so their segments are too."""


@dataclass(slots=True)
class Demo:
    runs: list[driver.Run]
    scores: list[dict]
    sheets: list[Path]


def demo_config() -> CurateConfig:
    """The lite preset with small shards, so that even a small corpus has several."""
    return configure("lite").model_copy(update={"shard": ShardConfig(max_referents=4)})


def demo_jobs(out: Path) -> list[Job]:
    """A job for each source and split of the corpus under `out`."""
    jobs = []
    for source in SOURCES:
        root = out / "corpus" / source
        jobs += make_jobs(
            source, root, out, demo_config(), synthetic=True, override=DEMO_TAKE.get(source, Take())
        )
    return jobs


def run_demo(
    out: Path, executor: Executor, progress: Progress, *, scale: int = 1, seed: int = 0
) -> Demo:
    """Render, curate, score, draw. Resumes whatever an interrupted demo in `out` has left to do."""
    corpus = out / "corpus"
    with progress.stage("render corpus", unit="videos") as tick:
        write_corpus(
            corpus,
            seed=seed,
            scale=scale,
            workers=executor.workers,
            progress=lambda done, total, note: tick.to(done),
        )
    try:
        runs = driver.run(demo_jobs(out), executor, progress)
    finally:
        executor.close()
    report = out / "report"
    report.mkdir(exist_ok=True)
    scores = score(out, corpus)
    write_whole(report / "score.json", json.dumps(scores, indent=2) + "\n")
    sheets = []
    with progress.stage("draw", unit="sheets", total=len(SOURCES) + 1) as tick:
        for source in (None, *SOURCES):
            sheet = report / f"{source or 'contact-sheet'}.png"
            if contact_sheet(out, sheet, source=source, rows=7 if source is None else 6):
                sheets.append(sheet)
            tick(1)
    return Demo(runs, scores, sheets[:1])
