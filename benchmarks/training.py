"""Training: how much of a step does the device wait for its data?

The step itself is simulated: it sleeps as long as a step of stage 1 takes at full size. The paper's 12 hours for 15,000
steps on eight A100 are 2.9 seconds (Appendix F.1, one sample per GPU). What comes before it is real: 720p clips in
shards, read and decoded by four workers, and made into what a full-size host sees. Compared are two places for the
second part: the main process, as it was once, and the workers, one batch ahead. Goal: below 2 % of the time.

Needs four idle cores to mean anything: on fewer the workers share them.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from benchmarks.loader import ALWAYS, FRAMES, corpus
from benchmarks.measure import Row, Setting
from model.data.collate import Preparation
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.train.ahead import one_ahead

STEP = 12 * 3600 / 15_000
"""Seconds of a step at full size."""
WORKERS, STEPS = 4, 6
HEIGHT, WIDTH = 720, 1280
HOSTS = ("videoglamm", "unipixel", "glus")


def run(setting: Setting) -> Iterator[Row]:
    step, frames = (0.05, 12) if setting.quick else (STEP, 60)
    size = (90, 160) if setting.quick else (HEIGHT, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        out, _ = corpus(Path(folder), 8, frames, *size)
        note = f"{size[1]}x{size[0]}, {WORKERS} workers, steps of {step:.2f} s simulated"
        for host in HOSTS:
            preparation = full_size(host, "tiny" if setting.quick else "full")
            before = share_waited(out, preparation, step, ahead=False)
            after = share_waited(out, preparation, step, ahead=True)
            yield Row(f"{host}: time waited, main process", before * 100, "%", note=note)
            yield Row(
                f"{host}: time waited, workers and one ahead",
                after * 100,
                "%",
                "main process",
                before / max(after, 1e-4),
                note=f"{note}; goal 2 %",
            )


def full_size(host: str, size: Literal["full", "tiny"]) -> Preparation:
    """The part of a host that needs no weights."""
    from model.config import configure
    from model.hosts import build
    from model.hosts.tokenizer import byte_tokenizer
    from model.sparrow import Sparrow

    built = build(host, size, "meta")
    built.tokenizer = byte_tokenizer([built.spec.seg_token, "[BOX]", "<|end|>"])
    sparrow = Sparrow(built, configure("paper"))
    return Preparation.of(sparrow)


def share_waited(out: Path, preparation: Preparation, step: float, *, ahead: bool) -> float:
    """Share of the time, after the first step, in which there is nothing to train on."""
    options = LoaderOptions(batch=1, frames=FRAMES, tsf=ALWAYS)
    prepare: Callable[[Any], Any] | None = preparation if ahead else None
    loader = Loader(Index.open(str(out)), options, workers=WORKERS, prepare=prepare)
    plain = (list(map(preparation, batch)) for batch in loader)
    with closing(one_ahead(loader) if ahead else plain) as batches:
        next(batches)
        waited, start = 0.0, time.perf_counter()
        for _ in range(STEPS):
            time.sleep(step)
            asked = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - asked
        return waited / (time.perf_counter() - start)
