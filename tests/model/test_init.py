"""`import model`: two functions, and nothing heavy until they are called."""

import subprocess
import sys
from pathlib import Path

import pytest

import model
from schemas.video.stored import encode_mp4
from tests.made import moving_square


def test_importing_it_loads_nothing_heavy():
    code = "import sys, model; print(*(m for m in ('torch', 'numpy', 'transformers', 'scipy') if m in sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_a_video_and_a_phrase_give_typed_results(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_mp4(moving_square(3, 4)[0], 10.0))
    found = model.ground(path, "the square", host="glus", size="tiny", answer="force")
    assert found.forced
    assert [one.masks_thw.shape for one in found.instances] == [(4, 96, 160)]
    sparrow = model.load("glus", size="tiny", tsf__infer=True)
    assert sparrow.config.tsf.infer
    again = model.ground(path, ["a", "b"], host=sparrow, answer="force", crops={"a": (), "b": ()})
    assert set(again.texts) == {"a", "b"}


def test_official_size_needs_weights():
    with pytest.raises(ValueError, match="--checkpoint"):
        model.load("videoglamm")
