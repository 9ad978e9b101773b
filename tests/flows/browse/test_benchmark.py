"""The benchmark runs, in its quick form; what it measures is not judged here."""

import torch

from benchmarks.browse import ASKED, run
from benchmarks.measure import Setting


def test_every_kind_of_page_answers_beside_a_baseline():
    rows = {row.what: row for row in run(Setting(torch.device("cpu"), torch.float32, quick=True))}
    assert all(row.value > 0 for row in rows.values())
    for what in ("first page", *ASKED):
        assert rows[f"browse: {what}"].ratio > 0
        assert rows[f"browse: {what}"].baseline == "the same over the Parquet parts"
    assert "goal 300 ms" in rows["browse: clip page"].note
