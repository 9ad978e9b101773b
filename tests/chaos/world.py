"""A small corpus, a run of it in a process that can be killed, and what must be the same afterwards."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import query
from pipeline.fused import Fused
from pipeline.plan import Job
from pipeline.presets import ShardConfig, configure
from pipeline.shards import load_staged
from schemas import tables
from schemas.video.stored import encode_mp4
from tests.made import moving_square

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["flows.driver", "cv2", "duckdb", "sklearn.cluster", "skimage.feature"])


def make_corpus(root: Path, clips: int, frames: int) -> Path:
    """HC-STVG v2 with `clips` videos, the last of which is missing."""
    (root / "anno_v2").mkdir(parents=True)
    (root / "part_1").mkdir()
    rows = {}
    for n in range(clips):
        name = f"{n}_video.mp4"
        pictures, boxes = moving_square(n, frames)
        if n < clips - 1:
            (root / "part_1" / name).write_bytes(encode_mp4(pictures, 10.0))
        rows[name] = {
            "bbox": boxes,
            "st_frame": 1,
            "st_time": 0.0,
            "ed_time": frames / 10,
            "img_num": frames,
            "img_size": [96, 160, 3],
            "English": f"The square number {n} moves to the right.",
            "Chinese": "",
        }
    (root / "anno_v2" / "train_v2.json").write_text(json.dumps(rows))
    return root


def make_job(root: Path, out: Path, referents: int) -> Job:
    """The corpus into `out`, so many referents to a shard."""
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=referents)})
    return make_jobs("hcstvg", root, out, config)[0]


def tree(out: Path) -> dict[str, bytes]:
    """Every byte that must be the same: all tars and parts but those that tell of one run (`tables.VOLATILE`)."""
    files = [*out.glob("*/*/shards/*"), *out.glob("manifests/*/*")]
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in files
        if p.parent.name not in tables.VOLATILE
    }


def differing(out: Path, whole: dict[str, bytes]) -> list[str]:
    """Names of files that are not as in `whole`, too many or missing."""
    mine = tree(out)
    return sorted(name for name in mine.keys() | whole.keys() if mine.get(name) != whole.get(name))


def counts(out: Path) -> dict[str, int]:
    """Rows of every table as the catalogue shows them. `runs` has one of each run; stages have theirs in timings."""
    wanted = [t for t in tables.TABLES if t != "runs"]
    [row] = query(out, "SELECT " + ", ".join(f"(SELECT count(*) FROM {t}) AS {t}" for t in wanted))
    return row


def leftovers(out: Path) -> list[str]:
    """What a kill must not leave behind once the run has been finished."""
    files = [p for place in ("plan", "manifests", ".staging") for p in (out / place).rglob("*")]
    return [str(p.relative_to(out)) for p in files if p.suffix == ".tmp" or ".staging" in p.parts]


# --- in the child --------------------------------------------------------------------------------------------------

STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def each_step(out: Path, seen: Callable[[int, str], None]) -> None:
    """Call `seen(n, what)` before every change of the disk under `out` that Python makes in this process, from now on.

    These are the fault points: the interpreter reports each rename, removal, new folder and file opened for writing
    (`sys.addaudithook`), so none is forgotten, and the product has no line for them. The run's own log is left out: it
    is written by a clock.
    """
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not writes and event not in STEPS:
            return
        path = str(args[0])
        if (
            event in ("os.remove", "os.rmdir") and args[1] != -1
        ):  # rmtree names entries relative to an open folder
            path = str(out / path)
        if not path.startswith(str(out)) or path.startswith(str(out / "runs")):
            return
        if event == "os.mkdir" and os.path.isdir(path):
            return
        seen(count, f"{event} {path[len(str(out)) :]}")
        count += 1

    sys.addaudithook(hook)


def remembered(cache: Path) -> None:
    """Curation gives what it gave before, from `cache`: what is tried here is what becomes of results, not vision."""
    Fused.load = lambda self: None  # type: ignore[method-assign]
    Fused.curate = lambda self, planned, job: load_staged(cache / f"{planned.clip.clip_id}.clip")  # type: ignore[method-assign]


def curate(job: Job, cache: Path | None, at: int | None, log: Path | None) -> None:
    """A run with the inline executor that is killed before step `at`; log: a line for every step, of a whole run."""
    if cache is not None:
        remembered(cache)
    driver.after_run = lambda *_, **__: (
        None
    )  # report and card are made anew by every run, and are of no use here

    def seen(n: int, what: str) -> None:
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if log is not None:
            lines.append(what)

    lines: list[str] = []
    each_step(Path(job.out), seen)
    driver.run([job], Inline(), Quiet())
    if log is not None:
        log.write_text("\n".join(lines))


def forked(target: Callable, *args: object, timeout: float = 120) -> int:
    """Exit code of `target(*args)` in a process of its own; minus the signal that ended it."""
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join(timeout)
    assert process.exitcode is not None, f"{target.__name__} hangs"
    return process.exitcode


def quick(cache: Path) -> None:
    """In a process where what becomes of results is tried: see `remembered`; no report and no card."""
    remembered(cache)
    driver.after_run = lambda *_, **__: None
