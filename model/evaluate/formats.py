"""Tables in print: Markdown, CSV, and a record per number."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from model.evaluate.table import PrintedTable

FIELDS = ("table", "method", "source", "column", "value", "low", "high", "reported")
LEGEND = (
    "In brackets: 95 % bounds, videos drawn anew. Blank: not run, or lost with the paper's pictures of tables. "
    "~: of the paper, reported second-hand, not read in it."
)


def markdown(found: Sequence[PrintedTable], notes: Sequence[str] = ()) -> str:
    """A table each, then the notes."""
    lines: list[str] = []
    for table in found:
        lines += [
            f"### {table.name}: {table.title}",
            "",
            f"| method | source | {' | '.join(table.columns)} |",
            f"|---|---|{'---:|' * len(table.columns)}",
        ]
        for row in table.rows:
            cells = [row.method, row.source.replace("|", "/"), *map(str, row.cells)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes)])


def records(found: Sequence[PrintedTable]) -> list[dict[str, Any]]:
    """One per number that is there, with the names of `FIELDS`."""
    return [
        {
            "table": table.name,
            "method": row.method,
            "source": row.source,
            "column": column,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "reported": cell.reported,
        }
        for table in found
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.value is not None
    ]


def as_csv(found: Sequence[PrintedTable]) -> str:
    """The records as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(found))
    return text.getvalue()
