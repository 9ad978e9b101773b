"""VidSTG: spans, sampling and resizing as released; exact box IoU of planted masks."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from model.evaluate.benchmarks import open_benchmark
from model.evaluate.benchmarks.vidstg import resized, sample
from model.evaluate.task import Prediction
from tests.model.evaluate import made

OWN = {"short_side": None, "rules": "corrected"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return made.make_vidstg(tmp_path_factory.mktemp("vidstg"))


def test_layout(root):
    benchmark = open_benchmark("vidstg", root)
    first, second = benchmark.videos()
    assert (first.id, first.pick) == ("1000_0-12_0-11", (0, 2, 4, 6, 8, 10))
    assert (second.id, second.pick) == ("1001_2-12_0-11", (2, 4, 6, 8, 10))
    assert second.read().shape == (5, 224, 336, 3)  # 64 x 96, short side 224
    assert [(q.kind, q.text) for q in benchmark.queries(first)] == [
        ("declarative", "the first square moves."),
        ("interrogative", "what does the second square do?"),
    ]
    own = open_benchmark("vidstg", root, **OWN).videos()[0].read()
    red = (own[..., 0].astype(int) - own[..., 2] > 100) == made.truth(first, "first")
    assert red.mean() > 0.99  # the picked frames are the annotated ones


@pytest.mark.parametrize(
    ("plant", "miou"),
    # switched: right in 3 of 6 frames of the first video and in 2 of 5 of the second.
    [
        ("perfect", 1),
        ("empty", 0),
        ("shifted", 1 / 3),
        ("switched", (3 / 6 + 2 / 5) / 2),
        ("swapped", 0),
    ],
)
def test_planted(root, plant, miou):
    benchmark = open_benchmark("vidstg", root, **OWN)
    got = made.scores(benchmark, made.planted(benchmark, getattr(made, plant)))
    assert [got[f"mIoU{end}"] for end in ("", "_declarative", "_interrogative")] == pytest.approx(
        [miou] * 3
    )
    assert got["mIoU@0.3"] == (miou > 0.3)
    assert benchmark.headline == ("mIoU_interrogative",)


@pytest.mark.parametrize(("short_side", "side"), [(None, 20), (224, 70)])
def test_released_boxes_are_a_pixel_short(root, short_side, side):
    """A perfect mask's box ends on its last pixel, so it covers (side - 1)^2 of side^2."""
    benchmark = open_benchmark("vidstg", root, short_side=short_side)

    def perfect(video, query):
        mask = made.truth(
            video, query.text, scale=7
        )  # 64 x 96 -> 448 x 672 -> 224 x 336, both exactly
        return mask[:, ::2, ::2] if short_side else made.truth(video, query.text)

    got = made.scores(benchmark, made.planted(benchmark, perfect))
    assert got["mIoU"] == pytest.approx((side - 1) ** 2 / side**2, abs=1e-6)


def test_whole_segment(root):
    """clip "segment": the predicted span is from the first to the last frame with a mask. In the second video the
    tube begins at frame 2, the second of six sampled ones: five frames of truth against six of prediction."""
    benchmark = open_benchmark("vidstg", root, clip="segment", **OWN)
    assert [video.pick for video in benchmark.videos()] == [(0, 2, 4, 6, 8, 10)] * 2
    got = made.scores(benchmark, made.planted(benchmark, made.perfect))
    assert [got[key] for key in benchmark.headline] == pytest.approx(
        [(1 + 5 / 6) / 2, (1 + 5 / 6) / 2, 1, 1]
    )
    got = made.scores(benchmark, made.planted(benchmark, made.empty))
    assert [got[key] for key in benchmark.headline] == [0, 0, 0, 0]


def test_bounds_are_by_video(root):
    benchmark = open_benchmark("vidstg", root, **OWN)
    predictions = made.planted(benchmark, made.perfect)
    predictions["1001_2-12_0-11"] = {}
    rows = [
        one for video in benchmark.videos() for one in benchmark.score(video, predictions[video.id])
    ]
    assert [one["error"] for one in rows] == ["", "", "no prediction", "no prediction"]
    assert tuple(benchmark.intervals(rows)["mIoU_interrogative"]) == (0.5, 0, 1)


def test_missing_video_and_missing_boxes(root, tmp_path):
    shutil.copytree(root, tmp_path / "vidstg")
    (tmp_path / "vidstg/video/0000/1001.mp4").unlink()
    (tmp_path / "vidstg/vidor_annotations/validation/0000/1000.json").write_text(
        json.dumps({"trajectories": [[]] * 12})
    )
    benchmark = open_benchmark("vidstg", tmp_path, **OWN)
    first, second = benchmark.videos()
    with pytest.raises(
        ValueError, match=r"video 1001_2-12_0-11: vidstg/video/0000/1001.mp4: No such file"
    ):
        second.read()
    rows = benchmark.score(first, {})
    assert [one["mIoU"] for one in rows] == [None, None]
    assert all("has no box in the tube 0 to 12" in r["unscored"] for r in rows)


def test_sampling_is_the_released_one():
    """TubeDETR's rule: the first frame, then whenever another second begins; the fps need not be whole."""
    assert sample(5, 100, 30.0, 1.0, 40) == (5, 30, 60, 90)
    assert sample(0, 61, 29.97, 1.0, 40) == (0, 30, 60)
    assert sample(3, 7, 0.5, 1.0, 40) == (3, 4, 5, 6)
    assert sample(0, 100 * 30, 30.0, 1.0, 40) == tuple(30 * (j * 100 // 40) for j in range(40))
    assert resized((360, 640), 224) == (210, 373)
    assert resized((480, 640), 224) == (224, 298)
    assert resized((640, 480), 224) == (298, 224)
    assert resized((480, 640), None) == (480, 640)


@pytest.mark.parametrize(("split", "kinds"), [("test", (4610, 5693)), ("val", (3996, 4960))])
def test_real_annotations(shared, split, kinds):
    benchmark = open_benchmark("vidstg", shared / "data/vidstg", split)
    videos = benchmark.videos()
    queries = [query for video in videos for query in benchmark.queries(video)]
    found = Counter(query.kind for query in queries)
    assert (found["declarative"], found["interrogative"]) == kinds
    assert len({query.group for query in queries}) == {"test": 732, "val": 602}[split]
    assert len({video.id for video in videos}) == len(videos)
    assert all(1 <= len(video) <= 40 for video in videos)
    assert max(max(video.size) for video in videos) <= 373
    assert not benchmark.scored


def test_spans_that_leave_the_video_are_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "r")
    file = tmp_path / "r/vidstg_annotations/test_annotations.json"
    items = json.loads(file.read_text())
    items[0]["temporal_gt"]["end_fid"] = 13
    file.write_text(json.dumps(items))
    benchmark = open_benchmark("vidstg", tmp_path / "r")
    assert {video.id.split("_")[0] for video in benchmark.videos()} == {"1001"}
    words = benchmark.settings["entries that cannot be read"]
    assert "1000: span 0 to 13 leaves the video of 12 frames" in words
    file.write_text(json.dumps(items[:1]))
    with pytest.raises(ValueError, match=r"no entry that can be read: .*span 0 to 13"):
        open_benchmark("vidstg", tmp_path / "r")
    with pytest.raises(ValueError, match="clip 'clip' must be tube or segment"):
        open_benchmark("vidstg", root, clip="clip")


def spoil_sentence(item: dict, boxes: dict) -> None:
    item["captions"][0] = {"target_id": 0}


def spoil_type(item: dict, boxes: dict) -> None:
    item["captions"][0]["description"] = 5


def lose_a_corner(item: dict, boxes: dict) -> None:
    target = item["captions"][0]["target_id"]
    for frame in boxes["trajectories"]:
        for one in frame:
            if one["tid"] == target:
                del one["bbox"]["xmax"]


def turn_a_box(item: dict, boxes: dict) -> None:
    target = item["captions"][0]["target_id"]
    for frame in boxes["trajectories"]:
        for one in frame:
            if one["tid"] == target:
                one["bbox"]["xmin"], one["bbox"]["xmax"] = one["bbox"]["xmax"], one["bbox"]["xmin"]


@pytest.mark.parametrize("spoil", [spoil_sentence, spoil_type, lose_a_corner, turn_a_box])
def test_a_fault_costs_the_queries_about_it_and_no_others(root, tmp_path, spoil):
    shutil.copytree(root, tmp_path / "r")
    file = tmp_path / "r/vidstg_annotations/test_annotations.json"
    [place] = (tmp_path / "r").rglob("1000.json")
    items, boxes = json.loads(file.read_text()), json.loads(place.read_text())
    item = next(one for one in items if one["vid"] == "1000")
    target = item["captions"][0]["target_id"]
    spoil(item, boxes)
    file.write_text(json.dumps(items))
    place.write_text(json.dumps(boxes))
    benchmark = open_benchmark("vidstg", tmp_path / "r", **OWN)
    video = next(one for one in benchmark.videos() if one.id.startswith("1000"))
    queries = benchmark.queries(video)
    rows = {one["query"]: one["unscored"] for one in benchmark.score(video, {})}
    of_target = [q.id for q, number in benchmark._clips[video.id][1] if number in (target, -1)]
    faulty = of_target if spoil in (lose_a_corner, turn_a_box) else ["declarative-0"]
    assert [key for key, why in rows.items() if why] == faulty
    assert len(rows) == len(queries)


def test_trajectories_that_end_before_the_tube_are_a_fault(root, tmp_path):
    shutil.copytree(root, tmp_path / "r")
    [place] = (tmp_path / "r").rglob("1000.json")
    boxes = json.loads(place.read_text())
    boxes["trajectories"] = boxes["trajectories"][:6]
    place.write_text(json.dumps(boxes))
    benchmark = open_benchmark("vidstg", tmp_path / "r", **OWN)
    video = next(one for one in benchmark.videos() if one.id.startswith("1000"))
    rows = benchmark.score(video, {})
    assert all("6 frames, the tube ends with 12" in one["unscored"] for one in rows)


def test_answer_of_another_size(root):
    benchmark = open_benchmark("vidstg", root)
    video = benchmark.videos()[0]
    key = benchmark.queries(video)[0].id
    with pytest.raises(ValueError, match="H=224, W=336"):
        benchmark.score(video, {key: Prediction(np.ones((1, 6, 64, 96), bool))})
