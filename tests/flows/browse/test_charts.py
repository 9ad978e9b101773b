"""Numbers of the drawings, by hand."""

from flows.browse import charts


def test_histograms():
    rows = [{"iou_from": 0.9, "n": 3}, {"iou_from": 0.9, "n": 1}, {"iou_from": 0.3, "n": 1}]
    bars = charts.iou_histogram(rows)
    assert [bar["n"] for bar in bars] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 4]
    assert (bars[3]["height"], bars[3]["y"], bars[9]["height"]) == (25, 75, 100)
    assert (bars[3]["link"], charts.iou_histogram(rows, links=True)[3]["link"]) == (
        "",
        "min_iou=0.3&max_iou=0.4",
    )
    bars = charts.length_histogram(
        [{"n_frames": 1, "n": 2}, {"n_frames": 40, "n": 1}, {"n_frames": 2, "n": 1}]
    )
    assert (bars[0]["label"], bars[0]["n"], bars[0]["link"]) == (
        "1 to 2 frames",
        3,
        "min_frames=1&max_frames=2",
    )
    assert (bars[-1]["label"], bars[-1]["n"]) == ("39 to 40 frames", 1)
    assert charts.length_histogram([{"n_frames": 1, "n": 2}])[0]["label"] == "1 frame"
    assert charts.iou_histogram([]) == charts.length_histogram([]) == []


def test_a_line_has_a_gap_where_there_is_no_value():
    assert charts.line([1.0, 0.5, None, 0.0]) == ["0,0.0 1,0.0 1,50.0 2,50.0", "3,100.0 4,100.0"]


def test_spans_of_dropped_frames():
    kept, reasons = (
        [True, False, False, False, True, False],
        [None, "iou", "iou", "lost", None, None],
    )
    assert charts.spans(kept, reasons) == [
        {"start": 1, "n": 2, "reason": "iou"},
        {"start": 3, "n": 1, "reason": "lost"},
        {"start": 5, "n": 1, "reason": "dropped"},
    ]
