"""Which models the study trains, and which rows of which table each of them fills.

Rows come from `model.tables`. A row that is not the paper's is one more `Row` in `OWN`: its changes of the training go
into the row itself, and it has no number of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.data.questions import QuestionMix
from model.study.config import StudyConfig
from model.tables.ablations import TABLE_4, TABLE_5, TABLE_9, TABLE_10
from model.tables.definitions import PaperRow

SEG, BOX, BOTH = ({"decode.prompts": prompts} for prompts in ("seg", "box", "box+seg"))
INFER = {"tsf.infer": True}
ASKED = ("decode.prompts", "tsf.infer")
"""Fields that decide how a model is asked. [BOX] off is a way of asking too: [SEG] alone."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a training, and how its model is asked.

    training: its name. changes: what differs in stages 1 and 2, of preset `paper`; rows of one training have the same.
    paper: J&F on Ref-DAVIS17 with VideoGLaMM; None for a row of our own.
    """

    table: str
    name: str
    training: str
    paper: float | None
    asked: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)


def _row(table: str, row: PaperRow) -> Row:
    asked = {"decode.prompts": row.changes.get("decode.prompts", "box+seg")}
    if row.changes.get("tsf.infer"):
        asked |= INFER
    changes = {
        name: value
        for name, value in row.changes.items()
        if name not in (*ASKED, "box.enabled") and (name, value) != ("tsf.path", "spatial")
    }
    return Row(table, row.name, _training(changes), row.paper[-1], asked, changes)


def _training(changes: Mapping[str, Any]) -> str:
    """The name of a training: the projector of TSF, and the noise."""
    path = changes.get("tsf.path", "spatial")
    if "corruption.kind" not in changes:
        return path
    return f"{path}, {changes['corruption.kind']} {changes['corruption.level']}"


QUESTIONS = "Questions"


def _share(share: float) -> Row:
    """A row of our own: which share of the samples with TSF is asked about the region. 1 is the default."""
    name, mix = f"share {share:g}", QuestionMix.about_regions(share).model_dump()
    if share == 1:
        return Row(QUESTIONS, name, "spatial", None, BOTH)
    return Row(QUESTIONS, name, f"spatial, {name}", None, BOTH, {"questions": mix})


OWN = tuple(_share(share) for share in (0.0, 0.5, 1.0))
"""Rows that are not the paper's."""

ROWS = (
    *(_row("Table 4", row) for row in TABLE_4.rows),
    *(_row("Table 5C", row) for row in TABLE_5.rows if row.part == "C"),
    *(_row("Table 9", row) for row in TABLE_9.rows),
    *(_row("Table 10", row) for row in TABLE_10.rows),
    *OWN,
)

TRAININGS = {row.training: row.changes for row in ROWS}
"""Training -> its changes of preset `paper`."""

TEMPORAL = ("temporal", "concat", "sum")
"""Trainings that need a host with a temporal projector."""

HIGHEST = ("jitter 0.2", "id_switch 0.2", "dropout 0.5")
"""The rows of Table 10 with the highest level of each noise."""


def rows_of(config: StudyConfig) -> list[Row]:
    """Rows of the tables that are asked for, which this host can fill."""
    left_out = set() if config.host == "videoglamm" else set(TEMPORAL)
    if config.noise == "highest":
        noisy = [row for row in ROWS if "corruption.kind" in row.changes]
        left_out |= {row.training for row in noisy if row.name not in HIGHEST}
    return [row for row in ROWS if row.table in config.tables and row.training not in left_out]


def trainings_of(config: StudyConfig) -> list[str]:
    """What must be trained for them, each once."""
    return list(dict.fromkeys(row.training for row in rows_of(config)))


def asked_of(config: StudyConfig, training: str) -> list[dict[str, Any]]:
    """The distinct ways in which a training is asked, in the order of the tables."""
    found: list[dict[str, Any]] = []
    for row in rows_of(config):
        if row.training == training and row.asked not in found:
            found.append(row.asked)
    return found


def asks_questions(config: StudyConfig, training: str) -> bool:
    """Whether it is measured what a training says of regions."""
    return any(row.table == QUESTIONS and row.training == training for row in rows_of(config))
