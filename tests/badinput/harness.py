"""What becomes of a data root: every item planned and read as a run does, up to where tracking would begin.

Limits are part of the outcome: a case over its deadline, or one that opens a file outside its roots, has failed.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from PIL import Image

from flows.jobs import make_jobs
from pipeline.curate import DATA_ERRORS, _rescale, check_sizes
from pipeline.plan import Job, build_plan, plan_identity, read_plan
from pipeline.presets import configure
from pipeline.sample import encode_media, quarantine_row, rejected_row
from pipeline.sources.base import DataRoot
from pipeline.video import DecodeConfig, Decoded, decode
from schemas.records import Clip, Planned, Quarantined
from schemas.tables import to_table
from tests.badinput.corpora import SPLIT

DEADLINE = 20.0
"""Seconds that one case may take. A machine that is busy needs some; a hang needs all."""
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_watch: list[tuple[Path, Path, list[str]]] = []


class Late(BaseException):
    """The deadline has passed. No Exception: nothing in between may catch it."""


class Escaped(AssertionError):
    """A file outside the data root and the output was opened, or one outside the output written."""


def _audit(event: str, args: tuple) -> None:
    if event != "open" or not _watch or not isinstance(args[0], str | bytes):
        return
    (outside, out, found), (path, mode, flags) = _watch[0], args
    real = Path(os.path.realpath(os.fsdecode(path)))
    writes = flags & _WRITE if isinstance(flags, int) else any(c in mode or "" for c in "wax+")
    if real.is_relative_to(outside) or (
        writes and not real.is_relative_to(out) and str(real) != "/dev/null"
    ):
        found.append(str(real))


sys.addaudithook(_audit)


@contextmanager
def bounded(outside: Path, out: Path) -> Iterator[None]:
    """Within the deadline, and nothing opened under `outside` nor written outside `out`."""

    def late(*_: object) -> None:
        raise Late(f"not done after {DEADLINE} s")

    found: list[str] = []
    compiled, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        True,
    )  # of modules that a case is the first to import
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    _watch[:] = [(outside, out, found)]
    try:
        yield
    finally:
        _watch.clear()
        sys.dont_write_bytecode = compiled
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if found:
        raise Escaped(", ".join(found))


def job_for(
    source: str, root: Path, out: Path, *, follow_links: bool = False, **config: object
) -> Job:
    """The job of the split that has clips."""
    made = configure("lite").model_copy(
        update={"decode": DecodeConfig(max_bytes=256 << 20), **config}
    )
    return make_jobs(source, root, out, made, splits=[SPLIT], follow_links=follow_links)[0]


def check_pictures(root: DataRoot, clip: Clip, decoded: Decoded) -> None:
    """AssertionError unless the frames are the pictures asked for, by another way to read them: one forward decode by
    PyAV with the demuxer that it guesses, or Pillow."""
    wanted = list(clip.source_frames)
    if clip.media.kind == "video":
        pictures: list[np.ndarray] = []
        with av.open(str(root.file(clip.media.path))) as container:
            for frame in container.decode(container.streams.best("video")):
                pictures.append(frame.to_ndarray(format="rgb24"))
                if len(pictures) > wanted[-1]:
                    break
        expected = [pictures[t] for t in wanted]
    else:
        expected = []
        for t in wanted:
            with Image.open(root.file(clip.media.image(t))) as picture:
                size = decoded.frames.shape[2], decoded.frames.shape[1]
                expected.append(np.asarray(picture.convert("RGB").resize(size)))
    for t, frame, picture in zip(wanted, decoded.frames, expected, strict=True):
        difference = np.abs(frame.astype(int) - picture).mean()
        assert difference < 3, f"{clip.media.path}: frame {t} is another picture ({difference:.0f})"


def outcome(
    source: str, root: Path, out: Path, *, follow_links: bool = False
) -> tuple[str, list[dict]]:
    """("malformed_row ok", quarantine rows): the reason of every row, and `ok` for every referent that can be read.

    ("error", []) where the whole source cannot be planned; the message has to say which source or file.
    """
    try:
        job = job_for(source, root, out, follow_links=follow_links)
        plan_identity(job)
        build_plan(job)
    except (Quarantined, ValueError) as error:
        if type(error) not in (Quarantined, ValueError):
            raise
        message = str(error)
        assert source in message or any(path.name in message for path in root.rglob("*.*")), (
            f"of what? {message}"
        )
        return "error", []
    rows, good, reader = [], 0, job.load()
    for shard in read_plan(job, ""):
        for item in shard.items:
            if not isinstance(item, Planned):
                rows.append(rejected_row(item))
                continue
            try:
                if len(item.clip) == 0:
                    reader.annotate(job.root, item.clip, item.referents[0])
                decoded = decode(job.root, item.clip, job.config.decode)
                check_sizes(item.clip, decoded, reader)
                check_pictures(job.root, item.clip, decoded)
                encode_media(decoded, item.clip, job.config.media)
            except (Quarantined, *DATA_ERRORS) as error:
                rows += [
                    quarantine_row(job, error, item.clip.clip_id, r.referent_id)
                    for r in item.referents
                ]
                continue
            for referent in item.referents:
                try:
                    annotation = _rescale(reader.annotate(job.root, item.clip, referent), decoded)
                    assert len(annotation.known) == len(decoded.frames) > 0
                    assert annotation.visible.any()
                    good += 1
                except (Quarantined, *DATA_ERRORS) as error:
                    rows.append(quarantine_row(job, error, item.clip.clip_id, referent.referent_id))
    to_table("quarantine", [{**row, "shard": ""} for row in rows])  # they can be written
    words = sorted({row["reason"] for row in rows}) + (
        ["ok"] if good == 1 else [f"ok*{good}"] if good else []
    )
    return " ".join(words), rows
