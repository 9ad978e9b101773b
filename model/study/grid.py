"""Which models the study trains, and which rows of which table each of them fills."""

from dataclasses import dataclass, field
from typing import Any

from model.config import ABLATIONS
from model.study.config import StudyConfig

TRAININGS: dict[str, dict[str, Any]] = {
    "none": {"tsf.path": "none"},
    **{path: {"tsf.path": path} for path in ("spatial", "temporal", "concat", "sum")},
    **{f"spatial, {name}": changes for name, changes in ABLATIONS["Table 10"].items()},
}
"""What differs in stage 1 and 2, as changes of preset `paper`."""

SEG, BOX, BOTH = ({"decode.prompts": prompts} for prompts in ("seg", "box", "box+seg"))
INFER = {"tsf.infer": True}


@dataclass(frozen=True)
class Row:
    """A row of a table: a training, and how it is asked. paper: J&F on Ref-DAVIS17 with VideoGLaMM."""

    table: str
    name: str
    training: str
    paper: float
    asked: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("Table 4", "neither", "none", 69.5, SEG),
    Row("Table 4", "BOX only", "none", 72.5, BOTH),
    Row("Table 4", "TSF in training", "spatial", 72.4, SEG),
    Row("Table 4", "TSF in training + BOX", "spatial", 76.8, BOTH),
    Row("Table 4", "TSF in both", "spatial", 75.3, SEG | INFER),
    Row("Table 4", "TSF in both + BOX", "spatial", 77.7, BOTH | INFER),
    Row("Table 5C", "[SEG]", "none", 69.5, SEG),
    Row("Table 5C", "[BOX]", "none", 68.2, BOX),
    Row("Table 5C", "[BOX] + [SEG]", "none", 72.5, BOTH),
    Row("Table 9", "none", "none", 72.5, BOTH),
    Row("Table 9", "temporal", "temporal", 72.5, BOTH),
    Row("Table 9", "concat", "concat", 74.9, BOTH),
    Row("Table 9", "sum", "sum", 74.7, BOTH),
    Row("Table 9", "spatial", "spatial", 76.8, BOTH),
    Row("Table 10", "no TSF", "none", 72.5, BOTH),
    Row("Table 10", "clean", "spatial", 76.8, BOTH),
    *(
        Row("Table 10", name, f"spatial, {name}", paper, BOTH)
        for name, paper in {
            "jitter 0.05": 76.5,
            "jitter 0.1": 76.0,
            "jitter 0.2": 75.2,
            "id_switch 0.05": 76.1,
            "id_switch 0.1": 75.4,
            "id_switch 0.2": 74.3,
            "dropout 0.1": 76.6,
            "dropout 0.3": 76.0,
            "dropout 0.5": 75.0,
        }.items()
    ),
)


TEMPORAL = ("temporal", "concat", "sum")
"""Trainings that need a host with a temporal projector."""


HIGHEST = ("jitter 0.2", "id_switch 0.2", "dropout 0.5")


def rows_of(config: StudyConfig) -> list[Row]:
    """Rows of the tables that are asked for, which this host can fill."""
    left_out = set() if config.host == "videoglamm" else set(TEMPORAL)
    if config.noise == "highest":
        left_out |= {f"spatial, {name}" for name in ABLATIONS["Table 10"] if name not in HIGHEST}
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
