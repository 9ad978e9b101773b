"""Which rows a run belongs to: those whose whole config it has, on the same host, benchmark and split.

A run's config is the one that `results.json` holds ("model"). Of a checkpoint of this project, what it was trained
with is known too ("trained"): fields that only training reads are taken from there, whatever the evaluation was given.
All fields are compared but `FREE`, those without effect in the row's config, and, of a tiny model, `SIZES`. So a change
that no row has puts a run into no row, and `nearest` names the fields.

The presets are read from presets.json beside this file, so that nothing here needs torch; a test compares it with
`model.config.PRESETS`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.earlier import completed
from model.make import TINY
from model.tables.definitions import PaperRow, PaperTable
from model.tables.registry import TABLES

FREE = ("preset", "corruption.seed", "corruption_achieved")
"""Fields that do not decide the row: the preset's own name, a seed, and what a training measured."""
SIZES = tuple(TINY)
"""Fields that a tiny model has its own values of."""
EFFECTLESS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("tsf.path", "none", ("tsf", "corruption", "questions.with_tsf")),
    ("box.enabled", False, ("box", "proposer", "proposals", "filter", "loss.filter")),
)
"""(field, value, what has no effect then)"""
TRAINING = (
    "tsf.path",
    "tsf.k",
    "tsf.train",
    "tsf.dropout",
    "tsf.selection",
    "tsf.pool",
    "corruption",
    "questions",
    "lora",
    "loss",
    "stage1",
    "stage2",
)
"""Fields and sections that an evaluation does not read; the ones of `tsf` it does, with TSF at inference."""
EVALUATION = ("tsf.infer", "decode", "filter.threshold", "filter.nms", "filter.top_k")
"""Fields and sections that a training does not read."""
ABSENT = "not recorded"

Run = Mapping[str, Any]
"""`results.json` of a run, as far as it is read here: host, size, benchmark, split, model, and trained if known."""


@dataclass(frozen=True)
class Deviation:
    """A field in which a run differs from a row."""

    field: str
    run: Any
    row: Any

    def __str__(self) -> str:
        return f"{self.field}={self.run} (the row has {self.row})"


def rows_of_run(run: Run) -> list[tuple[PaperTable, PaperRow]]:
    """The rows of all tables that a run belongs to."""
    return [(table, row) for table, row in measured(run) if not deviations(run, row)]


def measured(run: Run) -> list[tuple[PaperTable, PaperRow]]:
    """The rows with this host whose numbers are of the run's benchmark and split, whatever their config."""
    return [
        (table, row)
        for table in TABLES
        for row in table.rows
        if row.host == run["host"] and _has_column(table, row, run)
    ]


def nearest(run: Run) -> tuple[PaperTable, PaperRow, list[Deviation]] | None:
    """The row that a run differs from in the fewest fields; None if no table has its host, benchmark and split."""
    found = [(table, row, deviations(run, row)) for table, row in measured(run)]
    return min(found, key=lambda one: _distance(one[2]), default=None)


def _distance(lines: list[Deviation]) -> tuple[int, int]:
    """A row without TSF or [BOX] compares few fields: it is far from a run that has them."""
    switches = {field for field, _, _ in EFFECTLESS}
    return sum(line.field in switches for line in lines), len(lines)


def deviations(run: Run, row: PaperRow) -> list[Deviation]:
    """Fields in which a run's config is not the row's: of the preset that it is nearest to."""
    model = flat(completed(run["model"]))
    trained = run.get("trained")
    found = []
    for preset in row.presets:
        wanted = flat(_presets()[preset]) | dict(row.changes)
        if trained is None:
            found.append(_compare(model, wanted, run, row, ()))
            continue
        unread = tuple(name for name in TRAINING if not _reads_tsf(name, model))
        lines = _compare(model, wanted, run, row, unread)
        known = {line.field for line in lines}
        of_training = _compare(flat(completed(trained)), wanted, run, row, EVALUATION)
        found.append(lines + [line for line in of_training if line.field not in known])
    return min(found, key=len)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config with dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _compare(
    model: Mapping[str, Any], wanted: Mapping[str, Any], run: Run, row: PaperRow, unread: tuple
) -> list[Deviation]:
    free = (*FREE, *unread, *(SIZES if run["size"] == "tiny" else ()))
    switches = [one for one in EFFECTLESS if wanted[one[0]] == one[1]]
    idle = tuple(section for _, _, sections in switches for section in sections)
    switched = {field for field, _, _ in switches}
    lines = []
    for name in dict.fromkeys((*wanted, *model)):
        if row.compared and not _within(name, row.compared):
            continue
        if _within(name, free) or (_within(name, idle) and name not in switched):
            continue
        mine, its = model.get(name, ABSENT), wanted.get(name, ABSENT)
        if mine != its:
            lines.append(Deviation(name, mine, its))
    return lines


def _within(name: str, sections: tuple[str, ...]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _reads_tsf(name: str, model: Mapping[str, Any]) -> bool:
    """Whether an evaluation of this config reads the field `name` of TRAINING."""
    return name.startswith("tsf.") and bool(model.get("tsf.infer"))


def _has_column(table: PaperTable, row: PaperRow, run: Run) -> bool:
    place = (run["benchmark"], run["split"])
    columns = table.columns_of(row)
    return any(column.key and (column.benchmark, column.split) == place for column in columns)


@lru_cache(maxsize=1)
def _presets() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("presets.json").read_text())
