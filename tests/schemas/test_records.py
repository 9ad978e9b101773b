"""Records: spans of frames, names of images, and failures that survive a process boundary."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import records as r
from schemas.geometry import absent


def make_clip(start, stop, step=1):
    return r.Clip(
        "c", "lasot", "train", "v", r.Media("frames", "img", "%08d.jpg", 1), start, stop, step
    )


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 9))
def test_a_clip_has_as_many_frames_as_its_span(start, length, step):
    clip = make_clip(start, start + length, step)
    assert len(clip) == len(list(clip.source_frames)) == -(-length // step)
    assert all(start <= f < start + length and (f - start) % step == 0 for f in clip.source_frames)


def test_images_are_named_by_number_or_by_list():
    assert make_clip(0, 3).media.image(0) == "img/00000001.jpg"
    assert make_clip(0, 3).media.image(41) == "img/00000042.jpg"
    assert r.Media("frames", "img", names=("a.jpg", "c.jpg")).image(1) == "img/c.jpg"


@given(st.sampled_from(list(r.Reason)), st.text(), st.sampled_from(["ingest", "decode", "track"]))
def test_a_quarantine_keeps_its_fields_across_processes(reason, message, stage):
    there = pickle.loads(pickle.dumps(r.Quarantined(reason, message, stage=stage)))
    assert (there.reason, there.message, there.stage, str(there)) == (
        reason,
        message,
        stage,
        message,
    )


def test_only_what_can_change_by_itself_is_retryable():
    assert r.Reason.MEDIA_MISSING in r.RETRYABLE
    assert r.Reason.WORKER_DIED in r.RETRYABLE
    assert r.Reason.ANNOTATION_INVALID not in r.RETRYABLE


@pytest.mark.parametrize("key", ["a", "hcstvg-train-000000", "a_b-9"])
def test_keys_that_are_safe_in_a_tar(key):
    assert r.KEY.fullmatch(key)


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "A", "ä", "a b", "a\n"])
def test_keys_that_are_not(key):
    assert not r.KEY.fullmatch(key)


def test_an_annotation_has_one_entry_per_frame():
    with pytest.raises(ValueError, match="boxes has 3 frames, known has 2"):
        r.Annotation(absent(3), np.ones(2, bool))
    with pytest.raises(ValueError, match="masks has 1 frames"):
        r.Annotation(absent(2), np.ones(2, bool), masks=[None])
    with pytest.raises(ValueError, match="raw_boxes"):
        r.Annotation(absent(2), np.ones(2, bool), raw_boxes=absent(1))


def test_known_and_visible_are_two_things():
    """A frame can be looked at and empty; it cannot have a box that nobody looked at."""
    boxes = absent(3)
    boxes[1] = 0, 0, 4, 4
    annotation = r.Annotation(boxes, np.array([True, True, False]))
    assert annotation.visible.tolist() == [False, True, False]


@given(st.integers(0, 20))
def test_an_empty_track_has_no_box_anywhere(n):
    track = r.Track.empty(n)
    assert len(track.boxes) == len(track.score) == len(track.origin) == n
    assert not track.visible.any()
    assert set(track.origin) <= {"none"}
    assert "none" in r.ORIGINS
