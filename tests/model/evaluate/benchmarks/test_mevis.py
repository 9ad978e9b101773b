"""MeViS: planted predictions get exactly the score that hand calculation and the official script give them."""

import json
import shutil

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.task import Prediction
from tests.model.evaluate import made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made.make_mevis(tmp_path_factory.mktemp("mevis"))


def test_layout(root):
    benchmark = open_benchmark("mevis", root)
    videos = benchmark.videos()
    assert [video.id for video in videos] == ["clip0", "clip1"]
    assert videos[0].frames == ("00000", "00001", "00002", "00003", "00004", "00005")
    assert videos[1].read().shape == (6, 64, 96, 3)
    assert [(q.id, q.text, q.kind) for q in benchmark.queries(videos[0])] == [
        ("0", "the first square moves", "expression"),
        ("1", "the second square moves", "expression"),
        ("2", "the first and second", "expression"),
    ]
    assert benchmark.scored
    assert not open_benchmark("mevis", root, "val").scored
    assert open_benchmark("mevis", root.parent / root.name, "val").videos()[0].id == "clip0"


@pytest.mark.parametrize(
    ("plant", "j", "f"),
    # The expression about both squares does not suffer from a switch of their identities: (1/2 + 1/2 + 1) / 3.
    [
        ("perfect", 1, 1),
        ("empty", 0, 0),
        ("shifted", 1 / 3, 26 / 80),
        ("switched", 2 / 3, 2 / 3),
        ("swapped", 1 / 3, 1 / 3),
    ],
)
def test_planted(root, plant, j, f):
    benchmark = open_benchmark("mevis", root)
    got = made.scores(benchmark, made.planted(benchmark, getattr(made, plant)))
    assert got == pytest.approx({"J": j, "F": f, "J&F": (j + f) / 2}, abs=1e-12)


def test_failed_and_missing_queries_count_zero(root):
    benchmark = open_benchmark("mevis", root)
    predictions = made.planted(benchmark, made.perfect)
    predictions["clip0"]["1"] = Prediction(np.zeros((0, 0, 0, 0), bool), error="out of memory")
    del predictions["clip1"]
    rows = [
        one
        for video in benchmark.videos()
        for one in benchmark.score(video, predictions.get(video.id, {}))
    ]
    assert [one["error"] for one in rows] == ["", "out of memory", "", *["no prediction"] * 3]
    assert benchmark.summary(rows)["J&F"] == pytest.approx(2 / 6)
    bounds = benchmark.intervals(rows)["J"]  # of two videos with means 2/3 and 0
    assert (bounds.mean, bounds.low, bounds.high) == pytest.approx((1 / 3, 0, 2 / 3))


def test_several_tracks_are_one_answer_and_none_is_an_empty_mask(root):
    benchmark = open_benchmark("mevis", root)
    video = benchmark.videos()[0]
    tracks = np.stack([made.truth(video, "first"), made.truth(video, "second")])
    rows = benchmark.score(video, {"2": Prediction(tracks), "0": Prediction(tracks[:0])})
    assert [one["J"] for one in rows] == [0, 0, 1]
    with pytest.raises(ValueError, match=r"clip0/2: prediction \[2, 5, 64, 96\].*T=6, H=64, W=96"):
        benchmark.score(video, {"2": Prediction(tracks[:, :5])})


def test_official_numbers(shared, tmp_path):
    """The official script's result on its golden inputs, through the reader."""
    folder = shared / "golden/metrics"
    data, arrays = (
        json.loads((folder / "mevis.json").read_text()),
        np.load(folder / "mevis_predictions.npz"),
    )
    (tmp_path / "valid_u").mkdir()
    (tmp_path / "valid_u/meta_expressions.json").write_text(json.dumps(data["meta_expressions"]))
    (tmp_path / "valid_u/mask_dict.json").write_text(json.dumps(data["mask_dict"]))
    benchmark = open_benchmark("mevis", tmp_path)
    rows = []
    for video in benchmark.videos():
        predictions = {}
        for query in benchmark.queries(video):
            if video.id not in data["videos_missing_from_prediction"]:
                shape = tuple(arrays[f"{video.id}/{query.id}/shape"])
                bits = np.unpackbits(arrays[f"{video.id}/{query.id}"], count=int(np.prod(shape)))
                predictions[query.id] = Prediction(bits.reshape(1, *shape).astype(bool))
        rows += benchmark.score(video, predictions)
    for key in ("J", "F", "J&F"):
        assert benchmark.summary(rows)[key] == pytest.approx(data["expected"][key], abs=1e-9)


def test_missing_media_and_damaged_annotations_say_what_and_where(root, tmp_path):
    copy = tmp_path / "mevis"
    shutil.copytree(root, copy)
    (copy / "valid_u/JPEGImages/clip1/00003.jpg").unlink()
    benchmark = open_benchmark("mevis", tmp_path)  # one folder too high
    with pytest.raises(
        ValueError, match=r"video clip1: mevis/valid_u/JPEGImages/clip1/00003\.jpg: No such file"
    ):
        benchmark.videos()[1].read()

    meta = json.loads((copy / "valid_u/meta_expressions.json").read_text())
    meta["videos"]["clip0"]["expressions"]["../x"] = {"exp": "escape", "anno_id": [1]}
    (copy / "valid_u/meta_expressions.json").write_text(json.dumps(meta))
    benchmark = open_benchmark("mevis", copy)
    with pytest.raises(ValueError, match=r"query '\.\./x'.*letters, digits"):
        benchmark.queries(benchmark.videos()[0])
    meta["videos"]["clip0"]["frames"] = "00000"
    (copy / "valid_u/meta_expressions.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="videos > clip0 > frames"):
        open_benchmark("mevis", copy)
