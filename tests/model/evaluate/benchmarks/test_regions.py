"""Region questions on curated shards: what is asked and shown, how answers score, and what damage costs."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.benchmarks.regions import plain_words, word_f1
from model.evaluate.protocols import asking
from model.evaluate.run import evaluate_video, predict
from model.evaluate.task import Prediction
from model.regions import answer_about_region
from tests.model.data import made
from tests.model.data.made import COLOURS, make_output
from tests.model.made import HOSTS, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_output(tmp_path_factory.mktemp("shards"), {"a": (1, 2)})


@pytest.fixture
def benchmark(root):
    return open_benchmark("regions", root, "train", captions=False)


def answered(text: str) -> Prediction:
    return Prediction(np.zeros((0, 2, 4, 4), bool), text)


def test_every_referent_is_asked_about_with_its_own_crops(benchmark):
    videos = benchmark.videos()
    assert [video.id for video in videos] == ["a-c0-0", "a-c0-1", "a-c1-0", "a-c1-1"]
    for video in videos:
        [query] = benchmark.queries(video)
        assert query.text == "What is the <region> doing during this video?"
        assert len(query.crops) == 4
        colour = COLOURS[int(video.id[-1])].astype(int)
        for picture in query.crops:
            assert (np.abs(picture.astype(int) - colour).max(-1) < 60).mean() > 0.5
        frames = video.read()
        assert frames.shape[1:] == (made.HEIGHT, made.WIDTH, 3)
        assert 2 <= len(frames) <= 16


def test_answers_score_as_they_read(benchmark):
    video = benchmark.videos()[0]  # its curated answer: "red square number 0"
    for text, exact, f1 in (
        ("red square number 0", 1.0, 1.0),
        ("Red  square number 0. [SEG] [BOX]", 1.0, 1.0),
        ("red square", 0.0, 2 / 3),
        ("a blue disc", 0.0, 0.0),
        ("", 0.0, 0.0),
    ):
        [row] = benchmark.score(video, {"0": answered(text)})
        assert row["exact"] == exact, text
        assert row["word_F1"] == pytest.approx(f1), text
    [failed] = benchmark.score(video, {"0": Prediction(np.zeros((0, 1, 1, 1), bool), error="no")})
    assert (failed["exact"], failed["word_F1"]) == (0, 0)


def test_words_are_counted_as_often_as_they_occur():
    assert word_f1("a a a", "a b") == pytest.approx(2 / 5)
    assert word_f1("", "") == 1
    assert plain_words(" A  Dog runs. ") == "a dog runs"


def test_the_summary_is_a_mean_over_referents(benchmark):
    rows = []
    for n, video in enumerate(benchmark.videos()):
        text = "red square number 0" if n == 0 else "blue square number 0"
        rows += benchmark.score(video, {"0": answered(text)})
    assert benchmark.summary(rows)["exact"] == pytest.approx(3 / 4)
    assert (
        benchmark.intervals(rows)["exact"].low <= 3 / 4 <= benchmark.intervals(rows)["exact"].high
    )


def test_a_referent_without_crops_is_not_asked(tmp_path, monkeypatch):
    def bare(*args):
        found = members(*args)
        words = json.loads(found["json"]) | {"tsf": []}
        return found | {"json": json.dumps(words).encode()}

    members = made.members
    monkeypatch.setattr(made, "members", bare)
    benchmark = open_benchmark("regions", make_output(tmp_path, {"a": (1, 1)}), "train")
    video = benchmark.videos()[0]
    [query] = benchmark.queries(video)
    assert "has no crops" in query.fault
    [row] = benchmark.score(video, {})
    assert "has no crops" in row["unscored"]
    assert row["exact"] is None


def test_a_damaged_member_costs_its_referent_alone(tmp_path, root):
    import shutil

    shutil.copytree(root, tmp_path / "out")
    benchmark = open_benchmark("regions", tmp_path / "out", "train", captions=False)
    entry = benchmark.index.entry(1)
    member = next(one for one in entry.members if one.name == "json")
    with (tmp_path / "out" / entry.tar).open("r+b") as file:
        file.seek(member.offset)
        file.write(b"not JSON")
    faults = [benchmark.queries(video)[0].fault for video in benchmark.videos()]
    assert [bool(fault) for fault in faults] == [False, True, False, False]
    assert "a-c0-1" in faults[1]


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_answers_in_words_and_the_crops_decide_them(benchmark, host):
    sparrow = tiny(host).eval()
    video = benchmark.videos()[0]
    [query] = benchmark.queries(video)
    how = asking("host", host, "regions", max_new_tokens=6)
    first = predict(sparrow, video.read(), query, how)
    assert first.error == ""
    assert first.masks_nthw.shape[0] == 0
    [row], _ = evaluate_video(sparrow, benchmark, video, how)
    assert row["answer"] == first.text
    seen = []
    tokens = sparrow.tsf_tokens
    sparrow.tsf_tokens = lambda crops: seen.append(crops) or tokens(crops)  # type: ignore[method-assign]
    answer_about_region(sparrow, video.read(), query.text, query.crops, 1)
    assert len(seen[0]) == 4


def test_what_cannot_be_asked_is_said(benchmark, root, tmp_path):
    video = benchmark.videos()[0]
    [query] = benchmark.queries(video)
    model = tiny("videoglamm", **{"tsf.path": "none"}).eval()
    failed = predict(model, video.read(), query, asking("host", "videoglamm", "regions"))
    assert "this model has no TSF" in failed.error
    with pytest.raises(ValueError, match="needs <region>"):
        answer_about_region(tiny("videoglamm").eval(), video.read(), "Who?", query.crops, 1)
    with pytest.raises(ValueError, match=r"manifests/shards is not under .* Expected"):
        open_benchmark("regions", tmp_path, "train")
    with pytest.raises(ValueError, match=r"benchmark\.template 12: the pool has 0 to 11"):
        open_benchmark("regions", root, "train", template=12)
    with pytest.raises(ValueError, match="no committed shard of split val"):
        open_benchmark("regions", root)
