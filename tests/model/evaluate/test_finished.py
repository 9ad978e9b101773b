"""Finished runs are found, whoever wrote them; files of others are not runs."""

import json

import pytest

from model.config import configure
from model.evaluate.finished import finished_runs
from model.evaluate.table import legend, runs_in_no_row, tables
from model.make import TINY
from tests.model.tables.made import run_of


def recall(kind="detr", **changes):
    """`recall.json` of a tiny proposer."""
    changes = {"proposer.kind": kind} | changes
    return {
        "kind": kind,
        "top": 300,
        "proposals": 32,
        "images": 50,
        "boxes": 120,
        "recall": {"0.5": 0.8125, "0.75": 0.5},
        "host": "videoglamm",
        "size": "tiny",
        "preset": "paper",
        "changes": changes,
        "model": configure(**(TINY | changes)).model_dump(mode="json"),
        "weights": [["export", "1"]],
        "data": "d",
        "note": "tiny videoglamm: the numbers mean nothing",
    }


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def test_runs_are_found_below_a_folder_and_files_of_others_are_not_runs(tmp_path):
    for name in ("a", "b/c"):
        write(tmp_path / name, "results.json", run_of())
    write(tmp_path / "d", "results.json", {"accuracy": 1})
    assert [run.name for run in finished_runs([tmp_path])] == ["a", "b/c"]
    assert [run.name for run in finished_runs([tmp_path / "a"])] == ["a"]
    with pytest.raises(ValueError, match="no finished run"):
        finished_runs([tmp_path / "d"])
    (tmp_path / "a" / "results.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        finished_runs([tmp_path])


def test_recall_of_a_proposer_is_a_line_of_table_12(tmp_path):
    write(tmp_path / "detr", "recall.json", recall())
    write(tmp_path / "wide", "recall.json", recall(**{"proposer.ffn": 2048}))
    write(tmp_path / "other", "recall.json", {"recall": 1})
    runs = finished_runs([tmp_path])
    assert [run.name for run in runs] == ["detr", "wide"]
    (lines,) = (
        [row for row in table.rows if row.source != "paper"]
        for table in tables(runs)
        if table.name == "Table 12"
    )
    (line,) = lines
    assert line.method == "proposer.kind = detr"
    assert [str(cell) for cell in line.cells] == ["32", "81.2", "50.0"]
    assert "top 300, 120 boxes on 50 images" in line.source
    assert "the numbers mean nothing" in legend(runs)[0]
    (stray,) = runs_in_no_row(runs)
    assert (stray.nearest, stray.fields) == (
        "Table 12, detr",
        ["proposer.ffn=2048 (the row has 1024)"],
    )
