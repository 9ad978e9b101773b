"""Masks from boxes: inside the box, the same whatever ran before, and honest about giving up."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.segment.grabcut import GrabCutConfig, GrabCutSegmenter
from schemas.geometry import absent, rle_area, rle_box, rle_check, rle_decode, rle_encode, rle_iou

rng = np.random.default_rng(0)


def disc(height=120, width=160, x=80, y=60, radius=25):
    """A noisy red disc on noisy green, its mask and its box."""
    mask = np.zeros((height, width), np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    frame = np.where(mask[..., None], (200, 40, 40), (40, 140, 60)) + rng.integers(
        -25, 25, (height, width, 3)
    )
    rle = rle_encode(mask.astype(bool))
    return np.clip(frame, 0, 255).astype(np.uint8), rle, rle_box(rle)


def segment(frame, box, **config):
    [result] = GrabCutSegmenter(GrabCutConfig(**config)).segment(
        frame[None], np.asarray(box, np.float32)[None]
    )
    return result


def test_it_finds_the_outline():
    frame, truth, box = disc()
    result = segment(frame, box)
    assert result.origin == "grabcut"
    assert rle_iou(result.mask, truth) > 0.93


@pytest.mark.parametrize("scale", [1, 4])
def test_it_finds_it_in_large_frames_too(scale):
    frame, _, box = disc()
    truth = rle_encode(np.kron(disc()[1] and rle_decode(disc()[1]), np.ones((scale, scale), bool)))
    result = segment(np.kron(frame, np.ones((scale, scale, 1), np.uint8)), box * scale)
    assert rle_iou(result.mask, truth) > 0.9


def test_a_box_that_is_a_little_too_small_is_enlarged_first():
    frame, truth, box = disc()
    tight = box + np.array([2, 2, -2, -2], np.float32)
    assert rle_iou(segment(frame, tight).mask, truth) > rle_iou(
        segment(frame, tight, grow=1.0).mask, truth
    )


def test_nothing_is_outside_the_enlarged_box():
    frame, _, (x1, y1, x2, y2) = disc()
    box = x1 + 10, y1 + 10, x2 - 5, y2
    mask = rle_decode(segment(frame, box).mask)
    width, height = box[2] - box[0], box[3] - box[1]
    ys, xs = np.nonzero(mask)
    assert xs.min() >= np.floor(box[0] - 0.075 * width)
    assert xs.max() < np.ceil(box[2] + 0.075 * width)
    assert ys.min() >= np.floor(box[1] - 0.075 * height)
    assert ys.max() < np.ceil(box[3] + 0.075 * height)


def test_frames_without_a_box_have_no_mask():
    frame, _, box = disc()
    boxes = np.stack([box, absent(1)[0], box + 900])
    results = GrabCutSegmenter().segment(np.stack([frame] * 3), boxes)
    assert [r is not None for r in results] == [True, False, False]
    with pytest.raises(ValueError, match="2 frames, but 3 boxes"):
        GrabCutSegmenter().segment(np.stack([frame] * 2), boxes)


@pytest.mark.parametrize("what", ["a flat picture", "the whole frame"])
def test_giving_up_is_marked(what):
    frame, _, box = disc()
    if what == "a flat picture":
        frame = np.full_like(frame, 90)
    else:
        box = np.array([0, 0, 160, 120], np.float32)
    result = segment(frame, box)
    assert result.origin == "grabcut-fallback"
    assert rle_box(result.mask).tolist() == pytest.approx(box.tolist(), abs=1)
    share = rle_area(result.mask) / np.prod(box[2:] - box[:2])
    assert share == pytest.approx(np.pi / 4, abs=0.03)


def test_a_mask_does_not_depend_on_what_ran_before():
    """GrabCut draws random numbers from a generator that all of OpenCV shares."""
    frame, _, box = disc()
    one = segment(frame, box)
    cv2.setRNGSeed(12345)
    other = rng.integers(0, 255, frame.shape, np.uint8)
    results = GrabCutSegmenter().segment(np.stack([other, frame]), np.stack([box, box]))
    assert results[1] == one


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    *[st.floats(-20, 80)] * 2,
    *[st.floats(0.01, 90)] * 2,
    st.booleans(),
)
def test_any_box_gives_a_whole_mask_or_none(height, width, x, y, w, h, flat):
    noise = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
    result = segment(noise // 255 if flat else noise, [x, y, x + w, y + h])
    if result is None:
        assert x >= width or y >= height or x + w <= 0 or y + h <= 0
        return
    assert rle_check(dict(result.mask), (height, width)) == result.mask
    assert rle_area(result.mask) > 0
    assert result.origin in ("grabcut", "grabcut-fallback")
