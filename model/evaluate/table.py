"""The paper's tables beside what runs have found: Tables 1-5 and 15, Figure 5. Blank where nothing was run."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.evaluate.paper import (
    ABLATED,
    FPS,
    HOSTS,
    MAIN,
    TABLE_4,
    TABLE_5,
    TABLE_15,
    Column,
    PaperTable,
)
from model.evaluate.results import caveats

PAPER = "paper"


@dataclass(frozen=True)
class Cell:
    """A number as printed, and the bounds of its 95 % interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    digits: int = 1

    def __str__(self) -> str:
        if self.value is None:
            return ""
        bounds = (
            ""
            if self.low is None
            else f" [{self.low:.{self.digits}f}, {self.high:.{self.digits}f}]"
        )
        return f"{self.value:.{self.digits}f}{bounds}"


@dataclass
class Row:
    """method: a host, or a line of an ablation. source: "paper", or runs (see `legend`) and their protocol."""

    method: str
    source: str
    cells: list[Cell]


@dataclass
class Table:
    name: str
    title: str
    columns: list[str]
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """A finished run: its name in the tables, results.json, and what timings.csv says of its cost."""

    name: str
    results: dict[str, Any]
    cost: "Cost"

    def of(self, column: Column) -> bool:
        return (self.results["benchmark"], self.results["split"]) == (
            column.benchmark,
            column.split,
        )

    def cell(self, column: Column) -> Cell:
        if not self.of(column) or column.key not in self.results["summary"]:
            return Cell(digits=column.digits)
        numbers = (
            self.results["summary"][column.key],
            *self.results["intervals"].get(column.key, (None, None)),
        )
        value, low, high = (None if x is None else x * column.scale for x in numbers)
        return Cell(value, low, high, column.digits)

    @property
    def sparrow(self) -> bool:
        """Whether it is SPARROW, not the host alone."""
        return bool(
            self.results["model"]["box"]["enabled"]
            or self.results["model"]["tsf"]["path"] != "none"
        )

    @property
    def kind(self) -> str:
        """What runs that belong into one row have in common: model, weights, and how it was asked."""
        fields = ("host", "size", "preset", "model", "weights", "seed", "protocol")
        return json.dumps([self.results[name] for name in fields], sort_keys=True)

    @property
    def asked(self) -> str:
        words = [
            f"protocol {self.results['protocol']}",
            *(f"{k}={v}" for k, v in self.results["changes"].items()),
        ]
        return ", ".join(words + (["tiny"] if self.results["size"] == "tiny" else []))

    @property
    def words(self) -> str:
        """What was run, and what must be known beside its numbers."""
        results = self.results
        said = [
            f"{results['benchmark']} {results['split']}",
            f"{results['host']}, preset {results['preset']}",
            self.asked,
        ]
        said += [f"{key} {value}" for key, value in results["scoring"].items()]
        return "; ".join([*said, *caveats(results)])


@dataclass(frozen=True)
class Cost:
    """Of the model in a run; None where nothing was timed."""

    parameters: int | None = None
    fps: float | None = None
    """Frames asked about (once per query) over the seconds of reading and asking."""

    @classmethod
    def read(cls, timings: Path) -> "Cost":
        """Each video counts once, as last timed."""
        if not timings.is_file():
            return cls()
        with timings.open(newline="") as file:
            rows = [
                row for row in csv.DictReader(file) if row.get("peak_mib")
            ]  # a row that was cut off has not all
        last = {row["video"]: row for row in rows}
        seconds = sum(float(row["seconds"]) for row in last.values())
        frames = sum(int(row["frames_asked"]) for row in last.values())
        return cls(int(rows[-1]["parameters"]), frames / seconds) if seconds else cls()


def read_runs(places: Sequence[Path]) -> list[Done]:
    """Runs of `sparrow eval`: each place is one, or a folder with some in it. ValueError where there are none."""
    found: list[Done] = []
    for place in places:
        alone = (place / "results.json").is_file()
        below = sorted(
            file for depth in ("*", "*/*", "*/*/*") for file in place.glob(f"{depth}/results.json")
        )
        files = [place / "results.json"] if alone else below
        runs = [
            one
            for one in (_read(file, place.parent if alone else place) for file in files)
            if one is not None
        ]
        if not runs:
            raise ValueError(
                f"{place}: no finished run of `sparrow eval` is there (a folder with results.json)"
            )
        found += runs
    return found


def _read(file: Path, base: Path) -> Done | None:
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file}: not JSON ({error}); run the same `sparrow eval` again"
        ) from error
    if not isinstance(results, dict) or "benchmark" not in results or "summary" not in results:
        return None  # somebody else's results.json
    return Done(str(file.parent.relative_to(base)), results, Cost.read(file.parent / "timings.csv"))


def tables(runs: Sequence[Done]) -> list[Table]:
    """All of them, in the paper's order."""
    return [
        *(_main(table, runs) for table in MAIN),
        _table_4(runs),
        _table_5(runs),
        _table_15(runs),
    ]


def _ours(method: str, runs: Sequence[Done], cells: Callable[[Done], list[Cell]]) -> list[Row]:
    """A row per run; runs of one kind that fill different columns share one."""
    rows: list[tuple[Done, list[str], list[Cell]]] = []
    for run in runs:
        new = cells(run)
        for first, names, old in rows:
            if first.kind == run.kind and not any(
                None not in (a.value, b.value) for a, b in zip(old, new, strict=True)
            ):
                names.append(run.name)
                old[:] = [b if a.value is None else a for a, b in zip(old, new, strict=True)]
                break
        else:
            rows.append((run, [run.name], new))
    return [Row(method, f"{', '.join(names)}: {first.asked}", old) for first, names, old in rows]


def _methods() -> Iterator[tuple[str, bool, str]]:
    for host, shown in HOSTS.items():
        yield host, False, shown
        yield host, True, f"{shown} + SPARROW"


def _main(paper: PaperTable, runs: Sequence[Done]) -> Table:
    table = Table(paper.name, paper.title, [column.title for column in paper.columns])
    for host, sparrow, method in _methods():
        cells = [
            Cell(v, digits=c.digits)
            for c, v in zip(paper.columns, paper.values[host, sparrow], strict=True)
        ]
        table.rows.append(Row(method, PAPER, cells))
        mine = [
            r
            for r in runs
            if (r.results["host"], r.sparrow) == (host, sparrow) and any(map(r.of, paper.columns))
        ]
        table.rows += _ours(
            method, mine, lambda run: [run.cell(column) for column in paper.columns]
        )
    return table


def _ablations(runs: Sequence[Done]) -> list[Done]:
    return [run for run in runs if run.of(ABLATED) and run.results["host"] == "videoglamm"]


def tsf_usage(model: Mapping[str, Any]) -> str:
    """Table 4's row of a model: none, train, or train+infer."""
    tsf = model["tsf"]
    if tsf["path"] == "none":
        return "none"
    return "train+infer" if tsf["infer"] else "train"


def _table_4(runs: Sequence[Done]) -> Table:
    table = Table(
        "Table 4", "TSF usage and [BOX]: J&F on Ref-DAVIS17, VideoGLaMM", ["[BOX] off", "[BOX] on"]
    )
    names = {
        "none": "No TSF",
        "train": "TSF in training (default)",
        "train+infer": "TSF in training and inference",
    }

    def cells(run: Done) -> list[Cell]:
        on = run.results["model"]["box"]["enabled"]
        return [Cell(), run.cell(ABLATED)] if on else [run.cell(ABLATED), Cell()]

    for usage, method in names.items():
        table.rows.append(Row(method, PAPER, [Cell(TABLE_4[usage, on]) for on in (False, True)]))
        mine = [run for run in _ablations(runs) if tsf_usage(run.results["model"]) == usage]
        table.rows += _ours(method, mine, cells)
    return table


def _table_5(runs: Sequence[Done]) -> Table:
    """A run has its place if, like the paper's, it has [BOX] and no TSF and changes nothing but its part's field; the
    default is in all three parts."""
    table = Table(
        "Table 5", "Prompts and selection, without TSF: J&F on Ref-DAVIS17, VideoGLaMM", ["J&F"]
    )
    default = {"A": "box", "B": "head", "C": "box+seg"}
    here = [
        r
        for r in _ablations(runs)
        if r.results["model"]["box"]["enabled"] and tsf_usage(r.results["model"]) == "none"
    ]
    for part, (name, values) in TABLE_5.items():
        for value, score in values.items():
            method = f"({part}) {name} = {value}"
            table.rows.append(Row(method, PAPER, [Cell(score)]))
            mine = [
                run
                for run in here
                if {p: _field(run.results["model"], n) for p, (n, _) in TABLE_5.items()}
                == default | {part: value}
            ]
            table.rows += _ours(method, mine, lambda run: [run.cell(ABLATED)])
    return table


def _field(model: Mapping[str, Any], name: str) -> Any:
    section, _, last = name.partition(".")
    return model[section].get(last)


def _table_15(runs: Sequence[Done]) -> Table:
    """GFLOPs are counted by `sparrow model describe`, not by a run."""
    columns = ["parameters (B)", "frames/s", "GFLOPs/frame"]
    table = Table(
        "Table 15",
        "Cost: paper on an A100 over Ref-DAVIS17; ours on the machine of the run",
        columns,
    )

    def cells(run: Done) -> list[Cell]:
        parameters = None if run.cost.parameters is None else run.cost.parameters / 1e9
        return [Cell(parameters, digits=3), Cell(run.cost.fps, digits=2), Cell()]

    for host, sparrow, method in _methods():
        parameters, gflops = TABLE_15[host][2 * sparrow : 2 * sparrow + 2]
        paper = [
            Cell(parameters, digits=3),
            Cell(FPS[host][sparrow], digits=2),
            Cell(gflops, digits=0),
        ]
        table.rows.append(Row(method, PAPER, paper))
        mine = [
            run
            for run in runs
            if run.of(ABLATED) and (run.results["host"], run.sparrow) == (host, sparrow)
        ]
        table.rows += _ours(method, mine, cells)
    return table


def legend(runs: Sequence[Done]) -> list[str]:
    """What each run's name stands for."""
    return [f"{run.name}: {run.words}" for run in runs]


# --- in print --------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Table], notes: Sequence[str] = ()) -> str:
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


def records(found: Sequence[Table]) -> list[dict[str, Any]]:
    """One per number that is there: table, method, source, column, value, low, high."""
    return [
        {
            "table": table.name,
            "method": row.method,
            "source": row.source,
            "column": column,
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
        }
        for table in found
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.value is not None
    ]


def as_csv(found: Sequence[Table]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["table", "method", "source", "column", "value", "low", "high"], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(records(found))
    return text.getvalue()
