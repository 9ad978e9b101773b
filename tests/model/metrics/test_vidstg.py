"""Box scores of VidSTG: the released script's numbers, and a perfect mask that scores 1 when corrected."""

import json

import numpy as np
import pytest

from model.metrics import mask_boxes, vidstg, vidstg_miou, vidstg_score

TOLERANCE = 1e-6


def test_released_numbers(shared):
    folder = shared / "golden/metrics"
    data, arrays = (
        json.loads((folder / "vidstg.json").read_text()),
        np.load(folder / "vidstg_masks.npz"),
    )
    shape = data["frames"], data["height"], data["width"]
    by_type = {}
    for case in data["cases"]:
        name, expected = case["name"], case["expected"]
        masks = np.unpackbits(arrays[name], count=int(np.prod(shape))).reshape(shape)
        np.testing.assert_allclose(
            mask_boxes(masks), expected["pred_boxes_xyxy"], atol=TOLERANCE, err_msg=name
        )
        span, pred_span = case["gt_first_last_frame"], case.get("pred_first_last_frame")
        score = vidstg_score(masks, case["gt_boxes_xyxy"], span, pred_span=pred_span)
        np.testing.assert_allclose(
            score.iou_t, expected["iou_per_scored_frame"], atol=TOLERANCE, err_msg=name
        )
        assert score.gt_viou == pytest.approx(expected["gt_viou"], abs=TOLERANCE), name
        assert (score.gt_viou_03, score.gt_viou_05) == (
            expected["gt_viou@0.3"],
            expected["gt_viou@0.5"],
        ), name
        assert (score.tiou, score.viou) == (
            pytest.approx(expected.get("tiou"), abs=TOLERANCE),
            pytest.approx(expected.get("viou"), abs=TOLERANCE),
        ), name
        assert vidstg_miou(masks, case["gt_boxes_xyxy"], span) == score.gt_viou
        by_type.setdefault(case["qtype"], []).append(score)
    for kind, expected in data["expected_summary_over_cases"].items():
        assert vidstg(by_type[kind]) == pytest.approx(expected, abs=TOLERANCE), kind


@pytest.fixture
def square():
    """Masks, and the half-open boxes that fit them."""
    masks, boxes = np.zeros((6, 40, 60), bool), np.zeros((6, 4))
    for t in range(6):
        masks[t, 10:20, 5 + t : 25 + t] = True
        boxes[t] = 5 + t, 10, 25 + t, 20
    return masks, boxes


def test_planted_predictions(square):
    masks, boxes = square
    assert vidstg_miou(masks, boxes) == pytest.approx(19 * 9 / 200)
    assert vidstg_miou(masks, boxes, rules="corrected") == 1
    assert vidstg_miou(boxes, boxes) == 1
    assert vidstg_miou(np.roll(masks, 10, axis=2), boxes, rules="corrected") == pytest.approx(1 / 3)
    for rules in ("official", "corrected"):
        assert vidstg_miou(np.zeros_like(masks), boxes, rules=rules) == 0


def test_specks_do_not_widen_a_box(square):
    """Of exactly 20 px: official as the reference ran, corrected as it was written."""
    masks, boxes = square
    masks[:, 30:34, 45:50] = True
    boxes[:, 2:] = 50, 34
    assert vidstg_miou(masks, boxes, rules="corrected") == 1
    assert mask_boxes(masks, min_area=20)[0].tolist() == [5, 10, 49, 33]
    assert mask_boxes(masks)[0].tolist() == [5, 10, 24, 19]
    masks[:, 30, 45] = False
    assert mask_boxes(masks, "corrected")[0].tolist() == [5, 10, 25, 20]


def test_only_the_annotated_span_counts(square):
    masks, boxes = square
    masks[:2] = False
    assert vidstg_miou(masks, boxes, (2, 5), rules="corrected") == 1
    assert vidstg_miou(masks, boxes, (0, 3), rules="corrected") == 0.5


def test_temporal_scores(square):
    masks, boxes = square
    same = vidstg_score(masks, boxes, (1, 4), "corrected", pred_span=(1, 4))
    assert (same.tiou, same.viou) == (1, 1)
    overlapping = vidstg_score(masks, boxes, (1, 4), "corrected", pred_span=(3, 5))
    assert (overlapping.tiou, overlapping.viou) == pytest.approx((2 / 5, 2 / 5))
    assert vidstg_score(masks, boxes, (0, 1), pred_span=(4, 5))[3:5] == (0, 0)
    assert vidstg_score(masks, boxes, (0, 1), pred_span=(-1, -1))[3:5] == (0, 0)
    assert vidstg_score(masks, boxes, (0, 1))[3:5] == (None, None)


def test_a_question_without_result_counts_zero(square):
    perfect = vidstg_score(square[1], square[1], (0, 5))
    assert vidstg([perfect, None]) == {"gt_viou": 0.5, "gt_viou@0.3": 0.5, "gt_viou@0.5": 0.5}
    with pytest.raises(ValueError, match="no question"):
        vidstg([])


def test_what_is_refused(square):
    masks, boxes = square
    with pytest.raises(ValueError, match="one number of frames"):
        vidstg_miou(masks[:3], boxes)
    with pytest.raises(ValueError, match="leaves the video of 6 frames"):
        vidstg_miou(masks, boxes, (2, 6))
    with pytest.raises(ValueError, match="'exact'"):
        vidstg_miou(masks, boxes, rules="exact")
