"""Ref-DAVIS17: both layouts, four annotators, and two scorers that disagree about identities."""

import csv
import shutil

import numpy as np
import pytest
import yaml

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.task import Prediction
from model.metrics import davis
from tests.model.evaluate import made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made.make_ref_davis(tmp_path_factory.mktemp("davis"))


def test_layout(root, tmp_path):
    benchmark = open_benchmark("ref-davis17", root)
    videos = benchmark.videos()
    assert [video.id for video in videos] == ["dogs-scale", "motorbike"]
    assert videos[0].read().shape == (6, 64, 96, 3)
    queries = benchmark.queries(videos[1])
    assert [(query.id, query.group) for query in queries] == [
        (str(n), f"anno_{n % 4}") for n in range(8)
    ]
    assert queries[0].text == "the first square"
    assert queries[6].text == "the second square caf\xe9"
    converted = open_benchmark("ref-davis17", made.make_ref_davis_converted(tmp_path))
    assert [video.id for video in converted.videos()] == ["dogs-scale", "motorbike"]
    assert [(q.id, q.group) for q in converted.queries(converted.videos()[1])] == [
        (q.id, q.group) for q in queries
    ]


@pytest.mark.parametrize("make", [made.make_ref_davis, made.make_ref_davis_converted])
@pytest.mark.parametrize(
    ("plant", "official", "expression"),
    # Unsupervised matching does not ask who is who: swapped squares are right, and after a switch half of each is.
    [
        ("perfect", (1, 1), (1, 1)),
        ("empty", (0, 0), (0, 0)),
        ("shifted", (1 / 3, 26 / 80), (1 / 3, 26 / 80)),
        ("switched", (1 / 2, 1 / 2), (1 / 2, 1 / 2)),
        ("swapped", (1, 1), (0, 0)),
    ],
)
def test_planted(make, tmp_path, plant, official, expression):
    make(tmp_path)
    for scorer, (j, f) in (("official", official), ("expression", expression)):
        benchmark = open_benchmark("ref-davis17", tmp_path, scorer=scorer)
        got = made.scores(benchmark, made.planted(benchmark, getattr(made, plant)))
        assert benchmark.settings == {"scorer": scorer}
        assert [got[key] for key in benchmark.headline] == pytest.approx(
            [j, f, (j + f) / 2], abs=1e-12
        )
        assert got["anno_3 J&F"] == pytest.approx((j + f) / 2)


def test_where_objects_meet_the_lowest_one_stays(root):
    benchmark = open_benchmark("ref-davis17", root)
    video = benchmark.videos()[0]
    everything = Prediction(np.ones((1, 6, 64, 96), bool))
    merged = benchmark.merged(video, "anno_0", {"0": everything, "4": everything}, (64, 96))
    assert (merged == 1).all()
    merged = benchmark.merged(video, "anno_0", {"4": everything}, (64, 96))
    assert (merged == 2).all()


def test_a_failed_query_is_an_empty_mask_in_the_official_score(root):
    """As the official tool has it, which sees the archive only: rows equal its numbers on the merged masks."""
    benchmark = open_benchmark("ref-davis17", root)
    video = benchmark.videos()[0]
    predictions = made.planted(benchmark, made.shifted)[video.id]
    predictions["0"] = Prediction(np.zeros((0, 0, 0, 0), bool), error="too long")
    rows = {one["query"]: one for one in benchmark.score(video, predictions)}
    truth = np.stack([made.indices(0, t) for t in range(6)])
    expected = davis(
        benchmark.merged(video, "anno_0", predictions, (64, 96)), truth, "unsupervised"
    )["global"]
    assert np.mean([rows["0"]["J"], rows["4"]["J"]]) == expected["J-Mean"] == pytest.approx(1 / 6)
    assert rows["0"]["error"] == "too long"
    assert rows["1"]["J"] == pytest.approx(1 / 3)


def test_a_video_without_truth_is_not_scored_and_costs_no_other(root, tmp_path):
    shutil.copytree(root, tmp_path / "DAVIS")
    shutil.rmtree(tmp_path / "DAVIS/Annotations_unsupervised/480p/motorbike")
    shutil.rmtree(tmp_path / "DAVIS/JPEGImages/480p/motorbike")
    benchmark = open_benchmark("ref-davis17", tmp_path)
    video = benchmark.videos()[1]
    with pytest.raises(
        ValueError, match="video motorbike: no frames found in DAVIS/JPEGImages/480p/motorbike"
    ):
        video.read()
    rows = benchmark.score(video, {})
    assert {one["J&F"] for one in rows} == {None}
    assert all("no masks under" in one["unscored"] for one in rows)
    first = {
        query.id: Prediction(made.perfect(benchmark.videos()[0], query)[None])
        for query in benchmark.queries(benchmark.videos()[0])
    }
    assert made.scores(benchmark, {"dogs-scale": first})["J"] == 1.0


def test_objects_without_text_and_texts_without_object(root, tmp_path):
    """What nobody was asked about still counts, as in the official tool; what the truth lacks cannot be met."""
    shutil.copytree(root, tmp_path / "r")
    for path in (tmp_path / "r/davis_text_annotations").iterdir():
        path.write_text('dog-scale 2 "the second square"\nmotor-bike 3 "the first square"\n')
    benchmark = open_benchmark("ref-davis17", tmp_path / "r")
    rows = [
        one
        for video in benchmark.videos()
        for one in benchmark.score(video, made.planted(benchmark, made.perfect)[video.id])
    ]
    assert len(rows) == 4 * (2 + 3)
    assert [one["J"] for one in rows if one["video"] == "dogs-scale" and one["query"] == "4"] == [1]
    assert {one["error"] for one in rows} == {"", "no text about this object"}
    assert {one["unscored"] for one in rows} == {
        "",
        "object 3 of motorbike is in none of its masks",
    }


def test_texts_that_lack_a_video_or_cannot_be_read(root, tmp_path):
    shutil.copytree(root, tmp_path / "r")
    file = tmp_path / "r/davis_text_annotations/Davis17_annot1.txt"
    file.write_text("dog-scale one text")
    with pytest.raises(
        ValueError, match=r"Davis17_annot1.txt: 'dog-scale one text' is not `video object"
    ):
        open_benchmark("ref-davis17", tmp_path / "r")
    (tmp_path / "r/ImageSets/2017/val.txt").write_text("motorbike\nunknown\n")
    shutil.copy(root / "davis_text_annotations/Davis17_annot1.txt", file)
    with pytest.raises(ValueError, match="say nothing about unknown"):
        open_benchmark("ref-davis17", tmp_path / "r")
    with pytest.raises(
        ValueError, match=r"(?s)ImageSets/2017/val.txt is not under.*Expected:.*Found:\n  r/"
    ):
        open_benchmark("ref-davis17", tmp_path)


def test_real_videos_and_objects(shared, tmp_path):
    """30 videos and 61 objects (244 texts), named as DAVIS names them, with the misspellings of the text files."""
    sequences = yaml.safe_load((shared / "data/davis/db_info.yaml").read_text())["sequences"]
    with (shared / "data/refer_davis/refvos_DAVIS17_RE_categorization.csv").open() as file:
        texts = [
            (row["video_id"], row["instance_id"], row["ref_exp"])
            for row in csv.DictReader(file, delimiter=";")
        ]
    names = sorted({name for name, _, _ in texts})
    assert set(names) <= {one["name"] for one in sequences}
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("\n".join(names))
    (tmp_path / "davis_text_annotations").mkdir()
    misspelt = {"dogs-scale": "dog-scale", "classic-car": "clasic-car", "motorbike": "motor-bike"}
    lines = [f'{misspelt.get(name, name)} {number} "{text}"' for name, number, text in texts]
    for end in ("annot1", "annot1_full_video", "annot2", "annot2_full_video"):
        (tmp_path / f"davis_text_annotations/Davis17_{end}.txt").write_text(
            "\n".join(lines), "latin-1"
        )
    benchmark = open_benchmark("ref-davis17", tmp_path)
    queries = [query for video in benchmark.videos() for query in benchmark.queries(video)]
    assert (len(benchmark.videos()), len(queries), len({(q.video, q.id) for q in queries})) == (
        30,
        244,
        244,
    )
    assert not benchmark.scored
