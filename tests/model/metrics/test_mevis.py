"""Per-expression scores: the official script's numbers, and what a missing prediction costs."""

import json

import numpy as np
import pytest

from model.metrics import merge_objects, mevis
from schemas.geometry import rle_encode


def test_official_numbers(shared):
    folder = shared / "golden/metrics"
    data, arrays = (
        json.loads((folder / "mevis.json").read_text()),
        np.load(folder / "mevis_predictions.npz"),
    )
    pred, gt, withheld = {}, {}, {}
    for video, entry in data["meta_expressions"]["videos"].items():
        for number, expression in entry["expressions"].items():
            key, shape = f"{video}_{number}", tuple(arrays[f"{video}/{number}/shape"])
            gt[key] = merge_objects(
                [data["mask_dict"][str(a)] for a in expression["anno_id"]], shape[1:]
            )
            bits = np.unpackbits(arrays[f"{video}/{number}"], count=int(np.prod(shape)))
            missing = video in data["videos_missing_from_prediction"]
            (withheld if missing else pred)[key] = bits.reshape(shape).astype(bool)
    got, expected = mevis(pred, gt), data["expected"]
    assert got["per_expression"].keys() == expected["per_expression"].keys()
    for key, scores in expected["per_expression"].items():
        assert got["per_expression"][key] == pytest.approx(scores, abs=1e-9), key
    for key in ("J", "F", "J&F"):
        assert got[key] == pytest.approx(expected[key], abs=1e-9)
    would = mevis(withheld, {key: gt[key] for key in withheld})
    for key in withheld:  # its 0 is for a missing folder, and not for its masks
        assert got["per_expression"][key] == {"J": 0, "F": 0}
        assert would["per_expression"][key]["J"] > 0.1


@pytest.fixture
def truth():
    masks = np.zeros((4, 30, 40), bool)
    masks[:, 5:15, 5:25] = True
    return masks


def test_planted_predictions(truth):
    assert mevis({"a": truth}, {"a": truth})["J&F"] == 1
    assert mevis({"a": np.zeros_like(truth)}, {"a": truth})["J&F"] == 0
    assert mevis({"a": np.roll(truth, 10, axis=2)}, {"a": truth})["J"] == pytest.approx(10 / 30)
    nothing = np.zeros_like(truth)
    assert mevis({"a": nothing}, {"a": nothing})["J&F"] == 1  # nothing to find, nothing found


def test_what_is_missing_counts_zero(truth):
    scores = mevis({"a": truth, "b": None}, {"a": truth, "b": truth, "c": np.zeros_like(truth)})
    assert scores["per_expression"]["c"] == {"J": 0, "F": 0}
    assert scores["J&F"] == pytest.approx(1 / 3)


def test_objects_merge_frame_by_frame(truth):
    other = np.roll(truth, 12, axis=1)
    tracks = [[rle_encode(m) for m in truth], [None, *(rle_encode(m) for m in other[1:])]]
    merged = merge_objects(tracks, (30, 40))
    np.testing.assert_array_equal(merged[0], truth[0])
    np.testing.assert_array_equal(merged[1:], truth[1:] | other[1:])
    with pytest.raises(ValueError, match="30x41"):
        merge_objects(tracks, (30, 41))
    with pytest.raises(ValueError, match="lengths"):
        merge_objects([tracks[0], tracks[1][:2]], (30, 40))


def test_what_is_refused(truth):
    with pytest.raises(ValueError, match="gt lacks: b"):
        mevis({"b": truth}, {"a": truth})
    with pytest.raises(ValueError, match="all frames"):
        mevis({"a": truth[:2]}, {"a": truth})
    with pytest.raises(ValueError, match="no expression"):
        mevis({}, {})
