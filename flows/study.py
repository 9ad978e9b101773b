"""`sparrow study`: bases, then every model of the grid, a process each; then the report."""

import json
import os
import threading
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from model.study.config import SCALES, StudyConfig
from model.study.grid import trainings_of
from schemas.config import assignment
from schemas.files import write_whole


def configure(scale: str, host: str, sets: list[str]) -> StudyConfig:
    """A scale with fields replaced: `field=value`. ValueError for what does not exist or fit."""
    if scale not in SCALES:
        raise ValueError(f"--scale {scale} is not known: one of {', '.join(SCALES)}")
    changes: dict[str, Any] = {"host": host}
    for pair in sets:
        name, value = assignment(pair)
        if name not in StudyConfig.model_fields:
            raise ValueError(
                f"--set {pair}: no such field; there are {', '.join(StudyConfig.model_fields)}"
            )
        changes[name] = tuple(value.split(",")) if name == "tables" else value
    return StudyConfig.model_validate(SCALES[scale].model_dump() | changes)


def run_study(
    config: StudyConfig, out: Path, workers: int, progress: Any
) -> tuple[list[Path], list[str]]:
    """The whole study in `out`; what is done already is not done again. Returns the files of the report, and what
    failed (the rest is in the report all the same). ValueError if `out` holds another study."""
    from model.study.report import write_report

    out.mkdir(parents=True, exist_ok=True)
    _same(config, out / "study.json")
    failed: list[str] = []
    clock = _Clock(out / "minutes.json")
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_quiet) as pool,
        clock,
    ):
        plain = config.model_dump()
        bases = [(plain, base, str(out)) for base in range(config.bases)]
        with progress.stage("hosts from nothing", unit="hosts", total=len(bases)) as tick:
            _finish({pool.submit(_base, *job): f"base {job[1]}" for job in bases}, failed, tick)
        whole = [
            base for base in range(config.bases) if (out / f"base-{base}" / "score.json").is_file()
        ]
        cells = [
            (plain, base, seed, name, str(out))
            for seed in range(config.seeds)
            for base in whole
            for name in trainings_of(config)
        ]
        with progress.stage("stages 1 and 2, scores", unit="models", total=len(cells)) as tick:
            jobs = {
                pool.submit(_cell, *job): f"base {job[1]} seed {job[2]} {job[3]}" for job in cells
            }
            _finish(jobs, failed, tick)
    done = [(base, seed) for base in whole for seed in range(config.seeds)]
    runs = {
        name: [
            json.loads(path.read_text())
            for b, s in done
            if (path := cell_file(out, b, s, name)).is_file()
        ]
        for name in trainings_of(config)
    }
    if not whole:
        return [], failed
    scores = [json.loads((out / f"base-{base}" / "score.json").read_text()) for base in whole]
    return write_report(out, config, runs, scores, clock.minutes), failed


def cell_file(out: Path, base: int, seed: int, training: str) -> Path:
    return out / "cells" / f"{base}-{seed}-{training.replace(', ', '-').replace(' ', '-')}.json"


def _base(plain: dict[str, Any], base: int, out: str) -> None:
    from model.study.base import make_base
    from model.study.run import run_base_score
    from trackers.runtime import device

    config, folder = StudyConfig.model_validate(plain), Path(out) / f"base-{base}"
    if not (folder / "base.safetensors").is_file():
        make_base(config, base, folder, device(), _nothing)
    if not (folder / "score.json").is_file():
        run_base_score(config, base, folder, folder / "score.json", device())


def _cell(plain: dict[str, Any], base: int, seed: int, training: str, out: str) -> None:
    from model.study.run import run_cell
    from trackers.runtime import device

    file = cell_file(Path(out), base, seed, training)
    if not file.is_file():
        run = Path(out) / "runs" / file.stem
        run_cell(
            StudyConfig.model_validate(plain),
            base,
            seed,
            training,
            Path(out) / f"base-{base}",
            run,
            file,
            device(),
        )


def _quiet() -> None:
    """A worker computes on one thread: the models are too small for more, and there is a worker per core. It ends with
    the process that started it, however that ends."""
    import warnings

    import torch

    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    warnings.filterwarnings("ignore", category=UserWarning)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _finish(jobs: dict[Future, str], failed: list[str], tick: Any) -> None:
    for job in as_completed(jobs):
        error = job.exception()
        if error is not None:
            last = traceback.format_exception_only(error)[-1].strip()
            failed.append(f"{jobs[job]}: {last}")
        tick(1, jobs[job])


def _same(config: StudyConfig, file: Path) -> None:
    if file.is_file():
        before = json.loads(file.read_text())
        if different := [
            name
            for name, value in config.model_dump(mode="json").items()
            if before.get(name) != value
        ]:
            raise ValueError(
                f"{file.parent} holds a study with other settings ({', '.join(different)}): choose another --out, or "
                "give the same settings to go on with it"
            )
    write_whole(file, json.dumps(config.model_dump(mode="json"), indent=2) + "\n")


class _Clock:
    """Minutes of all sittings together."""

    def __init__(self, file: Path):
        self.file = file
        self.minutes = json.loads(file.read_text()) if file.is_file() else 0.0

    def __enter__(self) -> "_Clock":
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.minutes += (time.monotonic() - self._start) / 60
        write_whole(self.file, json.dumps(self.minutes))


def _nothing(_: str) -> None:
    pass
