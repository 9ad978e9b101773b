"""Tables 1, 2, 3 and 15, and Figure 5: three hosts, alone and with SPARROW.

The rows "+ SPARROW" of Tables 1-3 are pictures in the text that we have. The text and the project page give the
values here, `Reported` ones come from others, and None stands for the rest. F of SPARROW on VideoGLaMM in Ref-DAVIS17
is the text's "+14.5".

A run of the host alone has neither TSF nor [BOX]. SPARROW is the whole config of preset `paper`, or of `release`.
"""

from model.tables.definitions import (
    DAVIS,
    HOST_ALONE,
    NO_BOX,
    NO_TSF,
    Column,
    PaperRow,
    PaperTable,
    Reported,
    Value,
)

HOSTS = {"unipixel": "UniPixel", "glus": "GLUS", "videoglamm": "VideoGLaMM"}
"""Hosts in the order of the paper's tables, and what it calls them."""


WHOLE = ("paper", "release")
"""Presets that are SPARROW as a whole."""


def _hosts(*numbers: tuple[tuple[Value, ...], tuple[Value, ...]]) -> tuple[PaperRow, ...]:
    """The rows of all hosts in their order; numbers: of each host alone, and of it with SPARROW."""
    rows: list[PaperRow] = []
    for (host, shown), (alone, sparrow) in zip(HOSTS.items(), numbers, strict=True):
        rows.append(PaperRow(shown, alone, NO_TSF | NO_BOX, presets=HOST_ALONE, host=host))
        rows.append(PaperRow(f"{shown} + SPARROW", sparrow, presets=WHOLE, host=host))
    return tuple(rows)


def _jf(benchmark: str, split: str, title: str) -> tuple[Column, ...]:
    return tuple(Column(f"{title} {key}", key, benchmark, split) for key in ("J", "F", "J&F"))


TABLE_1 = PaperTable(
    "Table 1",
    "MeViS",
    _jf("mevis", "val", "val") + _jf("mevis", "val_u", "val_u"),
    _hosts(
        (
            (50.4, 55.7, 53.1, 56.1, 63.2, 59.7),
            (None, None, 54.4, None, None, 60.7),
        ),
        (
            (48.5, 54.2, 51.3, 56.1, 63.4, 59.8),
            (None, None, 53.2, None, None, 61.9),
        ),
        (
            (42.1, 48.2, 45.2, 44.0, 52.9, 48.5),
            (None, None, 47.5, None, None, 57.4),
        ),
    ),
)

TABLE_2 = PaperTable(
    "Table 2",
    "Ref-YTVOS and Ref-DAVIS17",
    _jf("ref-ytvos", "val", "YTVOS") + _jf(*DAVIS, "DAVIS17"),
    _hosts(
        (
            (68.6, 72.3, 70.5, 70.7, 77.8, 74.2),
            (None, None, 70.7, None, None, 76.4),
        ),
        (
            (65.5, 69.0, 67.3, 69.7, 76.1, 72.9),
            (None, None, 69.1, None, None, 75.5),
        ),
        (
            (65.4, 68.2, 66.8, 73.3, 65.6, 69.5),
            (None, None, 68.9, None, 80.1, 76.8),
        ),
    ),
)

FIGURE_5 = PaperTable(
    "Figure 5",
    "VidSTG",
    (
        Column("mIoU, interrogative", "mIoU_interrogative", "vidstg", "test", digits=2),
        Column("mIoU, declarative", "mIoU_declarative", "vidstg", "test", digits=2),
    ),
    _hosts(
        ((41.25, None), (46.74, None)),
        ((29.92, None), (35.17, None)),
        ((39.66, None), (45.06, None)),
    ),
)

TABLE_3 = PaperTable(
    "Table 3",
    "VideoGCG",
    (
        Column("mIoU", "mIoU", "videogcg", "test", digits=2),
        Column("Recall", "Recall", "videogcg", "test", 1.0, 3),
        Column("METEOR", "METEOR", "videogcg", "test", 1.0, 3),
        Column("CIDEr", "CIDEr", "videogcg", "test", 1.0, 2),
        Column("CLAIR", "CLAIR", "videogcg", "test"),
    ),
    _hosts(
        (
            (52.0, 0.311, 0.095, 0.55, 26.0),
            (54.5, Reported(0.325), None, None, Reported(29.4)),
        ),
        (
            (45.86, 0.245, None, None, None),
            (47.91, None, None, None, None),
        ),
        (
            (62.34, 0.375, 0.103, 0.59, 28.2),
            (65.59, Reported(0.383), None, None, 33.6),
        ),
    ),
)

TABLE_15 = PaperTable(
    "Table 15",
    "Cost: paper on an A100 over Ref-DAVIS17; ours on the machine of the run",
    (
        Column("parameters (B)", "parameters", *DAVIS, 1e-9, 3),
        Column("frames/s", "fps", *DAVIS, 1.0, 2),
        Column("GFLOPs/frame", digits=0),  # counted by `sparrow model describe`, not by a run
    ),
    _hosts(
        ((3.881, 15.38, 1530), (3.898, 15.04, 1565)),
        ((7.288, 6.374, 2680), (7.305, 6.29, 2715)),
        ((5.435, 2.40, 38927), (5.452, 2.40, 38962)),
    ),
)
