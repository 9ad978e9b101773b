"""Every conversion there and back, and every kind of broken mask refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas import geometry as g

pixel = st.integers(-50, 2000)
side = st.integers(1, 2000)
xywh = st.lists(st.tuples(pixel, pixel, side, side), min_size=1, max_size=8).map(
    lambda v: np.array(v, np.float32)
)
any_box = st.lists(
    st.tuples(*[st.one_of(st.integers(-20, 60).map(float), st.just(float("nan")))] * 4),
    min_size=1,
    max_size=8,
).map(lambda v: np.array(v, np.float32))
base = st.sampled_from([0, 1])
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


# --- boxes ---


@given(xywh, base)
def test_xywh_there_and_back(boxes, base):
    assert np.array_equal(g.to_xywh(g.from_xywh(boxes, base=base), base=base), boxes)


@given(xywh, base, st.booleans())
def test_xyxy_there_and_back(boxes, base, inclusive):
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    there = g.from_xyxy(corners, base=base, inclusive=inclusive)
    assert there.dtype == np.float32
    assert np.array_equal(g.to_xyxy(there, base=base, inclusive=inclusive), corners)


@given(xywh, base)
def test_all_ways_to_write_a_box_agree(boxes, base):
    """The same pixels as x, y, w, h, as inclusive corners and as half-open corners."""
    ours = g.from_xywh(boxes, base=base)
    last = boxes[:, :2] + boxes[:, 2:] - 1
    assert np.array_equal(
        ours, g.from_xyxy(np.concatenate([boxes[:, :2], last], 1), base=base, inclusive=True)
    )
    assert np.array_equal(ours, g.from_xyxy(np.concatenate([boxes[:, :2], last + 1], 1), base=base))
    assert np.array_equal(g.area(ours), boxes[:, 2].astype(np.float64) * boxes[:, 3])


def test_a_box_of_one_pixel():
    """The first pixel: 1,1,1,1 in 1-based xywh, and as inclusive corners, is 0,0,1,1 here."""
    one = np.array([0, 0, 1, 1], np.float32)
    assert np.array_equal(g.from_xywh([1, 1, 1, 1], base=1), one)
    assert np.array_equal(g.from_xyxy([1, 1, 1, 1], base=1, inclusive=True), one)
    assert g.is_box(one)
    assert g.area(one) == 1
    assert g.iou(one, one) == 1
    assert np.array_equal(g.rle_box(g.rle_encode(np.array([[True, False], [False, False]]))), one)


@given(any_box)
def test_an_absent_box_is_no_box_and_has_no_area(boxes):
    there = g.is_box(boxes)
    assert not there[np.isnan(boxes).any(1)].any()
    assert np.array_equal(there, g.area(boxes) > 0)
    assert not g.is_box(g.absent(len(boxes))).any()


@pytest.mark.parametrize(
    "box", [[5, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [0, 0, np.inf, 1], [np.nan, 0, 1, 1]]
)
def test_degenerate_boxes_are_no_boxes(box):
    assert not g.is_box(box)
    assert g.area(box) == 0


@given(any_box)
def test_nan_survives_conversions(boxes):
    for there in (
        g.from_xywh(boxes, base=1),
        g.from_xyxy(boxes, base=1, inclusive=True),
        g.to_xywh(boxes),
    ):
        assert np.isnan(there[np.isnan(boxes).all(1)]).all()


@pytest.mark.parametrize(
    "convert", [g.from_xywh, g.from_xyxy, g.to_xywh, g.to_xyxy, g.is_box, g.area]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_wrong_shapes_are_named(convert, shape):
    with pytest.raises(ValueError, match="last axis of 4"):
        convert(np.zeros(shape))


@given(any_box, st.integers(1, 40), st.integers(1, 40))
def test_clipping_stays_inside_and_is_done_once(boxes, height, width):
    cut = g.clip_boxes(boxes, height, width)
    there = g.is_box(cut)
    assert np.isnan(cut[~there]).all()
    assert (cut[there] >= 0).all()
    assert (cut[there] <= [width, height, width, height]).all()
    assert np.array_equal(g.clip_boxes(cut, height, width), cut, equal_nan=True)
    assert (g.area(cut) <= g.area(boxes)).all()
    assert not there[~g.is_box(boxes)].any()


@given(any_box, any_box)
def test_iou_is_symmetric_bounded_and_one_for_itself(a, b):
    n = min(len(a), len(b))
    forth, back = g.iou(a[:n], b[:n]), g.iou(b[:n], a[:n])
    assert np.array_equal(forth, back, equal_nan=True)
    both = g.is_box(a[:n]) & g.is_box(b[:n])
    assert np.array_equal(np.isnan(forth), ~both)
    assert ((forth[both] >= 0) & (forth[both] <= 1)).all()
    assert (g.iou(a, a)[g.is_box(a)] == 1).all()


small = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.tuples(small, small))
def test_iou_counts_pixels(corners):
    """The definition, on pixels: half-open boxes of whole numbers cover exactly these."""
    boxes = np.array(corners, np.float32)
    pixels = np.zeros((2, 12, 12), bool)
    for mask, (x1, y1, x2, y2) in zip(pixels, corners, strict=True):
        mask[y1:y2, x1:x2] = True
    expected = (pixels[0] & pixels[1]).sum() / (pixels[0] | pixels[1]).sum()
    assert g.iou(boxes[0], boxes[1]) == pytest.approx(expected, abs=1e-6)


def test_one_box_against_many():
    assert np.allclose(
        g.iou([0, 0, 2, 2], [[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]]), [1, 1 / 3, 0]
    )


# --- masks ---


@given(masks)
def test_rle_there_and_back(mask):
    rle = g.rle_encode(mask)
    assert rle["size"] == list(mask.shape)
    assert g.rle_check(dict(rle), mask.shape) == rle
    assert np.array_equal(g.rle_decode(rle), mask)
    assert g.rle_area(rle) == mask.sum()


@given(masks)
def test_the_box_of_a_mask_is_tight(mask):
    box = g.rle_box(g.rle_encode(mask))
    assert box.dtype == np.float32
    if not mask.any():
        assert np.isnan(box).all()
        return
    ys, xs = np.nonzero(mask)
    assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@given(masks, st.data())
def test_union_and_iou_of_masks(a, data):
    b = data.draw(hnp.arrays(bool, a.shape))
    both = [g.rle_encode(a), g.rle_encode(b)]
    assert np.array_equal(g.rle_decode(g.rle_union(both)), a | b)
    expected = (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0
    assert g.rle_iou(*both) == pytest.approx(expected)
    assert g.rle_iou(*reversed(both)) == pytest.approx(expected)


def test_masks_of_different_sizes_do_not_mix():
    one, two = g.rle_encode(np.ones((2, 3), bool)), g.rle_encode(np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="differ"):
        g.rle_union([one, two])
    with pytest.raises(ValueError, match="differ"):
        g.rle_iou(one, two)
    with pytest.raises(ValueError, match="two axes"):
        g.rle_encode(np.ones((2, 3, 1), bool))


@given(masks, st.data())
def test_a_changed_text_is_refused_or_still_a_whole_mask(mask, data):
    """Whatever is put in place of one character: what passes the check decodes to a mask of the stated size."""
    rle = g.rle_encode(mask)
    at = data.draw(st.integers(0, len(rle["counts"]) - 1))
    character = data.draw(st.characters(max_codepoint=0x2FF))
    broken = {
        "size": rle["size"],
        "counts": rle["counts"][:at] + character + rle["counts"][at + 1 :],
    }
    try:
        checked = g.rle_check(broken)
    except ValueError:
        return
    assert g.rle_decode(checked).shape == mask.shape
    assert g.rle_area(checked) <= mask.size


@given(masks, st.data())
def test_a_shortened_text_is_refused(mask, data):
    rle = g.rle_encode(mask)
    length = data.draw(st.integers(0, len(rle["counts"]) - 1))
    with pytest.raises(ValueError, match="RLE"):
        g.rle_check({"size": rle["size"], "counts": rle["counts"][:length]})


@given(masks, st.binary(max_size=30))
def test_noise_is_refused_or_a_whole_mask(mask, noise):
    try:
        checked = g.rle_check({"size": list(mask.shape), "counts": noise})
    except ValueError:
        return
    assert g.rle_decode(checked).shape == mask.shape


@given(masks)
def test_another_size_is_refused(mask):
    rle = g.rle_encode(mask)
    height, width = rle["size"]
    with pytest.raises(ValueError, match="add up"):
        g.rle_check({"size": [height + 1, width], "counts": rle["counts"]})
    with pytest.raises(ValueError, match="differs from the frame's"):
        g.rle_check(rle, (height, width + 1))


@pytest.mark.parametrize(
    "size",
    [
        None,
        [3],
        [3, 4, 5],
        ["3", 4],
        [3.0, 4],
        [0, 4],
        [-3, -4],
        [True, 12],
        {"h": 3},
        "34",
        [1 << 20, 1 << 20],
    ],
)
def test_implausible_sizes_are_refused_before_anything_is_allocated(size):
    with pytest.raises(ValueError, match="RLE"):
        g.rle_check({"size": size, "counts": "<"})


@pytest.mark.parametrize(
    "rle", [None, 3, "text", [], {}, {"size": [3, 4]}, {"size": [3, 4], "counts": [12]}]
)
def test_what_is_no_rle_is_refused(rle):
    with pytest.raises(ValueError, match="RLE"):
        g.rle_check(rle)


def test_runs_too_long_for_any_number_are_refused():
    with pytest.raises(ValueError, match="longer than any mask"):
        g.rle_check({"size": [3, 4], "counts": "o" * 12 + "0"})


def test_bytes_count_as_text():
    rle = g.rle_encode(np.eye(5, dtype=bool))
    assert g.rle_check({"size": (5, 5), "counts": rle["counts"].encode()}) == rle


@pytest.mark.parametrize("corner", [np.inf, -np.inf, np.nan])
def test_a_corner_that_is_not_finite_does_not_become_a_box_at_the_border(corner):
    assert not g.is_box(g.clip_boxes([0, 0, corner, 5], 10, 10))
