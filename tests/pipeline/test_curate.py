"""The clip function: every rule of the sources reaches the track, one bad referent loses nothing else."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.agree import agree
from pipeline.curate import _rescale, check_sizes, curate_clip, make_masks, make_track
from pipeline.plan import plan_items
from pipeline.presets import build_stages, configure
from pipeline.sample import TRACK_DTYPE
from pipeline.sources.base import Rules, SampleRules, load_source
from pipeline.video import Decoded, Fingerprint
from schemas.geometry import absent, from_xywh, is_box, rle_encode
from schemas.records import (
    ORIGINS,
    Annotation,
    Clip,
    Detection,
    Media,
    Planned,
    Quarantined,
    Reason,
    Segment,
    Track,
)
from tests.made import moving_square
from trackers.batching import Batcher


@pytest.fixture
def stages(tiny_job):
    return build_stages(tiny_job.config)


def planned(job, n: int) -> Planned:
    return [item for item in plan_items(job) if isinstance(item, Planned)][n]


@pytest.fixture
def result(tiny_job, stages):
    return curate_clip(planned(tiny_job, 0), tiny_job, tiny_job.load(), stages)


def test_members_are_complete_and_readable_without_pickle(result):
    (sample,) = result.samples
    assert list(sample.members) == [
        "json",
        "track.npy",
        "tsf.npy",
        "crop0.jpg",
        "crop1.jpg",
        "crop2.jpg",
        "crop3.jpg",
        "masks.json",
        "mp4",
    ]
    track = np.load(io.BytesIO(sample.members["track.npy"]), allow_pickle=False)
    assert track.dtype == TRACK_DTYPE
    assert len(track) == 20
    features = np.load(io.BytesIO(sample.members["tsf.npy"]), allow_pickle=False)
    assert features.dtype == np.float16
    assert features.shape[0] == 4
    info = json.loads(sample.members["json"])
    assert info["referent"]["detector"] == "annotation"
    assert info["referent"]["text_used"] is False
    assert "detector_score" in info["referent"]
    assert info["referent"]["detector_score"] is None
    assert info["qa"][0]["answer"] == "The square number 0 moves to the right."


def test_tracked_boxes_follow_the_target(result):
    rows = [r for r in result.samples[0].rows["tracks"] if r["origin"] == "tracked"]
    assert len(rows) == 19
    assert np.mean([r["iou"] for r in rows]) > 0.7
    assert (
        sum(r["origin"] == "annotation" for r in result.samples[0].rows["tracks"]) == 1
    )  # the key frame


def test_representatives_are_kept_frames_in_time_order(result):
    tsf = result.samples[0].rows["tsf"]
    frames = [r["frame"] for r in tsf]
    kept = {r["frame"] for r in result.samples[0].rows["tracks"] if r["kept"]}
    assert frames == sorted(set(frames))
    assert set(frames) <= kept
    assert not any(r["repeated"] for r in tsf)


def test_missing_media_is_a_quarantine_row(tiny_job, stages):
    result = curate_clip(planned(tiny_job, 3), tiny_job, tiny_job.load(), stages)
    assert not result.samples
    (row,) = result.quarantine
    assert (row["reason"], row["retryable"]) == (Reason.MEDIA_MISSING, True)
    assert "3_video.mp4" in row["message"]


def test_one_bad_referent_loses_nothing_else(tiny_job, stages):
    item = planned(tiny_job, 0)
    bad = replace(
        item.referents[0],
        referent_id="bad",
        pointer={"file": "anno_v2/gone.json", "offset": 0, "size": 9},
    )
    result = curate_clip(
        replace(item, referents=(bad, *item.referents)), tiny_job, tiny_job.load(), stages
    )
    assert [s.key for s in result.samples] == [item.referents[0].referent_id]
    assert [(r["referent_id"], r["reason"]) for r in result.quarantine] == [
        ("bad", Reason.ANNOTATION_MISSING)
    ]


def decoded(height: int, width: int, scale: np.ndarray | None = None) -> Decoded:
    ones = np.ones((2, 2), np.float32)
    frames = np.zeros((2, height, width, 3), np.uint8)
    times = np.array([0.0, 0.04])
    factors = ones if scale is None else scale
    return Decoded(frames, factors, "made", 25.0, Fingerprint(0, 0), times)


@pytest.mark.parametrize(
    ("size", "said"), [((40, 20), "20x40, the picture 40x20"), ((2, 2), "2x2, the picture 40x20")]
)
def test_a_mask_of_another_size_than_the_picture_belongs_to_another_picture(size, said):
    masks = [None, rle_encode(np.ones(size, bool))]
    annotation = Annotation(from_xywh(np.array([[0, 0, 2, 2]] * 2)), np.ones(2, bool), masks)
    with pytest.raises(Quarantined, match=f"mask of frame 1 of the clip is {said}") as problem:
        _rescale(annotation, decoded(20, 40))
    assert problem.value.reason == Reason.FRAME_MISMATCH
    assert _rescale(annotation, decoded(*size)) is annotation


def test_pictures_of_another_size_than_stated_or_than_the_first_are_refused_unless_the_dataset_says_so(
    tiny_job,
):
    clip = Clip("c", "lasot", "train", "v", Media("frames", "img", "%08d.jpg", first=1), 0, 2)
    turned = replace(clip, height=40, width=20)
    with pytest.raises(Quarantined, match="pictures are 40x20, the annotation is for 20x40"):
        check_sizes(turned, decoded(20, 40), load_source("lasot"))
    halved = decoded(20, 40, np.array([[1, 1], [2, 2]], np.float32))
    with pytest.raises(
        Quarantined, match=r"img/00000002\.jpg: the image is 20x10, the first one of the clip 40x20"
    ):
        check_sizes(clip, halved, load_source("lasot"))
    check_sizes(turned, halved, load_source("got10k"))  # changes size inside a sequence (007947)
    check_sizes(replace(clip, height=20, width=40), decoded(20, 40), load_source("lasot"))


def test_an_unexpected_error_becomes_a_row_with_its_place(tiny_job, stages):
    class Broken:
        name, version, dim = "broken", "1", 3

        def encode(self, crops):
            return 1 / 0

    result = curate_clip(
        planned(tiny_job, 0), tiny_job, tiny_job.load(), replace(stages, encoder=Broken())
    )
    (row,) = result.quarantine
    assert (row["reason"], row["error_class"]) == (Reason.STAGE_ERROR, "ZeroDivisionError")
    assert "test_curate:" in row["where"]


def test_rules_annotation_boxes_are_kept_as_they_are(stages):
    frames, boxes = moving_square(1, 12)
    annotation = Annotation(from_xywh(boxes), np.ones(12, bool))
    track = make_track(
        frames,
        "",
        stages.detector.detect(frames, "", annotation),
        annotation,
        Rules(boxes="annotation"),
        stages,
    )
    np.testing.assert_array_equal(track.boxes, annotation.boxes)
    assert set(track.origin) == {"annotation"}


def test_rules_gaps_are_bridged_by_the_tracker(stages):
    frames, boxes = moving_square(1, 12)
    exact = from_xywh(boxes)
    given = exact.copy()
    given[5:8] = absent(3)
    annotation = Annotation(given, np.isfinite(given).all(1))
    rules = Rules(boxes="masks", fill_gaps=5, masks="annotation")
    track = make_track(
        frames, "", stages.detector.detect(frames, "", annotation), annotation, rules, stages
    )
    assert [track.origin[t] for t in (4, 5, 6, 7, 8)] == [
        "mask",
        "tracked",
        "tracked",
        "tracked",
        "mask",
    ]
    assert all(o in ORIGINS for o in track.origin)


def test_rules_annotation_masks_win_and_the_rest_is_segmented(stages):
    frames, boxes = moving_square(1, 6)
    exact = from_xywh(boxes)
    square = np.zeros((96, 160), bool)
    square[20:52, 12:44] = True
    annotation = Annotation(exact, np.ones(6, bool), [rle_encode(square)] + [None] * 5)
    rules = Rules(boxes="annotation", masks="annotation")
    track = make_track(
        frames, "", stages.detector.detect(frames, "", annotation), annotation, rules, stages
    )
    masks = make_masks(frames, track, agree(track, annotation, rules), annotation, rules, stages)
    assert [m.origin.split("-")[0] for m in masks if m] == ["annotation"] + ["grabcut"] * 5


def test_no_frame_left_is_disagreement_not_an_empty_sample(tiny_job, stages):
    """A tracker that is wrong in every frame: all are below the IoU threshold, and the row says how many."""

    class Drifts:
        name, version = "drifts", "1"

        def track(self, frames, boxes, key_frame=0, **_):
            n = len(frames)
            return [
                Track(
                    np.tile(np.float32([0, 0, 5, 5]), (n, 1)),
                    np.ones(n, np.float32),
                    ["tracked"] * n,
                )
            ]

    class Detects:
        name, version = "elsewhere", "1"

        def detect(self, frames, caption, annotation, key_frames):
            return Detection(0, np.float32([0, 0, 5, 5]), "elsewhere", text_used=True, score=0.3)

    wrong = replace(stages, tracker=Drifts(), detector=Detects())
    result = curate_clip(planned(tiny_job, 0), tiny_job, tiny_job.load(), wrong)
    assert not result.samples
    (row,) = result.quarantine
    assert (row["reason"], row["stage"]) == (Reason.DISAGREES, "agree")
    assert "20 low_iou" in row["message"]


def test_quarantined_keeps_its_fields_through_pickling_between_processes():
    import pickle

    copy = pickle.loads(pickle.dumps(Quarantined(Reason.TOO_LARGE, "too big", stage="decode")))
    assert (copy.reason, copy.message, copy.stage) == (Reason.TOO_LARGE, "too big", "decode")


def test_running_out_of_memory_is_told_in_the_timings_and_costs_nothing_else(tiny_job, stages):
    """Simulated: an encoder whose device holds two crops at a time."""

    class Small:
        name, version, dim = "small", "1", 3

        def __init__(self):
            self.batcher = Batcher(self.run, 8, "small encoder")

        def run(self, crops):
            if len(crops) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return [crop.mean((0, 1)) for crop in crops]

        def encode(self, crops):
            return np.stack(self.batcher.map(crops)).astype(np.float32)

        def patch_tokens(self, crops):
            return None

    result = curate_clip(
        planned(tiny_job, 0), tiny_job, tiny_job.load(), replace(stages, encoder=Small())
    )
    assert len(result.samples) == 1
    notes = {row["note"] for row in result.timings if row["stage"] == "out of memory"}
    assert notes == {
        "small encoder went on with a batch of 4",
        "small encoder went on with a batch of 2",
    }


def test_patch_tokens_travel_with_the_sample_on_request(tiny_job):
    config = configure(
        "full-tiny",
        ["detect=annotation", "track=csrt", "segment=grabcut", "encode.patch_tokens=true"],
    )
    job = tiny_job.model_copy(update={"config": config})
    (sample,) = curate_clip(planned(job, 0), job, job.load(), build_stages(config)).samples
    tokens = np.load(io.BytesIO(sample.members["tsf_patches.npy"]), allow_pickle=False)
    features = np.load(io.BytesIO(sample.members["tsf.npy"]), allow_pickle=False)
    assert (tokens.dtype, tokens.shape) == (np.float16, (4, 16, 64))
    np.testing.assert_allclose(
        tokens.astype(np.float32).mean(1), features.astype(np.float32), atol=2e-3
    )


RULES = [
    ("min_kept_share", 0.99, "agree", r"\d+ of 20 frames are kept, .*% of those"),
    ("min_mean_iou", 0.9999, "agree", r"mean IoU 0\.\d+ on \d+ frames"),
    ("max_fallback_share", 0.0, "segment", r"\d+ of \d+ masks are fallbacks"),
]


@pytest.mark.parametrize(("rule", "limit", "stage", "words"), RULES)
def test_a_sample_below_a_rule_of_its_source_is_low_quality(
    rule, limit, stage, words, tiny_job, stages
):
    """Each rule alone, at a limit that this clip does not reach; without the rule it is kept."""
    item = planned(tiny_job, 0)
    source = tiny_job.load()
    if rule == "min_kept_share":
        stages = replace(stages, tracker=LosesIt())
    if rule == "max_fallback_share":
        stages = replace(stages, segmenter=GivesUp())
    off = dict.fromkeys(("min_kept_share", "min_mean_iou", "max_fallback_share"))
    for limits, kept in ((off, 1), (off | {rule: limit}, 0)):
        config = source.config.model_copy(update={"sample": SampleRules(**limits)})
        result = curate_clip(item, tiny_job, type(source)(config), stages)
        assert len(result.samples) == kept
        if not kept:
            [row] = result.quarantine
            assert (row["reason"], row["stage"]) == ("low_quality", stage)
            assert re.search(f"{words}.*; sample.{rule} is {limit:g}", row["message"])


def test_a_fifth_of_the_frames_is_the_least_by_default(tiny_job):
    assert tiny_job.load().config.sample == SampleRules(
        min_kept_share=0.2, min_mean_iou=None, max_fallback_share=None
    )


def test_a_sample_says_what_its_iou_rests_on_and_which_masks_are_fallbacks(tiny_job, stages):
    result = curate_clip(
        planned(tiny_job, 0), tiny_job, tiny_job.load(), replace(stages, segmenter=GivesUp())
    )
    [sample] = result.samples
    [referent] = sample.rows["referents"]
    compared = [
        row["kept"]
        for row in sample.rows["tracks"]
        if row["origin"] == "tracked" and np.isfinite(row["iou"])
    ]
    assert referent["n_compared"] == len(compared)
    assert referent["iou_coverage"] == sum(compared) / referent["n_kept"]
    track = np.load(io.BytesIO(sample.members["track.npy"]), allow_pickle=False)
    assert track["fallback"].tolist() == track["kept"].tolist()
    annotated = [row["ann_x1"] for row in sample.rows["tracks"]]
    assert [None if np.isnan(x) else x for x in track["ann_x1"].tolist()] == annotated


class LosesIt:
    """A tracker that keeps the first quarter only."""

    name, version = "loses-it", "1"

    def track(self, frames, boxes, start, **_options):
        track = Track.empty(len(frames))
        track.boxes[: len(frames) // 4] = boxes[0]
        track.boxes[start] = boxes[0]
        track.origin[: len(frames) // 4] = ["tracked"] * (len(frames) // 4)
        return [track]


class GivesUp:
    """A segmenter whose masks are all fallbacks."""

    name, version = "gives-up", "1"

    def segment(self, frames, boxes):
        full = rle_encode(np.ones(frames.shape[1:3], bool))
        return [Segment(full, "gives-up-fallback") if is_box(b) else None for b in boxes]
