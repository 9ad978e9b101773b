"""The key box is the dataset's own, from a frame that is good to start from, and says so."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detect.annotation import AnnotationDetector, key_frame, key_frames
from schemas.geometry import absent
from schemas.records import Annotation, Quarantined, Reason


def annotate(sides: list[float]) -> Annotation:
    """One square box per frame of the given side; 0 for none."""
    boxes = absent(len(sides))
    for t, side in enumerate(sides):
        if side:
            boxes[t] = 5, 5, 5 + side, 5 + side
    return Annotation(boxes, np.ones(len(sides), bool))


def test_it_starts_in_the_middle_of_the_visible_frames():
    assert key_frame(annotate([0] * 10 + [20] * 11)) == 15


def test_it_avoids_a_frame_where_the_target_is_half_hidden():
    sides = [20.0] * 21
    sides[9:12] = [8.0] * 3
    assert key_frame(annotate(sides)) in (8, 12)


def test_it_stays_in_the_central_half():
    assert 5 <= key_frame(annotate([50.0] * 3 + [10.0] * 15 + [60.0] * 3)) <= 15


@given(st.lists(st.sampled_from([0.0, 3.0, 10.0, 30.0]), min_size=1, max_size=40))
def test_the_key_frame_has_a_box_or_there_is_none_to_be_had(sides):
    annotation = annotate(sides)
    if not any(sides):
        with pytest.raises(Quarantined) as caught:
            key_frame(annotation)
        assert (caught.value.reason, caught.value.stage) == (Reason.NO_TARGET, "detect")
        return
    assert annotation.visible[key_frame(annotation)]


def test_it_does_not_pretend_to_have_searched():
    annotation = annotate([20.0] * 5)
    found = AnnotationDetector().detect(
        np.zeros((5, 40, 40, 3), np.uint8), "the red one", annotation
    )
    assert (found.detector, found.text_used, found.score) == ("annotation", False, None)
    assert found.box.tolist() == annotation.boxes[found.frame].tolist()
    found.box[0] = -1
    assert (annotation.boxes[:, 0] == 5).all()


def test_it_finds_nothing_again():
    assert AnnotationDetector().find(np.zeros((40, 40, 3), np.uint8), "the red one") is None


def test_several_key_frames_do_not_change_what_is_given():
    annotation = annotate([20.0] * 9)
    frames = np.zeros((9, 40, 40, 3), np.uint8)
    one, three = (
        AnnotationDetector().detect(frames, "the red one", annotation, key_frames=n) for n in (1, 3)
    )
    assert one.frame == three.frame == key_frame(annotation)


def test_key_frames_come_from_equal_runs_of_visible_frames():
    sides = [0.0] * 5 + [20.0] * 30
    assert key_frames(annotate(sides), 3) == [10, 20, 30]
    sides[20] = 8.0  # hidden in the middle of the second run
    assert key_frames(annotate(sides), 3) == [10, 19, 30]


def test_there_are_no_more_key_frames_than_visible_ones():
    assert key_frames(annotate([0.0, 9.0, 0.0, 9.0]), 5) == [1, 3]
    with pytest.raises(ValueError, match="at least one"):
        key_frames(annotate([9.0]), 0)


@given(
    st.lists(st.sampled_from([0.0, 3.0, 30.0]), min_size=1, max_size=40).filter(any),
    st.integers(1, 6),
)
def test_key_frames_are_visible_ascending_and_distinct(sides, n):
    annotation = annotate(sides)
    found = key_frames(annotation, n)
    assert found == sorted(set(found))
    assert len(found) == min(n, annotation.visible.sum())
    assert annotation.visible[found].all()
    assert key_frames(annotation, 1) == [key_frame(annotation)]
