"""Tables 4, 5 and 9 to 12: ablations, on VideoGLaMM and Ref-DAVIS17.

Tables 4, 9 and 10 start from the paper's default. Tables 5 and 11 start from "no TSF, [BOX] on": their best rows are
72.5, which is that cell of Table 4. One run may therefore be a row of several tables.
"""

from typing import Any

from model.tables.definitions import (
    DAVIS,
    HOST_ALONE,
    NO_BOX,
    NO_TSF,
    Column,
    PaperRow,
    PaperTable,
)

IN_BOTH = {"tsf.infer": True}

_JF = Column("J&F", "J&F", *DAVIS)


def _usage(method: str, name: str, changes: dict[str, Any], off: float, on: float) -> tuple:
    """A line of Table 4: a row without [BOX], and one with it."""
    without = PaperRow(name, (off,), changes | NO_BOX, method, column=0)
    return without, PaperRow(f"{name} + BOX", (on,), changes, method, column=1)


TABLE_4 = PaperTable(
    "Table 4",
    "TSF usage and [BOX]: J&F on Ref-DAVIS17, VideoGLaMM",
    (Column("[BOX] off", "J&F", *DAVIS), Column("[BOX] on", "J&F", *DAVIS)),
    (
        PaperRow("neither", (69.5,), NO_TSF | NO_BOX, "No TSF", presets=HOST_ALONE),
        PaperRow("BOX only", (72.5,), NO_TSF, "No TSF", column=1),
        *_usage("TSF in training (default)", "TSF in training", {}, 72.4, 76.8),
        *_usage("TSF in training and inference", "TSF in both", IN_BOTH, 75.3, 77.7),
    ),
)


def _choice(part: str, field: str, value: str, paper: float) -> PaperRow:
    """A row of Table 5: one field, without TSF."""
    return PaperRow(
        value, (paper,), NO_TSF | {field: value}, f"({part}) {field} = {value}", part=part
    )


TABLE_5 = PaperTable(
    "Table 5",
    "Prompts and selection, without TSF: J&F on Ref-DAVIS17, VideoGLaMM",
    (_JF,),
    (
        _choice("A", "filter.supervision_token", "seg", 70.6),
        _choice("A", "filter.supervision_token", "box", 72.5),
        _choice("B", "filter.where", "mllm", 70.4),
        _choice("B", "filter.where", "head", 72.5),
        _choice("C", "decode.prompts", "seg", 69.5),
        _choice("C", "decode.prompts", "box", 68.2),
        _choice("C", "decode.prompts", "box+seg", 72.5),
    ),
)


def _path(path: str, tokens: int, paper: float) -> PaperRow:
    return PaperRow(path, (tokens, paper), {"tsf.path": path}, f"tsf.path = {path}")


TABLE_9 = PaperTable(
    "Table 9",
    "Projectors of TSF: J&F on Ref-DAVIS17, VideoGLaMM",
    (Column("extra tokens", digits=0), _JF),
    (
        _path("none", 0, 72.5),
        _path("temporal", 4, 72.5),
        _path("concat", 8, 74.9),
        _path("sum", 4, 74.7),
        _path("spatial", 4, 76.8),
    ),
)


def _noise(kind: str, level: float, paper: float) -> PaperRow:
    changes = {"corruption.kind": kind, "corruption.level": level}
    return PaperRow(f"{kind} {level}", (paper,), changes)


TABLE_10 = PaperTable(
    "Table 10",
    "Noise on training trajectories (the levels of jitter are ours): J&F on Ref-DAVIS17, VideoGLaMM",
    (_JF,),
    (
        PaperRow("clean", (76.8,)),
        _noise("jitter", 0.05, 76.5),
        _noise("jitter", 0.1, 76.0),
        _noise("jitter", 0.2, 75.2),
        _noise("id_switch", 0.05, 76.1),
        _noise("id_switch", 0.1, 75.4),
        _noise("id_switch", 0.2, 74.3),
        _noise("dropout", 0.1, 76.6),
        _noise("dropout", 0.3, 76.0),
        _noise("dropout", 0.5, 75.0),
        PaperRow("no TSF", (72.5,), NO_TSF),
    ),
)


def _proposer(kind: str, millions: float, milliseconds: float, paper: float) -> PaperRow:
    changes = NO_TSF | {"proposer.kind": kind}
    return PaperRow(kind, (millions, milliseconds, paper), changes, f"proposer.kind = {kind}")


TABLE_11 = PaperTable(
    "Table 11",
    "Proposers, without TSF: J&F on Ref-DAVIS17, VideoGLaMM",
    (Column("+ parameters (M)", digits=2), Column("+ latency (ms)"), _JF),
    (
        _proposer("coords", 0.0, 0.0, 67.8),
        _proposer("mlp", 0.35, 0.4, 68.5),
        _proposer("fcos", 1.90, 1.2, 70.4),
        _proposer("detr", 12.33, 6.2, 71.2),
        _proposer("deformable", 11.38, 5.6, 72.5),
    ),
)

SELECTOR = 197_376
"""Three linear layers of the released selector, which Table 11 counts with its two transformer heads."""

RECALL = ("proposer", "val")
"""Stands for benchmark and split of what `sparrow train proposer --recall` measures."""


def _recall(kind: str, proposals: int, half: float, three_quarters: float) -> PaperRow:
    """What reads the proposer's boxes does not matter to its recall."""
    return PaperRow(
        kind,
        (proposals, half, three_quarters),
        {"proposer.kind": kind},
        f"proposer.kind = {kind}",
        compared=("proposer", "proposals.input"),
    )


TABLE_12 = PaperTable(
    "Table 12",
    "Oracle recall of the proposers, on SAM2 Hiera-L features",
    (
        Column("K", "proposals", *RECALL, 1.0, 0),
        Column("recall at IoU 0.5", "recall@0.5", *RECALL),
        Column("recall at IoU 0.75", "recall@0.75", *RECALL),
    ),
    (
        _recall("coords", 1, 50.0, 20.0),
        _recall("mlp", 1, 55.0, 28.0),
        _recall("fcos", 300, 86.0, 60.0),
        _recall("detr", 300, 90.0, 65.0),
        _recall("deformable", 300, 93.0, 70.0),
    ),
)
