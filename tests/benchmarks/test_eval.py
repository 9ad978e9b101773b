"""The evaluation's benchmark runs, in its quick form; what it measures is not judged here."""

import torch

from benchmarks.eval import _host, _scoring
from benchmarks.measure import Setting

QUICK = Setting(torch.device("cpu"), torch.float32, quick=True)


def test_a_host_s_rows_compare_shared_features_with_none():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = {row.what: row for row in _host(QUICK, "glus")}
    finally:
        torch.set_num_threads(threads)
    assert rows["glus: 4 expressions of a video"].ratio > 0
    assert "tiny" in rows["glus: 4 expressions of a video"].note
    assert rows["glus: frames asked about"].value > 0
    assert rows["glus: peak memory"].value > 0


def test_scores_are_those_of_the_plain_formula():
    """Or the benchmark raises."""
    assert next(iter(_scoring(QUICK))).ratio > 0
