"""Videos are read as they are stored, names are safe, and what cannot be had says why."""

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.task import Query, Video
from pipeline.sources.base import DataRoot
from schemas.records import Media
from schemas.video.pictures import encode_jpeg
from schemas.video.stored import encode_mp4


@pytest.fixture
def root(tmp_path):
    frames = np.stack([np.full((32, 48, 3), 20 * t, np.uint8) for t in range(10)])
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, 10.0))
    (tmp_path / "images").mkdir()
    for t in range(4):
        (tmp_path / f"images/{t}.jpg").write_bytes(encode_jpeg(frames[t]))
    return DataRoot(tmp_path)


def brightness(video):
    return (video.read().mean((1, 2, 3)) / 20).round().astype(int).tolist()


def test_picked_frames(root):
    names = tuple(f"{t}.jpg" for t in range(4))
    assert brightness(
        Video("v", ("a", "b", "c"), None, root, Media("video", "v.mp4"), (1, 2, 7))
    ) == [1, 2, 7]
    assert brightness(
        Video("v", ("a", "b"), (32, 48), root, Media("frames", "images", names=names), (0, 3))
    ) == [0, 3]
    assert len(Video("v", ("a", "b"), None, root, Media("frames", "images", names=names))) == 2


def test_sizes(root):
    media = Media("video", "v.mp4")
    assert Video("v", ("a",), (16, 24), root, media, resized=True).read().shape == (1, 16, 24, 3)
    with pytest.raises(
        ValueError, match=r"video v: v.mp4 has frames of 32x48, the annotation says 16x24"
    ):
        Video("v", ("a",), (16, 24), root, media).read()


def test_what_cannot_be_read(root):
    with pytest.raises(ValueError, match=r"video v: .*needs frame 12, the video has 10"):
        Video("v", ("a",), None, root, Media("video", "v.mp4"), (12,)).read()
    with pytest.raises(ValueError, match=r"video v: path '../v.mp4' is not inside the data root"):
        Video("v", ("a",), None, root, Media("video", "../v.mp4")).read()
    with pytest.raises(ValueError, match="video v: no frames found in nowhere"):
        Video("v", (), None, root, Media("frames", "nowhere", names=())).read()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "a b", None, 3, "a\n"])
def test_names_that_are_no_names(root, name):
    with pytest.raises(ValueError, match="results are saved under this name"):
        Video(name, (), None, root, Media("video", "v.mp4"))
    with pytest.raises(ValueError, match="results are saved under this name"):
        Query(name, "v", "text")


def test_unknown_benchmarks_splits_and_options(tmp_path):
    with pytest.raises(
        ValueError, match="choose one of mevis, ref-ytvos, ref-davis17, vidstg, videogcg"
    ):
        open_benchmark("revos", tmp_path)
    with pytest.raises(ValueError, match="mevis has no split 'test': choose one of val_u, val"):
        open_benchmark("mevis", tmp_path, "test")
    with pytest.raises(ValueError, match=r"mevis: .*unexpected keyword argument 'scorer'"):
        open_benchmark("mevis", tmp_path, scorer="official")
    with pytest.raises(ValueError, match="is not a folder"):
        open_benchmark("mevis", tmp_path / "none")
    with pytest.raises(
        ValueError, match=r"(?s)valid_u/meta_expressions.json is not under.*Found:\n  nothing"
    ):
        open_benchmark("mevis", tmp_path)
