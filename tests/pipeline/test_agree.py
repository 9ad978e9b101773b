"""Every frame that is dropped has its reason, and nothing of the dataset's own is dropped for disagreeing with it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.agree import (
    DROPPED,
    TrackQuality,
    agree,
    fill_gaps,
    kept_share,
    track_quality,
)
from pipeline.sources.base import Rules
from schemas.geometry import absent, iou
from schemas.records import Annotation, Track

HERE, OFF, FAR = (0, 0, 10, 10), (4, 0, 14, 10), (30, 30, 40, 40)  # IoU with HERE: 1, 0.43, 0
ALL = Rules(min_iou=None)


def boxes_of(rows) -> np.ndarray:
    boxes = absent(len(rows))
    for t, row in enumerate(rows):
        if row is not None:
            boxes[t] = row
    return boxes


def make_track(rows, origin="tracked") -> Track:
    origins = [origin if row is not None else "none" for row in rows]
    return Track(boxes_of(rows), np.full(len(rows), 0.5, np.float32), origins)


def make_annotation(rows, known=None) -> Annotation:
    return Annotation(
        boxes_of(rows), np.array([True] * len(rows) if known is None else known, bool)
    )


def test_each_reason():
    track = make_track([HERE, None, OFF, HERE, HERE])
    annotation = make_annotation([HERE, HERE, HERE, None, None], [True, True, True, True, False])
    result = agree(track, annotation, Rules(min_iou=0.5))
    assert result.dropped == ["", "no_box", "low_iou", "annotated_absent", "unsupported"]
    assert result.kept.tolist() == [True, False, False, False, False]
    assert np.isnan(result.iou).tolist() == [False, True, False, True, True]
    assert result.iou.dtype == np.float32


def test_the_threshold_itself_is_kept():
    track, annotation = make_track([(0, 0, 10, 5)]), make_annotation([HERE])
    assert agree(track, annotation, Rules(min_iou=0.5)).kept.all()
    assert not agree(track, annotation, Rules(min_iou=0.51)).kept.any()


def test_no_threshold_keeps_every_overlap():
    assert agree(make_track([FAR, OFF]), make_annotation([HERE, HERE]), ALL).kept.all()


@pytest.mark.parametrize("origin", ["annotation", "mask"])
def test_boxes_of_the_dataset_are_never_dropped_for_disagreeing(origin):
    track = make_track([FAR, FAR], origin)
    assert agree(track, make_annotation([HERE, None]), Rules(min_iou=0.9)).dropped == ["", ""]


def test_annotated_frames_survive_thinning():
    track = make_track([HERE] * 12)
    annotated = {1, 7, 11}
    annotation = make_annotation(
        [HERE if t in annotated else None for t in range(12)], [t in annotated for t in range(12)]
    )
    result = agree(track, annotation, Rules(max_kept_frames=6))
    assert result.kept.sum() == 6
    assert annotated <= set(np.flatnonzero(result.kept))
    assert {0, 10} <= set(
        np.flatnonzero(result.kept)
    )  # evenly spaced over the other nine, ends included
    assert result.dropped.count("thinned") == 6
    fewer = agree(track, annotation, Rules(max_kept_frames=2))
    assert np.flatnonzero(fewer.kept).tolist() == [1, 11]


rows = st.lists(st.sampled_from([None, HERE, OFF, FAR]), min_size=1, max_size=25)


@given(rows, st.data())
def test_a_frame_is_kept_or_has_a_reason(track_rows, data):
    n = len(track_rows)
    annotation_rows = data.draw(
        st.lists(st.sampled_from([None, HERE, OFF]), min_size=n, max_size=n)
    )
    known = [row is not None or data.draw(st.booleans()) for row in annotation_rows]
    rules = Rules(
        min_iou=data.draw(st.none() | st.floats(0, 1)),
        max_kept_frames=data.draw(st.none() | st.integers(0, 30)),
    )
    track, annotation = make_track(track_rows), make_annotation(annotation_rows, known)
    result = agree(track, annotation, rules)
    assert [d == "" for d in result.dropped] == result.kept.tolist()
    assert set(result.dropped) <= set(DROPPED)
    assert not (result.kept & ~track.visible).any()
    if rules.max_kept_frames is not None:
        assert result.kept.sum() <= rules.max_kept_frames
        before = agree(track, annotation, rules.model_copy(update={"max_kept_frames": None})).kept
        assert result.kept.sum() == min(before.sum(), rules.max_kept_frames)
    if rules.min_iou is not None:
        assert not (result.iou[result.kept] < rules.min_iou).any()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="track has 2 frames, its annotation 3"):
        agree(make_track([HERE] * 2), make_annotation([HERE] * 3), ALL)


def test_frames_that_the_dataset_does_not_know_need_support_from_the_nearest_that_it_does():
    """A track on the wrong person is not kept where nobody annotated the right one."""
    track = make_track([FAR] * 4 + [HERE] * 4)
    known = [False, True, False, True, True, False, False, False]
    annotation = make_annotation([HERE if k else None for k in known], known)
    result = agree(track, annotation, Rules(min_iou=0.5))
    assert result.dropped == ["unsupported", "low_iou", "unsupported", "low_iou", "", "", "", ""]
    unknown = agree(track, make_annotation([None] * 8, [False] * 8), ALL)
    assert unknown.kept.all()


# --- bridging gaps ---


class Standing:
    """A tracker that leaves the box where it is, and loses it in frames whose first pixel is white."""

    name, version = "standing", "1"

    def __init__(self):
        self.calls = 0

    def track(self, frames, boxes, key_frame=0, **_):
        self.calls += 1
        lost = frames[:, 0, 0, 0] == 255
        rows = [None if gone else tuple(boxes[0]) for gone in lost]
        return [make_track(rows)]


def pictures(n, lost=()):
    frames = np.zeros((n, 50, 50, 3), np.uint8)
    frames[list(lost)] = 255
    return frames


def given_track(rows) -> Track:
    return make_track(rows, "annotation")


def unknown_where_absent(rows) -> Annotation:
    return make_annotation(rows, [row is not None for row in rows])


def test_a_short_gap_is_bridged():
    rows = [HERE, None, None, HERE, HERE]
    track = given_track(rows)
    filled = fill_gaps(track, unknown_where_absent(rows), pictures(5), Standing(), 2)
    assert filled.visible.all()
    assert filled.origin == ["annotation", "tracked", "tracked", "annotation", "annotation"]
    assert (filled.boxes[1] == HERE).all()
    assert track.origin[1] == "none"  # the given track is left as it was


def test_what_is_not_bridged():
    """Long gaps, the ends, what the dataset calls absent, and gaps that lead elsewhere."""
    tracker = Standing()
    for rows, known in (
        ([HERE, None, None, None, HERE], None),
        ([None, HERE, HERE, None, None], None),
        ([HERE, None, HERE, HERE, HERE], [True] * 5),
        ([HERE, None, None, HERE, HERE], [True, True, False, True, True]),
    ):
        annotation = unknown_where_absent(rows) if known is None else make_annotation(rows, known)
        filled = fill_gaps(given_track(rows), annotation, pictures(5), tracker, 2)
        assert filled.visible.tolist() == [row is not None for row in rows]
    assert tracker.calls == 0
    rows = [HERE, None, FAR]
    filled = fill_gaps(given_track(rows), unknown_where_absent(rows), pictures(3), tracker, 2)
    assert not filled.visible[1]


def test_frames_where_the_tracker_loses_the_target_stay_empty():
    rows = [HERE, None, None, None, HERE]
    annotation = unknown_where_absent(rows)
    filled = fill_gaps(given_track(rows), annotation, pictures(5, lost=[2]), Standing(), 3)
    assert filled.visible.tolist() == [True, True, False, True, True]
    assert filled.origin[2] == "none"
    lost_at_the_end = fill_gaps(given_track(rows), annotation, pictures(5, lost=[4]), Standing(), 3)
    assert not lost_at_the_end.visible[1:4].any()


def test_bridged_frames_are_kept():
    rows = [HERE, None, HERE]
    annotation = unknown_where_absent(rows)
    filled = fill_gaps(given_track(rows), annotation, pictures(3), Standing(), 1)
    assert agree(filled, annotation, Rules(boxes="masks")).kept.all()
    assert iou(filled.boxes[1], HERE) == 1


def test_quality_says_how_many_of_the_kept_frames_were_compared():
    """One annotated frame of ten that are kept: the IoU of the other nine is not known."""
    track = make_track([HERE] * 10)
    annotation = make_annotation([HERE] + [None] * 9, [True] + [False] * 9)
    quality = track_quality(track, agree(track, annotation, Rules()), Rules())
    assert quality == TrackQuality(1.0, 1, 0.1)


def test_quality_counts_dropped_frames_in_its_mean_and_not_in_its_coverage():
    track = make_track([HERE, HERE, FAR, None])
    annotation = make_annotation([HERE] * 4)
    quality = track_quality(track, agree(track, annotation, Rules(min_iou=0.5)), Rules())
    assert quality == TrackQuality(pytest.approx(2 / 3), 3, 1.0)


def test_quality_of_a_key_frame_alone_is_unknown_and_of_given_boxes_is_none():
    alone = make_track([HERE] * 4)
    alone.origin[0] = "annotation"
    annotation = make_annotation([HERE, None, None, None], [True, False, False, False])
    agreement = agree(alone, annotation, Rules())
    assert track_quality(alone, agreement, Rules()) == TrackQuality(None, 0, 0.0)
    given_boxes = make_track([HERE] * 4, "annotation")
    agreement = agree(given_boxes, make_annotation([HERE] * 4), Rules(boxes="annotation"))
    rules = Rules(boxes="annotation")
    assert track_quality(given_boxes, agreement, rules) == TrackQuality(None, 0, None)


@pytest.mark.parametrize(
    ("track", "annotated", "known", "rules", "expected"),
    [
        ([HERE, FAR, FAR, None], [HERE] * 4, None, Rules(min_iou=0.5), 1 / 4),
        ([HERE, None, None, None], [HERE, None, None, None], None, Rules(), 1),  # absent: right
        ([HERE, None], [HERE, None], [True, False], Rules(), 1 / 2),  # not known: lost
        ([HERE] * 4, [HERE] * 4, None, Rules(max_kept_frames=1), 1),  # thinned out, and good
        ([FAR, FAR], [HERE, HERE], None, Rules(min_iou=0.5), 0),
    ],
)
def test_the_kept_share_is_of_frames_in_which_the_target_may_be(
    track, annotated, known, rules, expected
):
    annotation = make_annotation(annotated, known)
    agreement = agree(make_track(track), annotation, rules)
    assert kept_share(agreement, annotation) == expected
