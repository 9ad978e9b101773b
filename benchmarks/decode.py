"""Decode: decord against PyAV (and torchcodec if it is installed) on one made h264 file, all frames and seeks.

`pipeline.video` takes decord and falls back to PyAV per file; this is where the choice comes from.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Row, Setting, moving_clip, seconds
from schemas.video.stored import encode_mp4

CPU = torch.device("cpu")


def run(setting: Setting) -> Iterator[Row]:
    n = 60 if setting.quick else 300
    rng = np.random.default_rng(0)
    spots = sorted(rng.choice(n, 30, replace=False).tolist())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        path.write_bytes(encode_mp4(moving_clip(n), 30.0, gop=60))
        for what, frames in (
            ("every frame in order", list(range(n))),
            ("30 frames by seeking", spots),
        ):
            rates: dict[str, float] = {}
            for name, read in decoders().items():
                if (name == "pyav") and frames is spots:
                    continue  # seeks by pts: not how a frame of an annotation is found
                took = seconds(partial(read, str(path), frames), CPU, repeat=5)
                rates[name] = len(frames) / took
            baseline = "pyav" if "pyav" in rates else "decord"
            for name, rate in rates.items():
                ratio = None if name == baseline else rate / rates[baseline]
                yield Row(
                    f"{name}, {what}",
                    rate,
                    "frames/s",
                    "" if ratio is None else baseline,
                    ratio,
                    note=f"640x360 h264, {n} frames, one thread",
                )


def decoders() -> dict[str, Callable[[str, list[int]], Any]]:
    found: dict[str, Callable[[str, list[int]], Any]] = {"decord": _decord, "pyav": _pyav}
    if importlib.util.find_spec("torchcodec"):
        found["torchcodec"] = _torchcodec
    return found


def _decord(path: str, frames: list[int]) -> None:
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    for t in frames:
        reader[t].asnumpy()


def _pyav(path: str, frames: list[int]) -> None:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for frame in container.decode(stream):
            frame.to_ndarray(format="rgb24")


def _torchcodec(path: str, frames: list[int]) -> None:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, num_ffmpeg_threads=1)
    for t in frames:
        decoder[t].permute(1, 2, 0).numpy()
