"""Statistics of a series, and bootstrap intervals."""

import json

import numpy as np
import pytest

from model.metrics import bootstrap, frame_statistics


def test_official_numbers(shared):
    folder = shared / "golden/metrics"
    arrays = np.load(folder / "statistics.npz")
    for case in json.loads((folder / "statistics.json").read_text()):
        expected = [
            np.nan if case[key] is None else case[key] for key in ("mean", "recall", "decay")
        ]
        got = frame_statistics(arrays[case["name"]])
        assert list(got) == pytest.approx(expected, abs=1e-9, nan_ok=True), case["name"]
        if len(arrays[case["name"]]) < 256:
            assert list(frame_statistics(arrays[case["name"]], "corrected")) == pytest.approx(
                list(got), nan_ok=True
            )


def test_decay_of_a_long_video():
    values = np.repeat([0.9, 0.5, 0.5, 0.3], 100)
    assert np.isnan(frame_statistics(values[:300]).decay)
    assert frame_statistics(values).decay == pytest.approx(
        0.17, abs=0.01
    )  # official: of the wrong quarters
    assert frame_statistics(values, "corrected").decay == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("values", [[], 1.0, [[1.0]]])
def test_a_series_is_one_dimensional(values):
    with pytest.raises(ValueError, match="one score per frame"):
        frame_statistics(values)


def test_interval_covers_and_repeats():
    rng = np.random.default_rng(0)
    covered = sum(
        low <= 0.5 <= high
        for _, low, high in (bootstrap(rng.random(60), resamples=400) for _ in range(200))
    )
    assert 0.88 < covered / 200 < 0.99
    assert bootstrap([1, 2, 4], seed=3) == bootstrap([1, 2, 4], seed=3)
    assert bootstrap([0.25] * 5) == (0.25, 0.25, 0.25)


def test_expressions_of_one_video_are_not_independent():
    values, videos = (
        np.repeat(np.random.default_rng(1).random(20), 10),
        np.repeat(np.arange(20), 10),
    )
    alone, grouped = bootstrap(values), bootstrap(values, groups=videos)
    assert alone.mean == pytest.approx(grouped.mean)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_a_recall_is_a_ratio_of_sums():
    assert bootstrap([3, 0], weights=[3, 9]).mean == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "n >= 1"),
        ({"values": [1.0, 2.0], "groups": [1]}, "groups"),
        ({"values": [1.0], "weights": [0.0]}, "sum must be positive"),
        ({"values": [1.0], "level": 95}, "level 95"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**arguments)
