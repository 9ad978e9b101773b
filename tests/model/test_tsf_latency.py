"""Costs beside Table 7: counts that add up, and the paper's own numbers."""

import pytest

from model.tsf_inference import Extractor
from model.tsf_latency import Cost, costs, paper_total, table, token_costs
from tests.model.made import clip, tiny, tiny_host


def test_the_papers_model_gives_its_own_totals():
    assert paper_total(1, 300) == pytest.approx(6.09)  # section F.1: 6.1 s a clip
    assert paper_total(3, 300) == pytest.approx(18, abs=0.1)  # D.1: 60 ms a frame


def test_components_are_counted_in_the_tables_units():
    frames, boxes = clip(8)
    extractor = Extractor("lite")
    found = extractor(frames, "the square", 0, boxes[0] * [160, 96, 160, 96])
    sparrow = tiny("glus", host=tiny_host("glus"), **{"tsf.infer": True})
    rows = costs(extractor, token_costs(sparrow, frames, "the square", found.crops, targets=2))
    assert [(row.name, row.count) for row in rows] == [
        ("tracker", 7),
        ("crop encoder", 8),
        ("K-means", 1),
        ("the host's own crop features", 8),
        ("V->L projection", 8),
        ("longer prompt", 8),
    ]
    assert all(row.seconds > 0 for row in rows[:5])


def test_the_table_says_what_it_was_measured_on():
    text = table(
        [Cost("tracker", "frame and target", 100, 0.5, "18 ms")], 2, 50, "a card; preset full"
    )
    assert "a card; preset full" in text
    assert "5.00" in text  # ms each, and per frame and target
    assert "18 ms / frame and target" in text
    assert "2.090 s by the paper's model" in text
    assert "< noise" in table([Cost("longer prompt", "token", 4, -0.001, "0.5-1 ms")], 1, 9, "")
