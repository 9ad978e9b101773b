"""The paper's tables: its numbers as printed, ours beside them, blank where nothing was run."""

import pytest

from model.config import configure
from model.evaluate.finished import FinishedRun, RunCost
from model.evaluate.table import legend, runs_in_no_row, tables
from tests.model.tables.made import run_of


def done(name="r", cost=RunCost(), preset="paper", **fields):
    return FinishedRun(name, run_of(preset, size=fields.pop("size", "full"), **fields), cost)


def cells(found, name, method, source):
    table = next(table for table in found if table.name == name)
    return [
        [str(c) for c in row.cells]
        for row in table.rows
        if row.method == method and row.source.startswith(source)
    ]


def ours(found, name):
    """(method, name of the run) of a table's lines that are not the paper's."""
    table = next(table for table in found if table.name == name)
    return [(row.method, row.source.split(":")[0]) for row in table.rows if row.source != "paper"]


def test_without_runs_the_paper_stands_alone():
    found = tables([])
    assert [table.name for table in found] == [
        *("Table 1", "Table 2", "Figure 5", "Table 3", "Table 4", "Table 5"),
        *("Table 9", "Table 10", "Table 11", "Table 12", "Table 15"),
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
    assert cells(found, "Table 10", "no TSF", "paper") == [["72.5"]]
    assert cells(found, "Table 10", "clean", "paper") == [["76.8"]]
    assert cells(found, "Table 11", "proposer.kind = fcos", "paper") == [["1.90", "1.2", "70.4"]]
    assert cells(found, "Table 12", "proposer.kind = mlp", "paper") == [["1", "55.0", "28.0"]]


def test_numbers_that_others_report_are_marked():
    found = tables([])
    assert cells(found, "Table 3", "UniPixel + SPARROW", "paper") == [
        ["54.50", "~0.325", "", "", "~29.4"]
    ]
    assert cells(found, "Table 3", "VideoGLaMM + SPARROW", "paper") == [
        ["65.59", "~0.383", "", "", "33.6"]
    ]


def test_runs_stand_in_their_cells_and_runs_of_one_model_share_a_row():
    glus = {"benchmark": "mevis", "host": "glus"}
    runs = [
        done("val", split="val", summary={"J": 0.5, "F": 0.6, "J&F": 0.55}, **glus),
        done("val_u", split="val_u", **glus),
        done("other", split="val_u", protocol="paper", **glus),
    ]
    found = tables(runs)
    line = ["50.0", "60.0", "55.0 [70.0, 80.0]", "70.0", "80.0", "75.0 [70.0, 80.0]"]
    assert cells(found, "Table 1", "GLUS + SPARROW", "val, val_u: protocol host") == [line]
    assert cells(found, "Table 1", "GLUS + SPARROW", "other: protocol paper") == [
        ["", "", "", *line[3:]]
    ]
    assert cells(found, "Table 1", "GLUS", "val") == []


def test_a_host_alone_is_not_sparrow():
    found = tables([done(preset="host", cost=RunCost(5, 2.5))])
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
    assert ours(found, "Table 4") == [
        ("No TSF", "no-tsf"),
        ("TSF in training (default)", "default"),
    ]
    assert cells(found, "Table 4", "No TSF", "no-tsf") == [["", "75.0 [70.0, 80.0]"]]
    assert ours(found, "Table 5") == [
        ("(A) filter.supervision_token = box", "no-tsf"),
        ("(B) filter.where = head", "no-tsf"),
        ("(C) decode.prompts = seg", "seg"),
        ("(C) decode.prompts = box+seg", "no-tsf"),
    ]
    assert ours(found, "Table 9") == [
        ("tsf.path = none", "no-tsf"),
        ("tsf.path = spatial", "default"),
    ]
    assert ours(found, "Table 10") == [("clean", "default"), ("no TSF", "no-tsf")]
    assert ours(found, "Table 11") == [("proposer.kind = deformable", "no-tsf")]
    assert [stray.run for stray in runs_in_no_row(runs)] == ["seg-with-tsf", "unipixel"]


def test_runs_in_no_row_are_listed_with_the_fields_that_differ():
    other = done("v", benchmark="vidstg", split="val")
    seg, many = done("s", changes={"decode.prompts": "seg"}), done("q", preset="reconstructed")
    assert [str(stray) for stray in runs_in_no_row([seg, done("r"), other, many])] == [
        "s: in no row; the nearest is Table 2, VideoGLaMM + SPARROW, but for decode.prompts=seg "
        "(the row has box+seg)",
        "v: in no row, no table has vidstg val with videoglamm",
        "q: in no row; the nearest is Table 2, VideoGLaMM + SPARROW, but for "
        "filter.descriptor=fused (the row has concatenated), loss.bce=2.0 (the row has 1.0), "
        "loss.dice=0.5 (the row has 1.0), loss.filter.negative=0.3 (the row has 0.2), "
        "loss.filter.l1_weight=5.0 (the row has 2.0)",
    ]


@pytest.mark.parametrize(("share", "words"), [(0.048, ", achieved 4.8 %"), (None, "")])
def test_table_10_says_how_much_noise_there_was(share, words):
    changes = {"corruption.kind": "id_switch", "corruption.level": 0.05}
    trained = configure(**changes, corruption_achieved=share).model_dump(mode="json")
    table = next(
        t for t in tables([done(changes=changes, trained=trained)]) if t.name == "Table 10"
    )
    line = next(row for row in table.rows if row.source != "paper")
    assert line.method == "id_switch 0.05"
    settings = "corruption.kind=id_switch, corruption.level=0.05"
    assert line.source == f"r: protocol host, {settings}{words}"


def test_the_legend_says_what_was_run_and_what_must_be_known_of_it():
    run = done(size="tiny", note="tiny: the numbers mean nothing", videos=3)
    assert legend([run]) == [
        "r: ref-davis17 val; videoglamm, preset paper; protocol host, tiny; tiny: the numbers mean nothing; "
        "3 of 30 videos: not the benchmark's number"
    ]
