"""The rows of all tables as text: docs/tables.md and `sparrow eval rows`."""

from collections.abc import Mapping, Sequence

from model.tables.definitions import Column, PaperRow, Reported, Value
from model.tables.registry import TABLES

COLUMNS = ("row", "host", "preset", "changes", "the paper's numbers")
Listing = Mapping[str, Sequence[tuple[str, ...]]]
"""Table (with its part) and title -> a line per row, with the texts of `COLUMNS`."""


def listing() -> Listing:
    """Every row of every table."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for table in TABLES:
        for row in table.rows:
            numbers = _numbers(table.columns_of(row), row)
            line = (row.name, row.host, " or ".join(row.presets), _changes(row), numbers)
            found.setdefault(f"{table.key(row)}: {table.title}", []).append(line)
    return found


def listing_markdown(found: Listing) -> str:
    """A section per table."""
    lines: list[str] = []
    for name, rows in found.items():
        lines += [f"### {name}", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def printed(value: Value, digits: int) -> str:
    """A number of the paper as text; "~" before one that is reported."""
    if value is None:
        return ""
    mark = "~" if isinstance(value, Reported) else ""
    return f"{mark}{value:.{digits}f}"


def _changes(row: PaperRow) -> str:
    return " ".join(f"`{name}={_setting(value)}`" for name, value in row.changes.items())


def _setting(value: object) -> str:
    """A value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _numbers(columns: Sequence[Column], row: PaperRow) -> str:
    pairs = zip(columns, row.paper, strict=True)
    texts = [(column.title, printed(value, column.digits)) for column, value in pairs]
    return ", ".join(f"{title} {text}" for title, text in texts if text)
