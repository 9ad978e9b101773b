"""`sparrow ground`: what it reads, what it writes, what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.ground import read_frames
from pipeline.video import encode_mp4
from schemas.geometry import rle_area, rle_check
from tests.made import moving_square


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    path.write_bytes(encode_mp4(moving_square(3, 5)[0], 10.0))
    return path


def test_masks_and_a_picture_come_out(video, tmp_path):
    words = [
        "ground",
        str(video),
        "the square",
        "--host",
        "glus",
        "--size",
        "tiny",
        "--answer",
        "force",
        "--out",
        str(tmp_path),
    ]
    run = CliRunner().invoke(app, [*words, "--prompt-frame", "0", "--prompt-frame", "3"])
    assert run.exit_code == 0, run.output
    assert "random weights: the masks mean nothing" in run.output
    found = json.loads((tmp_path / "masks.json").read_text())
    assert "mean nothing" in found["note"]
    assert found["answers_forced"] is True
    (one,) = found["instances"]
    assert sorted(one["boxes"]) == ["0", "3"]
    assert len(one["masks"]) == len(one["object_score"]) == found["frames"] == 5
    assert all(0 <= rle_area(rle_check(rle, (96, 160))) <= 96 * 160 for rle in one["masks"])
    assert Image.open(tmp_path / "overlay.png").size[0] == 4 * 320


def test_a_folder_of_pictures_is_a_video(tmp_path):
    frames, _ = moving_square(3, 3)
    for t in (2, 0, 1):
        Image.fromarray(frames[t]).save(tmp_path / f"{t:05d}.png")
    np.testing.assert_array_equal(read_frames(tmp_path, 2), frames[:2])


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    for name, message in (("missing.mp4", "no such"), ("empty", "no .jpg"), ("broken.mp4", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            read_frames(tmp_path / name, 9)


def test_official_size_needs_weights(video):
    run = CliRunner().invoke(app, ["ground", str(video), "x"])
    assert isinstance(run.exception, ValueError)
    assert "--checkpoint" in str(run.exception)
