"""`sparrow sql`: a query over the catalogue, its values as DuckDB itself writes them."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.text import visible

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Form = Literal["table", "csv", "json", "md"]
Cell = str | None
"""A value as text; None is NULL."""


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("sql", epilog='Example: sparrow sql outputs/demo "SELECT * FROM funnel"')(command)


def command(
    out: Annotated[Path, typer.Argument(help="Output folder of a run.", show_default=False)],
    query: Annotated[
        str, typer.Argument(help="A query over the catalogue's views (README: six to start with).")
    ],
    form: Annotated[Form, typer.Option("--format", help="Of what is printed.")] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Ask the manifests anything, in DuckDB's SQL. Values are printed as DuckDB prints them."""
    from flows.show import show_json
    from manifests.catalog import connect, rows_of

    with connect(out) as connection:
        if as_json or form == "json":
            show_json(rows_of(connection, query))
            return
        columns, numeric, rows = as_text(connection, query)
    if form == "csv":
        print(to_csv(columns, rows), end="")
    elif form == "md":
        print(to_markdown(columns, numeric, rows))
    else:
        print(to_table(columns, numeric, rows))


def as_text(
    connection: "DuckDBPyConnection", query: str
) -> tuple[list[str], list[bool], list[list[Cell]]]:
    """Columns, whether each holds numbers, and the rows, every value cast to text by DuckDB.

    A statement that is no query, and one that repeats a column's name, is run as it is; Python writes its values.
    """
    relation = connection.sql(query)
    if relation is None:
        return [], [], []
    columns = list(relation.columns)
    numeric = [_is_number(str(kind)) for kind in relation.types]
    names = ['"' + column.replace('"', '""') + '"' for column in columns]
    if len(set(names)) == len(names):
        relation = relation.project(
            ", ".join(f"CAST({name} AS VARCHAR) AS {name}" for name in names)
        )
    rows = [[None if v is None else str(v) for v in row] for row in relation.fetchall()]
    return columns, numeric, rows


def _is_number(kind: str) -> bool:
    return kind.endswith(("INT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE")) or kind.startswith(
        "DECIMAL"
    )


def to_table(columns: list[str], numeric: list[bool], rows: list[list[Cell]]) -> str:
    """Aligned columns; numbers to the right. Control characters are written as escapes, so that no text of the data
    moves the cursor or starts a line."""
    if not rows:
        return "no rows"
    shown = [[visible(column) for column in columns]]
    shown += [["NULL" if cell is None else visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(columns))]
    lines = [_aligned(row, widths, numeric) for row in shown]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def _aligned(row: list[str], widths: list[int], numeric: list[bool]) -> str:
    cells = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]
    return "  ".join(cells).rstrip()


def to_csv(columns: list[str], rows: list[list[Cell]]) -> str:
    """RFC 4180 with a header; NULL is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def to_markdown(columns: list[str], numeric: list[bool], rows: list[list[Cell]]) -> str:
    """A table of Markdown; NULL is an empty cell."""
    lines = [columns, ["---:" if right else "---" for right in numeric]]
    lines += [["" if cell is None else visible(cell) for cell in row] for row in rows]
    return "\n".join(_markdown_line(row) for row in lines)


def _markdown_line(row: list[str]) -> str:
    cells = [cell.replace("|", "\\|") for cell in row]
    return f"| {' | '.join(cells)} |"
