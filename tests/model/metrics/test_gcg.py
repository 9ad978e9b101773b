"""Caption grounding: the numbers of both released scripts, and what the corrected protocol changes."""

import json

import numpy as np
import pytest

from model.metrics import gcg, gcg_matches, gcg_miou, gcg_recall, gcg_score, track_iou

GCG_TOLERANCE = 1e-6  # the released scripts compute in float32


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/metrics"
    arrays, data = np.load(folder / "gcg.npz"), json.loads((folder / "gcg.json").read_text())

    def masks(name, part):
        shape = tuple(arrays[f"{name}/{part}_shape"])
        return (
            np.unpackbits(arrays[f"{name}/{part}"], count=int(np.prod(shape)))
            .reshape(shape)
            .astype(bool)
        )

    return data, masks


@pytest.mark.parametrize("protocol", ["sparrow", "videoglamm"])
def test_released_numbers(golden, protocol):
    data, masks = golden
    for case in data["cases"]:
        name = case["name"]
        pred, gt, similarity = masks(name, "pred"), masks(name, "gt"), case["similarity_gt_by_pred"]
        assert gcg_miou(pred, gt, protocol) == pytest.approx(
            case[f"miou_{protocol}"], abs=GCG_TOLERANCE
        ), name
        matches = gcg_matches(pred, gt, similarity, protocol)
        assert matches == [tuple(pair) for pair in case[f"matches_gt_pred_{protocol}"]], name
        assert gcg_recall(pred, gt, similarity, protocol) == len(matches) / max(len(gt), 1)
        if "iou_gt_by_pred_sparrow" in case:
            np.testing.assert_allclose(
                track_iou(pred, gt), case["iou_gt_by_pred_sparrow"], atol=GCG_TOLERANCE
            )


def test_the_whole_script(golden):
    data, masks = golden
    similarities = {case["name"]: case["similarity_gt_by_pred"] for case in data["cases"]}
    similarities["twelve_objects"] = data["whole_tool"]["twelve_objects_similarity_gt_by_pred"]
    scores = {}
    for protocol in ("sparrow", "corrected"):
        parts = []
        for name in data["whole_tool"]["videos_in_order"]:
            absent = name == "absent_result"
            pred = None if absent else masks(name, "pred")
            parts.append(
                gcg_score(
                    pred, masks("good" if absent else name, "gt"), similarities.get(name), protocol
                )
            )
        scores[protocol] = gcg(parts)
    assert scores["sparrow"]["mIoU"] == pytest.approx(
        data["whole_tool"]["expected_mean_miou"], abs=GCG_TOLERANCE
    )
    assert round(scores["sparrow"]["Recall"], 3) == data["whole_tool"]["expected_recall_3_decimals"]
    # Twelve more phrases are found, two behind the pair that ended the search; the absent result's three are asked for.
    assert scores["corrected"]["Recall"] == pytest.approx((3 + 3 + 2 + 2 + 0 + 0 + 12) / (26 + 3))


@pytest.fixture
def tracks():
    masks = np.zeros((3, 4, 30, 40), bool)
    for k in range(3):
        masks[k, :, 2 + 9 * k : 8 + 9 * k, 5:25] = True
    return masks


SAME = np.eye(3)


@pytest.mark.parametrize("protocol", ["sparrow", "videoglamm", "corrected"])
def test_planted_predictions(tracks, protocol):
    assert gcg_miou(tracks, tracks, protocol) == 1
    assert gcg_recall(tracks, tracks, SAME, protocol) == 1
    assert gcg_miou(np.zeros_like(tracks), tracks, protocol) == 0
    assert gcg_recall(np.zeros_like(tracks), tracks, SAME, protocol) == 0
    shifted = np.roll(tracks, 5, axis=3)
    assert gcg_miou(shifted, tracks, protocol) == pytest.approx(15 / 25)
    assert gcg_recall(shifted, tracks, SAME, protocol) == 1
    exchanged = tracks[[1, 2, 0]]
    assert gcg_miou(exchanged, tracks, protocol) == 1  # the text plays no part in it
    assert gcg_recall(exchanged, tracks, SAME, protocol) == 0  # right masks, under foreign phrases


def test_misses_cost_when_corrected(tracks):
    assert gcg_miou(tracks[:1], tracks, "sparrow") == 1
    assert gcg_miou(tracks[:1], tracks, "corrected") == pytest.approx(1 / 3)
    nothing = tracks[:0]
    assert gcg_miou(nothing, nothing, "corrected") == 1
    assert gcg_miou(tracks, nothing, "corrected") == 0


def test_corrected_recall_takes_as_many_pairs_as_there_are(tracks):
    """Prediction 0 fits both objects, 1 only object 0: greedy by IoU would leave object 1 without."""
    gt = np.zeros((2, 1, 10, 40), bool)
    gt[0, :, :, 0:20], gt[1, :, :, 5:25] = True, True
    pred = np.zeros_like(gt)
    pred[0, :, :, 1:21], pred[1, :, :, 0:10] = True, True
    similarity = np.ones((2, 2))
    assert gcg_matches(pred, gt, similarity, "sparrow") == [(0, 0)]
    assert gcg_matches(pred, gt, similarity, "corrected") == [(0, 1), (1, 0)]


def test_nothing_to_average_over():
    with pytest.raises(ValueError, match="no video"):
        gcg([])


def test_what_is_refused(tracks):
    with pytest.raises(ValueError, match="differ after the first axis"):
        gcg_miou(tracks[:, :2], tracks)
    with pytest.raises(ValueError, match=r"\[P, T, H, W\]"):
        gcg_miou(tracks[0], tracks)
    with pytest.raises(ValueError, match=r"\(3, 3\), got \(2, 3\)"):
        gcg_recall(tracks, tracks, SAME[:2])
    with pytest.raises(ValueError, match="'glamm'"):
        gcg_miou(tracks, tracks, "glamm")
    with pytest.raises(ValueError, match="similarity"):
        gcg_score(tracks, tracks, None)
