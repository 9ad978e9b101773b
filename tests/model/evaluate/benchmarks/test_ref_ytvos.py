"""Ref-YouTube-VOS: the benchmark's 202 of 507 videos, and truth where a user has it."""

import json
import shutil

import pytest

from model.evaluate.benchmarks import open_benchmark
from tests.model.evaluate import made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made.make_ref_ytvos(tmp_path_factory.mktemp("ytvos"))


def test_layout(root):
    benchmark = open_benchmark("ref-ytvos", root)
    videos = benchmark.videos()
    assert [video.id for video in videos] == ["clip0", "clip1"]  # not the one of the test list
    assert videos[0].frames == ("00000", "00005", "00010", "00015", "00020", "00025")
    assert videos[0].read().shape == (6, 64, 96, 3)
    assert [query.text for query in benchmark.queries(videos[1])] == [
        "the first square",
        "the second square",
    ]


@pytest.mark.parametrize(
    ("plant", "j", "f"),
    [
        ("perfect", 1, 1),
        ("empty", 0, 0),
        ("shifted", 1 / 3, 26 / 80),
        ("switched", 1 / 2, 1 / 2),
        ("swapped", 0, 0),
    ],
)
def test_planted(root, plant, j, f):
    benchmark = open_benchmark("ref-ytvos", root)
    got = made.scores(benchmark, made.planted(benchmark, getattr(made, plant)))
    assert got == pytest.approx({"J": j, "F": f, "J&F": (j + f) / 2}, abs=1e-12)


def test_without_truth_there_is_no_score(tmp_path):
    benchmark = open_benchmark("ref-ytvos", made.make_ref_ytvos(tmp_path, truth=False))
    assert not benchmark.scored
    assert len(benchmark.videos()) == 2


def test_truth_by_object_id_and_of_some_videos_only(root, tmp_path):
    shutil.copytree(root, tmp_path / "r")
    shutil.rmtree(tmp_path / "r/valid/Annotations")
    file = tmp_path / "r/meta_expressions/valid/meta_expressions.json"
    meta = json.loads(file.read_text())
    for entry in meta["videos"].values():
        entry["expressions"] = {
            "0": {"exp": "the first square", "obj_id": "1"},
            "1": {"exp": "second", "obj_id": "2"},
        }
    file.write_text(json.dumps(meta))
    shutil.copytree(
        made.make_ref_davis_converted(tmp_path / "d") / "valid/Annotations/dogs-scale",
        tmp_path / "r/valid/Annotations/clip0",
    )
    for path in sorted((tmp_path / "r/valid/Annotations/clip0").glob("*.png"), reverse=True):
        path.rename(path.with_name(f"{5 * int(path.stem):05d}.png"))
    benchmark = open_benchmark("ref-ytvos", tmp_path / "r")
    assert [video.id for video in benchmark.videos()] == ["clip0"]
    assert benchmark.settings == {"videos": "1 of 2, which have truth"}
    assert made.scores(benchmark, made.planted(benchmark, made.perfect))["J&F"] == 1


def test_real_annotations(shared, tmp_path):
    """The real file with a test list made of 305 of its videos, as the official one is."""
    source = shared / "data/ref_youtube_vos/meta_expressions_valid_incl_test.json"
    (tmp_path / "meta_expressions/valid").mkdir(parents=True)
    shutil.copy(source, tmp_path / "meta_expressions/valid/meta_expressions.json")
    benchmark = open_benchmark("ref-ytvos", tmp_path)
    videos = benchmark.videos()
    assert (len(videos), sum(len(benchmark.queries(video)) for video in videos)) == (507, 2096)
    assert benchmark.settings["videos"].startswith("all 507")
    hidden = {video.id: {} for video in videos[:305]}
    (tmp_path / "meta_expressions/test").mkdir()
    (tmp_path / "meta_expressions/test/meta_expressions.json").write_text(
        json.dumps({"videos": hidden})
    )
    benchmark = open_benchmark("ref-ytvos", tmp_path)
    assert len(benchmark.videos()) == 202
    assert benchmark.settings == {}
    with pytest.raises(ValueError, match=r"video .*JPEGImages.*No such file"):
        videos[0].read()
