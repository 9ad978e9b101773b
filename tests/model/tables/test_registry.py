"""Rows of the paper's tables: defined once, with configs that exist and the paper's numbers."""

import subprocess
import sys

import pytest

from model.config import ABLATIONS, configure
from model.evaluate.benchmarks import BENCHMARKS
from model.tables.ablations import RECALL
from model.tables.costs import TABLE_13
from model.tables.definitions import Reported
from model.tables.registry import HEADLINE, TABLES, added_parameters, beside, sizes
from tests.model.tables.presets import PATH, text

ROWS = [(table, row) for table in TABLES for row in table.rows]
NAMES = [f"{table.key(row)}: {row.name}" for table, row in ROWS]


def test_the_stored_presets_are_those_of_the_config():
    assert PATH.read_text() == text(), "write them again: python -m tests.model.tables.presets"


@pytest.mark.parametrize(("table", "row"), ROWS, ids=NAMES)
def test_every_row_is_a_config_that_exists_with_a_number_per_column(table, row):
    for preset in row.presets:
        configure(preset, **row.changes)
    assert len(table.columns_of(row)) == len(row.paper)


def test_names_are_unique_in_their_table():
    assert len(set(NAMES)) == len(NAMES)


def test_every_column_of_a_score_is_a_number_of_a_benchmark():
    for table in TABLES:
        for column in table.columns:
            if column.key and (column.benchmark, column.split) != RECALL:
                assert column.split in BENCHMARKS[column.benchmark].splits
    assert set(beside("mevis", "val_u", "glus")) == set(BENCHMARKS["mevis"].headline)


def test_the_tables_of_the_issue_are_there_and_6_to_8_say_why_not():
    import model.tables

    names = [table.name for table in TABLES]
    assert names == [
        *("Table 1", "Table 2", "Figure 5", "Table 3", "Table 4", "Table 5"),
        *("Table 9", "Table 10", "Table 11", "Table 12", "Table 15"),
    ]
    for words in ("Table 6 is lost", "Table 7 is a latency model", "Table 8 is advice"):
        assert words in " ".join(model.tables.__doc__.split())


def test_tables_5_and_11_start_from_no_tsf_with_box():
    """Their best rows are 72.5 in the paper: that cell of Table 4."""
    base = configure(**ABLATIONS["Table 4"]["BOX only"])
    for table, row in (
        ("Table 5A", "box"),
        ("Table 5B", "head"),
        ("Table 5C", "box+seg"),
        ("Table 9", "none"),
        ("Table 10", "no TSF"),
        ("Table 11", "deformable"),
    ):
        assert configure(**ABLATIONS[table][row]) == base
    for table in ("Table 5A", "Table 5B", "Table 5C", "Table 11"):
        assert {changes["tsf.path"] for changes in ABLATIONS[table].values()} == {"none"}


def test_table_9_has_the_tokens_that_the_model_adds():
    table = next(table for table in TABLES if table.name == "Table 9")
    for row in table.rows:
        assert configure(**row.changes).tsf.tokens == row.paper[0]


def test_numbers_of_others_are_marked():
    found = {
        (row.name, column.title): value
        for table in HEADLINE
        for row in table.rows
        for column, value in zip(table.columns, row.paper, strict=True)
        if isinstance(value, Reported)
    }
    assert found == {
        ("UniPixel + SPARROW", "Recall"): 0.325,
        ("UniPixel + SPARROW", "CLAIR"): 29.4,
        ("VideoGLaMM + SPARROW", "Recall"): 0.383,
    }


def test_what_others_ask():
    assert added_parameters()["deformable"] == 11.38
    assert sizes() == {
        "unipixel": (3.881, 1530, 3.898, 1565),
        "glus": (7.288, 2680, 7.305, 2715),
        "videoglamm": (5.435, 38927, 5.452, 38962),
    }
    assert [row.gpu_hours for row in TABLE_13] == [51.9, 80, 96, 16, 112, 32]


def test_nothing_heavy_is_imported():
    code = (
        "import sys, model.tables.recognise, model.tables.listing, model.tables.costs; "
        "print(*(m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PATH.parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
