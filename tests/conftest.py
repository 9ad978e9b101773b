"""Fixtures for everyone: the shared real data, and a tiny real dataset in an official layout."""

import json
import os
from pathlib import Path

import pytest

from flows.jobs import make_jobs
from pipeline.plan import Job
from pipeline.presets import ShardConfig, configure
from schemas.video.stored import encode_mp4
from tests.made import moving_square

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Before torch is there: several test processes with a pool of threads each take a quarter more of the processor."""

SHARED = Path(__file__).resolve().parents[2] / "shared"
ABSENT = "no ../shared beside the checkout: real data and golden numbers are not on this machine"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real annotations and golden numbers that lies beside a development checkout."""
    if not SHARED.is_dir():
        pytest.skip(ABSENT)
    return SHARED


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HC-STVG v2: five good videos of 20 frames, one missing, one row that is malformed."""
    root = tmp_path_factory.mktemp("hcstvg")
    (root / "anno_v2").mkdir()
    (root / "part_1").mkdir()
    rows: dict[str, dict] = {}
    for n in range(7):
        name = f"{n}_video.mp4"
        frames, boxes = moving_square(n, 20)
        if n != 3:
            (root / "part_1" / name).write_bytes(encode_mp4(frames, 10.0))
        rows[name] = {
            "bbox": boxes,
            "st_frame": 1,
            "st_time": 0.0,
            "ed_time": 2.0,
            "img_num": 20,
            "img_size": [96, 160, 3],
            "English": f"The square number {n} moves to the right.",
            "Chinese": "",
        }
    rows["5_video.mp4"]["bbox"] = "not a list"
    (root / "anno_v2" / "train_v2.json").write_text(json.dumps(rows))
    return root


def make_tiny_job(root: Path, out: Path) -> Job:
    """The tiny dataset, two referents to a shard."""
    config = configure("lite").model_copy(update={"shard": ShardConfig(max_referents=2)})
    return make_jobs("hcstvg", root, out, config)[0]


@pytest.fixture
def tiny_job(tiny_root: Path, tmp_path: Path) -> Job:
    """The tiny dataset into an empty output."""
    return make_tiny_job(tiny_root, tmp_path / "out")
