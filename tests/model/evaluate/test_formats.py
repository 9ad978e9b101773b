"""Markdown, CSV and records have the same numbers."""

import csv
import io

from model.evaluate.finished import FinishedRun
from model.evaluate.formats import as_csv, markdown, records
from model.evaluate.table import tables
from tests.model.tables.made import run_of


def test_all_formats_have_the_same_numbers():
    found = tables([FinishedRun("r", run_of(size="tiny"))])
    text = markdown(found, ["a note"])
    assert (
        "| VideoGLaMM + SPARROW | r: protocol host, tiny |  |  |  | 70.0 | 80.0 | 75.0 [70.0, 80.0] |"
        in text
    )
    assert text.endswith("- a note")
    mine = [one for one in csv.DictReader(io.StringIO(as_csv(found))) if one["source"] != "paper"]
    assert [(one["table"], one["column"], float(one["value"])) for one in mine] == [
        ("Table 2", "DAVIS17 J", 70.0),
        ("Table 2", "DAVIS17 F", 80.0),
        ("Table 2", "DAVIS17 J&F", 75.0),
        ("Table 4", "[BOX] on", 75.0),
        ("Table 9", "J&F", 75.0),
        ("Table 10", "J&F", 75.0),
    ]
    assert [one for one in records(found) if one["source"] != "paper"][2]["low"] == 70.0


def test_reported_numbers_are_marked_in_every_format():
    found = tables([])
    marked = [one for one in records(found) if one["reported"]]
    assert [(one["method"], one["column"], one["value"]) for one in marked] == [
        ("UniPixel + SPARROW", "Recall", 0.325),
        ("UniPixel + SPARROW", "CLAIR", 29.4),
        ("VideoGLaMM + SPARROW", "Recall", 0.383),
    ]
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert sum(line["reported"] == "True" for line in lines) == 3
    assert "| 54.50 | ~0.325 |  |  | ~29.4 |" in markdown(found)
