"""The DAVIS protocols: the official tool's numbers, and predictions whose score is known beforehand."""

import json

import numpy as np
import pytest

from model.metrics import davis


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/metrics"
    return json.loads((folder / "davis_sequences.json").read_text()), np.load(
        folder / "davis_sequences.npz"
    )


@pytest.mark.parametrize(
    ("protocol", "gt_key", "pred_key"),
    [("semi-supervised", "gt", "semi"), ("unsupervised", "gt_unsup", "unsup")],
)
def test_official_numbers(golden, protocol, gt_key, pred_key):
    expected, arrays = golden
    names = list(expected[protocol]["per_sequence"])
    got = davis(
        {n: arrays[f"{n}/{pred_key}"] for n in names},
        {n: arrays[f"{n}/{gt_key}"] for n in names},
        protocol=protocol,
    )
    assert got["global"] == pytest.approx(expected[protocol]["global"], abs=1e-9)
    assert got["per_object"].keys() == expected[protocol]["per_object"].keys()
    for name, scores in expected[protocol]["per_object"].items():
        assert got["per_object"][name] == pytest.approx(scores, abs=1e-9), name
    assert got["per_sequence"] == expected[protocol]["per_sequence"]
    for name in names:
        for measure in "JF":
            frames = arrays[f"per_frame/{pred_key}/{name}/{measure}"]
            np.testing.assert_allclose(got["per_frame"][name][measure], frames, atol=1e-9, rtol=0)


@pytest.fixture
def two_squares():
    """Ids 1 and 2, never touching, moving."""
    masks = np.zeros((6, 60, 80), np.uint8)
    for t in range(6):
        masks[t, 10:25, 5 + t : 20 + t] = 1
        masks[t, 35:50, 45 - t : 65 - t] = 2
    return masks


@pytest.mark.parametrize("protocol", ["semi-supervised", "unsupervised"])
def test_planted_predictions(two_squares, protocol):
    gt = two_squares
    perfect = davis(gt, gt, protocol)["global"]
    assert (perfect["J&F-Mean"], perfect["J-Recall"], perfect["J-Decay"]) == (1, 1, 0)
    assert davis(np.zeros_like(gt), gt, protocol)["global"]["J&F-Mean"] == 0
    assert davis({}, {"video": gt}, protocol)["global"]["J&F-Mean"] == 0
    shifted = davis(np.roll(gt, 5, axis=2), gt, protocol)["per_object"]
    assert shifted["1"]["J_mean"] == pytest.approx(10 / 20)
    assert shifted["2"]["J_mean"] == pytest.approx(15 / 25)


def test_exchanged_identities_cost_everything_or_nothing(two_squares):
    swapped = np.array([0, 2, 1], np.uint8)[two_squares]
    assert davis(swapped, two_squares, "semi-supervised")["global"]["J&F-Mean"] == 0
    assert davis(swapped, two_squares, "unsupervised")["global"]["J&F-Mean"] == 1
    halfway = two_squares.copy()
    halfway[3:] = swapped[3:]
    assert davis(halfway, two_squares, "semi-supervised")["global"]["J-Mean"] == pytest.approx(
        2 / 4
    )
    assert davis(halfway, two_squares, "unsupervised")["global"]["J-Mean"] == pytest.approx(3 / 6)


def test_rows_of_the_unsupervised_protocol(two_squares):
    """Official rows follow the predictions, corrected rows the objects."""
    pred = np.array([0, 2, 1], np.uint8)[two_squares]
    pred[:, 35:50, :] = np.where(
        np.arange(80) < 50, pred[:, 35:50, :], 0
    )  # spoils what belongs to object 2
    official = davis(pred, two_squares, "unsupervised")["per_object"]
    corrected = davis(pred, two_squares, "unsupervised", rules="corrected")["per_object"]
    assert official["2"]["J_mean"] == corrected["1"]["J_mean"] == 1
    assert official["1"] == corrected["2"]
    assert corrected["2"]["J_mean"] < 1


def test_void_is_background_or_left_out(two_squares):
    gt = two_squares.copy()
    gt[:, 10:25, :] = np.where(two_squares[:, 10:25] == 1, 255, 0)  # object 1 is void, 2 remains
    gt[0] = two_squares[0]
    assert davis(two_squares, gt, "unsupervised")["global"]["J-Mean"] == 1
    assert davis(two_squares, gt, "semi-supervised")["per_object"]["1"]["J_mean"] == 0


def test_an_object_that_enters_later_counts_only_when_corrected(two_squares):
    gt = two_squares.copy()
    gt[0][gt[0] == 2] = 0
    pred = np.where(gt == 1, 1, 0).astype(np.uint8)
    assert list(davis(pred, gt)["per_object"]) == ["1"]
    corrected = davis(pred, gt, rules="corrected")
    assert corrected["per_object"]["2"]["J_mean"] == 0
    assert corrected["global"]["J-Mean"] == 0.5


@pytest.mark.parametrize(
    ("pred", "gt", "arguments", "message"),
    [
        (np.zeros((5, 4, 4), int), np.ones((5, 4, 5), int), {}, "one shape"),
        (np.zeros((4, 4), int), np.ones((4, 4), int), {}, r"\[T, H, W\]"),
        (np.zeros((5, 4, 4)), np.ones((5, 4, 4)), {}, "integers"),
        (np.zeros((2, 4, 4), int), np.ones((2, 4, 4), int), {}, "at least 3"),
        (np.full((5, 4, 4), 2), np.ones((5, 4, 4), int), {}, "allows up to 1"),
        (
            np.full((5, 4, 4), 21),
            np.ones((5, 4, 4), int),
            {"protocol": "unsupervised"},
            "allows up to 20",
        ),
        (np.zeros((5, 4, 4), int), np.zeros((5, 4, 4), int), {}, "no object"),
        (
            np.zeros((5, 4, 4), int),
            np.ones((5, 4, 4), int),
            {"protocol": "semi"},
            "semi-supervised",
        ),
        (
            {"a": np.zeros((5, 4, 4), int)},
            {"b": np.ones((5, 4, 4), int)},
            {},
            "videos that gt lacks: a",
        ),
    ],
)
def test_what_is_refused(pred, gt, arguments, message):
    with pytest.raises(ValueError, match=message):
        davis(pred, gt, **arguments)
