"""What a table of the paper is made of: columns, and rows with a config and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Reported(float):
    """A number that the text we have lost, as others report it: second-hand, not read in the paper."""


Value = float | None
"""A number as the paper prints it; None where it prints none, or the text that we have lost it."""

DAVIS = ("ref-davis17", "val")
"""Benchmark and split of all ablations."""

NO_TSF = {"tsf.path": "none"}
NO_BOX = {"box.enabled": False, "decode.prompts": "seg"}
HOST_ALONE = ("host", "paper")
"""Presets that are the host alone with `NO_TSF` and `NO_BOX`; `host` has them already."""


@dataclass(frozen=True)
class Column:
    """A column. key: of a run's summary, or of what the run itself cost; "" if no run has such a number.

    benchmark, split: of the runs that fill it. scale: what the run's number is multiplied with in print.
    """

    title: str
    key: str = ""
    benchmark: str = ""
    split: str = ""
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class PaperRow:
    """A row, and the whole config that it stands for.

    changes: what its config changes of the preset, by dotted name: all of it, the table's base included. presets: the
    ones it may start from; a run of either belongs here. host: the host of its runs.
    paper: a number per column, from `column` on. method: its line in print, by default its name; rows of one line have
    one method. part: of the table, such as "A". compared: sections of the config that decide; default: all.
    """

    name: str
    paper: tuple[Value, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    part: str = ""
    column: int = 0
    presets: tuple[str, ...] = ("paper",)
    host: str = "videoglamm"
    compared: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What it is called in print."""
        return self.method or self.name


@dataclass(frozen=True)
class PaperTable:
    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[PaperRow, ...]

    def columns_of(self, row: PaperRow) -> tuple[Column, ...]:
        """The columns that `row.paper` has its numbers in."""
        return self.columns[row.column : row.column + len(row.paper)]

    def key(self, row: PaperRow) -> str:
        """The name of the table with the row's part: "Table 5A"."""
        return f"{self.name}{row.part}"
