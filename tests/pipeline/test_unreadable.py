"""Every kind of unreadable media, curated twice: the same rows, byte for byte, in our own words."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from flows import driver
from flows.executors import Inline
from flows.jobs import make_jobs
from flows.progress import Quiet
from manifests.catalog import query
from pipeline.presets import configure
from tests.schemas.video.made import encode, numbered

FOREIGN = re.compile(
    r"\d\d:\d\d:\d\d|0x[0-9a-f]{4}|\.(cc|cpp|c|so|py)\b|Traceback|site-packages|/tmp|/root|\[\w+ @"
)
"""A time of day, an address, a place in somebody's source code or on this machine."""


def video(folder: Path, **options: str) -> bytes:
    path = encode(folder / "whole.mp4", **options)
    return path.read_bytes()


def flipped(data: bytes, begin: float, end: float, seed: int) -> bytes:
    """`data` with random bytes between two places, as parts of the whole."""
    spoilt = bytearray(data)
    start, stop = int(begin * len(data)), int(end * len(data))
    spoilt[start:stop] = np.random.default_rng(seed).bytes(stop - start)
    return bytes(spoilt)


def audio_only(folder: Path) -> bytes:
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path.read_bytes()


KINDS: dict[str, Callable[[bytes, Path], bytes]] = {
    "empty": lambda data, folder: b"",
    "one byte": lambda data, folder: b"\0",
    "cut in the middle": lambda data, folder: data[: len(data) // 2],
    "cut near the start": lambda data, folder: data[:40],
    "without its index": lambda data, folder: data[: data.index(b"moov")],
    "index spoilt": lambda data, folder: flipped(data, 0.9, 1, 1),
    "first pictures spoilt": lambda data, folder: flipped(data, 0.02, 0.4, 2),
    "all pictures spoilt": lambda data, folder: flipped(data, 0.02, 0.85, 3),
    "noise": lambda data, folder: np.random.default_rng(4).bytes(5000),
    "zeros": lambda data, folder: bytes(5000),
    "text": lambda data, folder: b"not a video\n" * 100,
    "web page": lambda data, folder: b"<!DOCTYPE html><html>404</html>",
    "playlist": lambda data, folder: b"#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n",
    "pointer": lambda data, folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "unknown codec": lambda data, folder: data.replace(b"avc1", b"zzzz"),
    "no decoder settings": lambda data, folder: data.replace(b"avcC", b"free"),
    "sound only": lambda data, folder: audio_only(folder),
    "too few pictures": lambda data, folder: video(folder, frames=numbered(7)),
    "another size": lambda data, folder: video(folder, frames=numbered(40, 80, 64)),
    "mpeg-ts, cut": lambda data, folder: encode(folder / "x.ts").read_bytes()[188 * 3 + 50 : 4000],
    "avi, cut": lambda data, folder: encode(folder / "x.avi").read_bytes()[:2000],
    "webm, cut": lambda data, folder: encode(folder / "x.webm", "libvpx").read_bytes()[:1500],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One HC-STVG clip of each kind, and a folder, a pipe and a file without permission in the place of a video."""
    folder = tmp_path_factory.mktemp("unreadable")
    root = folder / "data"
    (root / "video").mkdir(parents=True)
    whole = video(folder)
    names = [f"{i}_{re.sub('[^a-z]', '_', kind)}.mp4" for i, kind in enumerate(KINDS)]
    for name, spoil in zip(names, KINDS.values(), strict=True):
        (root / "video" / name).write_bytes(spoil(whole, folder))
    others = ["90_folder.mp4", "91_pipe.mp4", "92_link_to_nothing.mp4", "93_missing.mp4"]
    (root / "video" / others[0]).mkdir()
    os.mkfifo(root / "video" / others[1])
    (root / "video" / others[2]).symlink_to(root / "nothing.mp4")
    row = {
        "bbox": [[10, 10, 20, 20]] * 5,
        "st_frame": 3,
        "img_num": 40,
        "img_size": [64, 96, 3],
        "English": "A man walks.",
    }
    (root / "anno_v2").mkdir()
    entries = dict.fromkeys([*names, *others], row)
    (root / "anno_v2" / "train_v2.json").write_text(json.dumps(entries))
    return root


def test_equal_runs_give_equal_rows_in_our_own_words(data, tmp_path):
    parts = []
    for n in range(2):
        job = make_jobs("hcstvg", data, tmp_path / f"run{n}", configure("lite"))[0]
        driver.run([job], Inline(), Quiet())
        [part] = (Path(job.out) / "manifests" / "quarantine").glob("*.parquet")
        parts.append(part.read_bytes())
        time.sleep(1.1)  # a second later, a time of day in a message would be another one
    assert parts[0] == parts[1]
    rows = query(tmp_path / "run0", "SELECT clip_id, reason, message FROM quarantine")
    assert len(rows) == len(KINDS) + 4
    assert {row["reason"] for row in rows} <= {
        "media_missing",
        "media_unreadable",
        "frame_mismatch",
    }
    for row in rows:
        name = re.search(r"\d+_[a-z_]+\.mp4", row["message"])
        assert name, row
        assert not FOREIGN.search(row["message"]), row
