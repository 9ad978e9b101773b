"""All tables that runs are rows of, and what others ask about them."""

from typing import Any

from model.tables.ablations import TABLE_4, TABLE_5, TABLE_9, TABLE_10, TABLE_11, TABLE_12
from model.tables.definitions import Column, Value
from model.tables.headline import FIGURE_5, TABLE_1, TABLE_2, TABLE_3, TABLE_15

HEADLINE = (TABLE_1, TABLE_2, FIGURE_5, TABLE_3)
ABLATED = (TABLE_4, TABLE_5, TABLE_9, TABLE_10, TABLE_11)
TABLES = (*HEADLINE, *ABLATED, TABLE_12, TABLE_15)
"""In the order of print."""


def ablations() -> dict[str, dict[str, dict[str, Any]]]:
    """Table (with its part) -> row -> changes of preset `paper` that make its model."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for table in ABLATED:
        for row in table.rows:
            found.setdefault(table.key(row), {})[row.name] = dict(row.changes)
    return found


def beside(benchmark: str, split: str, host: str) -> dict[str, tuple[Column, Value, Value]]:
    """Key of a summary -> (its column, the paper's number of the host, and of the host with SPARROW), as printed."""
    found: dict[str, tuple[Column, Value, Value]] = {}
    for table in HEADLINE:
        rows = [row for row in table.rows if row.host == host]
        if not rows:
            continue
        alone, sparrow = rows
        for i, column in enumerate(table.columns):
            if (column.benchmark, column.split) == (benchmark, split):
                found[column.key] = (column, alone.paper[i], sparrow.paper[i])
    return found


def added_parameters() -> dict[str, float]:
    """Table 11: kind of proposer -> millions of parameters."""
    return {row.name: _printed(row.paper[0]) for row in TABLE_11.rows}


def sizes() -> dict[str, tuple[float, ...]]:
    """Table 15: host -> its parameters in billions and GFLOPs per frame, and those with SPARROW."""
    found: dict[str, tuple[float, ...]] = {}
    for row in TABLE_15.rows:  # a host alone comes before the host with SPARROW
        parameters, _, gflops = row.paper
        found[row.host] = (*found.get(row.host, ()), _printed(parameters), _printed(gflops))
    return found


def _printed(value: Value) -> float:
    assert value is not None, "the paper prints this number"
    return value
