"""Decode: the readers of `schemas.video` against decord and bare PyAV, on one h264 film of 640 x 360.

Three uses: a whole video in order (curation), eight pictures of a stored clip (training), and a video read backwards
(grounding with a prompt at the end). Every reader gives the same pictures; decord is named where its pictures are
proved right (`schemas.video.decord_reader`).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.measure import Row, Setting, moving_clip, seconds
from schemas.video.file import VideoFile
from schemas.video.stored import encode_mp4, stored_pictures

CPU = torch.device("cpu")
DrawnPictures = Callable[[str, Sequence[int]], None]
"""Reads these pictures of a file and keeps none."""


def run(setting: Setting) -> Iterator[Row]:
    n = 60 if setting.quick else 300
    rng = np.random.default_rng(0)
    eight = sorted(rng.choice(n, 8, replace=False).tolist())
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(encode_mp4(moving_clip(n), 30.0, gop=12))
        film = Path(folder) / "film.mp4"
        film.write_bytes(encode_mp4(moving_clip(n), 30.0, gop=250))
        yield from _compare(
            "a whole video in order, first reading",
            film,
            range(n),
            {"bare PyAV": _bare_pyav, "curation": _first_reading, "decord": _decord},
        )
        yield from _compare(
            "8 pictures of a stored clip",
            clip,
            eight,
            {"decord": _decord, "the loader": _stored, "by number, indexed": _indexed},
        )
        yield from _compare(
            "a stored clip backwards",
            clip,
            range(n - 1, -1, -1),
            {"decord": _decord, "grounding": _backwards},
        )


def _compare(
    use: str, path: Path, wanted: Sequence[int], readers: dict[str, DrawnPictures]
) -> Iterator[Row]:
    """A row for each reader; ratios are to the first one, measured in turns."""
    rates: dict[str, float] = {}
    for name, read in readers.items():
        read(str(path), wanted)
        took = seconds(partial(read, str(path), wanted), CPU, repeat=5)
        rates[name] = len(wanted) / took
    baseline = next(iter(readers))
    for name, rate in rates.items():
        compared = name != baseline
        yield Row(
            f"{name}: {use}",
            rate,
            "frames/s",
            baseline if compared else "",
            rate / rates[baseline] if compared else None,
            note=f"640x360 h264, {len(wanted)} pictures, one thread",
        )


def _bare_pyav(path: str, wanted: Sequence[int]) -> None:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")


def _first_reading(path: str, wanted: Sequence[int]) -> None:
    """From bytes, of which no index is kept."""
    with VideoFile(Path(path).read_bytes()) as video:
        for _ in video.pictures(wanted):
            pass


def _indexed(path: str, wanted: Sequence[int]) -> None:
    with VideoFile(path) as video:
        for _ in video.pictures(wanted):
            pass


def _stored(path: str, wanted: Sequence[int]) -> None:
    for _ in stored_pictures(Path(path).read_bytes(), wanted):
        pass


def _backwards(path: str, wanted: Sequence[int]) -> None:
    from model.video import Video

    video = Video.open(path)
    for t in wanted:
        _ = video[t]


def _decord(path: str, wanted: Sequence[int]) -> None:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    for t in wanted:
        reader[t].asnumpy()
