"""The paper's tables: its numbers as printed, ours beside them, blank where nothing was run."""

import csv
import io
import json

import pytest

from model.config import configure
from model.evaluate.benchmarks import BENCHMARKS
from model.evaluate.paper import MAIN, beside
from model.evaluate.table import Cost, Done, as_csv, legend, markdown, read_runs, records, tables
from tests.eval_results import eval_results


def done(name="r", benchmark="ref-davis17", split="val", host="videoglamm", cost=Cost(), **fields):
    changes = fields.get("changes", {})
    model = configure("paper", **changes).model_dump(mode="json")
    named = {"benchmark": benchmark, "split": split, "host": host, "model": model}
    results = eval_results(**(named | fields))
    return Done(name, results, cost)


def cells(found, name, method, source):
    table = next(table for table in found if table.name == name)
    return [
        [str(c) for c in row.cells]
        for row in table.rows
        if row.method == method and row.source.startswith(source)
    ]


def test_without_runs_the_paper_stands_alone():
    found = tables([])
    assert [table.name for table in found] == [
        "Table 1",
        "Table 2",
        "Figure 5",
        "Table 3",
        "Table 4",
        "Table 5",
        "Table 15",
    ]
    assert all(row.source == "paper" for table in found for row in table.rows)
    assert cells(found, "Table 1", "VideoGLaMM + SPARROW", "paper") == [
        ["", "", "47.5", "", "", "57.4"]
    ]
    assert cells(found, "Table 2", "UniPixel", "paper") == [
        ["68.6", "72.3", "70.5", "70.7", "77.8", "74.2"]
    ]
    assert cells(found, "Table 3", "GLUS", "paper") == [["45.86", "0.245", "", "", ""]]
    assert cells(found, "Table 15", "GLUS", "paper") == [["7.288", "6.37", "2680"]]
    assert cells(found, "Table 4", "No TSF", "paper") == [["69.5", "72.5"]]


def test_every_column_is_a_number_of_a_benchmark():
    for table in MAIN:
        for column in table.columns:
            assert column.split in BENCHMARKS[column.benchmark].splits
        assert all(len(values) == len(table.columns) for values in table.values.values())
    assert set(beside("mevis", "val_u", "glus")) == set(BENCHMARKS["mevis"].headline)


def test_runs_stand_in_their_cells_and_runs_of_one_model_share_a_row():
    runs = [
        done("val", "mevis", "val", "glus", summary={"J": 0.5, "F": 0.6, "J&F": 0.55}),
        done("val_u", "mevis", "val_u", "glus"),
        done("other", "mevis", "val_u", "glus", protocol="paper"),
    ]
    found = tables(runs)
    ours = ["50.0", "60.0", "55.0 [70.0, 80.0]", "70.0", "80.0", "75.0 [70.0, 80.0]"]
    assert cells(found, "Table 1", "GLUS + SPARROW", "val, val_u: protocol host") == [ours]
    assert cells(found, "Table 1", "GLUS + SPARROW", "other: protocol paper") == [
        ["", "", "", *ours[3:]]
    ]
    assert cells(found, "Table 1", "GLUS", "val") == []


def test_a_host_alone_is_not_sparrow():
    plain = done(
        changes={"box.enabled": False, "decode.prompts": "seg", "tsf.path": "none"},
        cost=Cost(5, 2.5),
    )
    found = tables([plain])
    assert len(cells(found, "Table 2", "VideoGLaMM", "r")) == 1
    assert cells(found, "Table 2", "VideoGLaMM + SPARROW", "r") == []
    assert cells(found, "Table 4", "No TSF", "r") == [["75.0 [70.0, 80.0]", ""]]
    assert cells(found, "Table 15", "VideoGLaMM", "r") == [["0.000", "2.50", ""]]


def test_ablations_have_their_places():
    runs = [
        done("default"),
        done("no-tsf", changes={"tsf.path": "none"}),
        done("seg", changes={"tsf.path": "none", "decode.prompts": "seg"}),
        done("seg-with-tsf", changes={"decode.prompts": "seg"}),
        done("unipixel", host="unipixel", changes={"tsf.path": "none"}),
    ]
    found = tables(runs)
    assert len(cells(found, "Table 4", "TSF in training (default)", "default")) == 1
    table = next(table for table in found if table.name == "Table 5")
    ours = [(row.method, row.source.split(":")[0]) for row in table.rows if row.source != "paper"]
    assert ours == [
        ("(A) filter.supervision_token = box", "no-tsf"),
        ("(B) filter.where = head", "no-tsf"),
        ("(C) decode.prompts = seg", "seg"),
        ("(C) decode.prompts = box+seg", "no-tsf"),
    ]


def test_other_formats_say_the_same():
    run = done(size="tiny", note="tiny: the numbers mean nothing", videos=3)
    found, notes = tables([run]), legend([run])
    assert notes == [
        "r: ref-davis17 val; videoglamm, preset paper; protocol host, tiny; tiny: the numbers mean nothing; "
        "3 of 30 videos: not the benchmark's number"
    ]
    text = markdown(found, notes)
    assert (
        "| VideoGLaMM + SPARROW | r: protocol host, tiny |  |  |  | 70.0 | 80.0 | 75.0 [70.0, 80.0] |"
        in text
    )
    assert text.endswith(f"- {notes[0]}")
    mine = [one for one in csv.DictReader(io.StringIO(as_csv(found))) if one["source"] != "paper"]
    assert [(one["table"], one["column"], float(one["value"])) for one in mine] == [
        ("Table 2", "DAVIS17 J", 70.0),
        ("Table 2", "DAVIS17 F", 80.0),
        ("Table 2", "DAVIS17 J&F", 75.0),
        ("Table 4", "[BOX] on", 75.0),
    ]
    assert [one for one in records(found) if one["source"] != "paper"][2]["low"] == 70.0


def test_runs_are_found_below_a_folder_and_strangers_are_not_runs(tmp_path):
    for name in ("a", "b/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(json.dumps(done().results))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results.json").write_text('{"accuracy": 1}')
    assert [run.name for run in read_runs([tmp_path])] == ["a", "b/c"]
    assert [run.name for run in read_runs([tmp_path / "a"])] == ["a"]
    with pytest.raises(ValueError, match="no finished run"):
        read_runs([tmp_path / "d"])
