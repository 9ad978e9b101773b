"""Rows of expressions: without target, without truth, without an answer."""

import numpy as np
import pytest

from model.evaluate.benchmarks.base import expression_rows, mean, target_accuracies
from model.evaluate.task import Prediction, Query, Video
from pipeline.sources.base import DataRoot
from schemas.records import Media

SQUARE = np.zeros((2, 20, 30), bool)
SQUARE[:, 5:15, 5:15] = True
NOTHING = np.zeros_like(SQUARE)
VIDEO = Video("v", ("0", "1"), None, DataRoot("/"), Media("frames", "v"))


def scored(**cases: tuple[np.ndarray | None, np.ndarray | None]) -> dict[str, dict]:
    """Name -> (truth or None where it cannot be read, answer or None where it failed), to rows by name."""
    queries = [Query(name, "v", "a dog") for name in cases]
    failed = Prediction(np.zeros((0, 0, 0, 0), bool), error="out of memory")
    predictions = {
        name: failed if answer is None else Prediction(answer[None])
        for name, (_, answer) in cases.items()
    }

    def truth(video, query, size):
        masks = cases[query.id][0]
        if masks is None:
            raise ValueError("mask 7 is not in the file")
        return masks

    return {row["query"]: row for row in expression_rows(VIDEO, queries, predictions, truth)}


def test_without_a_target_an_empty_answer_is_right_and_any_other_wrong():
    rows = scored(right=(NOTHING, NOTHING), wrong=(NOTHING, SQUARE), failed=(NOTHING, None))
    assert [rows[name]["J&F"] for name in ("right", "wrong", "failed")] == [1, 0, 0]


def test_an_answer_in_one_frame_is_an_answer():
    once = NOTHING.copy()
    once[1, 3, 3] = True
    assert scored(one=(NOTHING, once))["one"]["J&F"] == 0


def test_accuracies_are_shares_of_expressions_with_and_without_target():
    rows = scored(
        a=(NOTHING, NOTHING),
        b=(NOTHING, SQUARE),
        c=(SQUARE, SQUARE),
        d=(SQUARE, SQUARE),
        e=(SQUARE, NOTHING),
        f=(None, SQUARE),
    )
    accuracies = target_accuracies(list(rows.values()))
    assert accuracies == {"N-acc": 0.5, "T-acc": pytest.approx(2 / 3)}
    assert target_accuracies(list(scored(c=(SQUARE, SQUARE)).values())) == {}


def test_a_truth_that_cannot_be_read_is_no_zero():
    rows = scored(good=(SQUARE, SQUARE), hurt=(None, SQUARE), failed=(SQUARE, None))
    assert rows["hurt"]["J&F"] is None
    assert rows["hurt"]["unscored"] == "mask 7 is not in the file"
    assert rows["failed"]["error"] == "out of memory"
    assert mean(list(rows.values()), "J&F") == 0.5
    with pytest.raises(ValueError, match="no query"):
        mean([rows["hurt"]], "J&F")
