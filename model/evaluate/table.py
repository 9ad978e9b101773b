"""The paper's tables beside what runs have found. Blank where nothing was run.

Rows, their numbers and how a run is recognised are in `model.tables`. A run stands in every row whose config it has,
and in `runs_in_no_row` if there is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from model.evaluate.finished import FinishedRun
from model.tables.definitions import Column, PaperRow, PaperTable, Reported, Value
from model.tables.recognise import nearest, rows_of_run
from model.tables.registry import TABLES

PAPER = "paper"
MOST_FIELDS = 5
"""Fields that are listed of a run which is in no row."""


@dataclass(frozen=True)
class Cell:
    """A number as printed, and the bounds of its 95 % interval. reported: of the paper, second-hand.

    text: stands where there is no number."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    digits: int = 1
    reported: bool = False
    text: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.text
        number = f"{self.value:.{self.digits}f}"
        if self.reported:
            return f"~{number}"
        if self.low is None:
            return number
        return f"{number} [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"


@dataclass
class TableLine:
    """method: a host, or a row of an ablation. source: "paper", or runs (see `legend`) and their protocol."""

    method: str
    source: str
    cells: list[Cell]


@dataclass
class PrintedTable:
    name: str
    title: str
    columns: list[str]
    rows: list[TableLine] = field(default_factory=list)


def tables(runs: Sequence[FinishedRun]) -> list[PrintedTable]:
    """All of them, in the paper's order."""
    of_row: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in runs:
        for table, row in rows_of_run(run.results):
            of_row.setdefault((table.key(row), row.name), []).append(run)
    return [_printed(table, of_row) for table in TABLES]


def _printed(paper: PaperTable, of_row: dict[tuple[str, str], list[FinishedRun]]) -> PrintedTable:
    table = PrintedTable(paper.name, paper.title, [column.title for column in paper.columns])
    for method, rows in _methods(paper):
        table.rows.append(TableLine(method, PAPER, _paper_cells(paper, rows)))
        for row in rows:
            table.rows += _run_lines(paper, row, of_row.get((paper.key(row), row.name), []))
    return table


def _methods(paper: PaperTable) -> Iterator[tuple[str, list[PaperRow]]]:
    """The rows of each printed line."""
    lines: dict[str, list[PaperRow]] = {}
    for row in paper.rows:
        lines.setdefault(row.line, []).append(row)
    yield from lines.items()


def _paper_cells(paper: PaperTable, rows: Sequence[PaperRow]) -> list[Cell]:
    cells = [Cell(digits=column.digits) for column in paper.columns]
    for row in rows:
        for place, value in enumerate(row.paper, row.column):
            cells[place] = paper_cell(value, paper.columns[place].digits)
    return cells


def paper_cell(value: Value, digits: int) -> Cell:
    """A number of the paper."""
    return Cell(value, digits=digits, reported=isinstance(value, Reported))


def _run_lines(paper: PaperTable, row: PaperRow, runs: Sequence[FinishedRun]) -> list[TableLine]:
    """A line per run; runs of one kind that fill different columns share one."""
    lines: list[tuple[FinishedRun, list[str], list[Cell]]] = []
    for run in runs:
        new = _run_cells(paper, row, run)
        for first, names, old in lines:
            if first.kind == run.kind and not _overlap(old, new):
                names.append(run.name)
                old[:] = [b if a.value is None else a for a, b in zip(old, new, strict=True)]
                break
        else:
            lines.append((run, [run.name], new))
    return [
        TableLine(row.line, f"{', '.join(names)}: {first.asked}{_achieved(paper, first)}", cells)
        for first, names, cells in lines
    ]


def _run_cells(paper: PaperTable, row: PaperRow, run: FinishedRun) -> list[Cell]:
    cells = [Cell(digits=column.digits) for column in paper.columns]
    for place, column in enumerate(paper.columns_of(row), row.column):
        cells[place] = _run_cell(run, column)
    return cells


def _run_cell(run: FinishedRun, column: Column) -> Cell:
    """A number of a run, with its bounds if it has any."""
    return Cell(*run.number(column), column.digits)


def _overlap(old: Sequence[Cell], new: Sequence[Cell]) -> bool:
    return any(None not in (a.value, b.value) for a, b in zip(old, new, strict=True))


def _achieved(paper: PaperTable, run: FinishedRun) -> str:
    """The share of frames that the training's noise changed, where it is known (Table 10)."""
    config = run.results.get("trained") or run.results["model"]
    share = config.get("corruption_achieved")
    return f", achieved {100 * share:.1f} %" if paper.name == "Table 10" and share else ""


def legend(runs: Sequence[FinishedRun]) -> list[str]:
    """What each run's name stands for."""
    return [f"{run.name}: {run.words}" for run in runs]


@dataclass(frozen=True)
class Stray:
    """A run that is in no row, and in which fields it differs from the nearest one."""

    run: str
    nearest: str
    fields: list[str]

    def __str__(self) -> str:
        if not self.nearest:
            return f"{self.run}: in no row, {'; '.join(self.fields)}"
        shown = self.fields[:MOST_FIELDS]
        if len(self.fields) > len(shown):
            shown.append(f"and {len(self.fields) - len(shown)} more")
        return f"{self.run}: in no row; the nearest is {self.nearest}, but for {', '.join(shown)}"


def runs_in_no_row(runs: Sequence[FinishedRun]) -> list[Stray]:
    """The runs that are in no row of any table."""
    return [_stray(run) for run in runs if not rows_of_run(run.results)]


def _stray(run: FinishedRun) -> Stray:
    results = run.results
    found = nearest(results)
    if found is None:
        place = f"{results['benchmark']} {results['split']} with {results['host']}"
        return Stray(run.name, "", [f"no table has {place}"])
    table, row, lines = found
    return Stray(run.name, f"{table.key(row)}, {row.name}", [str(line) for line in lines])
