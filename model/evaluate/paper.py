"""The paper's numbers as data: Tables 1-5 and 15, and Figure 5. Imports nothing, for tables must come at once.

The rows "+ SPARROW" of Tables 1-3 are pictures in the text that we have; of them the text and the project page give
the values here, and None stands for the rest. F of SPARROW on VideoGLaMM in Ref-DAVIS17 is the text's "+14.5".
"""

from dataclasses import dataclass

HOSTS = {"unipixel": "UniPixel", "glus": "GLUS", "videoglamm": "VideoGLaMM"}
"""Hosts in the order of the paper's tables, and what it calls them."""

Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Column:
    """A number of a benchmark's summary. scale: what the summary's fraction is multiplied with in print."""

    benchmark: str
    split: str
    key: str
    title: str
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class PaperTable:
    """A table of methods by benchmark. values: (host, with SPARROW) -> a value per column, as printed."""

    name: str
    title: str
    columns: tuple[Column, ...]
    values: dict[tuple[str, bool], Values]


def _jf(benchmark: str, split: str, title: str) -> tuple[Column, ...]:
    return tuple(Column(benchmark, split, key, f"{title} {key}") for key in ("J", "F", "J&F"))


MAIN = (
    PaperTable(
        "Table 1",
        "MeViS",
        _jf("mevis", "val", "val") + _jf("mevis", "val_u", "val_u"),
        {
            ("unipixel", False): (50.4, 55.7, 53.1, 56.1, 63.2, 59.7),
            ("unipixel", True): (None, None, 54.4, None, None, 60.7),
            ("glus", False): (48.5, 54.2, 51.3, 56.1, 63.4, 59.8),
            ("glus", True): (None, None, 53.2, None, None, 61.9),
            ("videoglamm", False): (42.1, 48.2, 45.2, 44.0, 52.9, 48.5),
            ("videoglamm", True): (None, None, 47.5, None, None, 57.4),
        },
    ),
    PaperTable(
        "Table 2",
        "Ref-YTVOS and Ref-DAVIS17",
        _jf("ref-ytvos", "val", "YTVOS") + _jf("ref-davis17", "val", "DAVIS17"),
        {
            ("unipixel", False): (68.6, 72.3, 70.5, 70.7, 77.8, 74.2),
            ("unipixel", True): (None, None, 70.7, None, None, 76.4),
            ("glus", False): (65.5, 69.0, 67.3, 69.7, 76.1, 72.9),
            ("glus", True): (None, None, 69.1, None, None, 75.5),
            ("videoglamm", False): (65.4, 68.2, 66.8, 73.3, 65.6, 69.5),
            ("videoglamm", True): (None, None, 68.9, None, 80.1, 76.8),
        },
    ),
    PaperTable(
        "Figure 5",
        "VidSTG",
        (
            Column("vidstg", "test", "mIoU_interrogative", "mIoU, interrogative", digits=2),
            Column("vidstg", "test", "mIoU_declarative", "mIoU, declarative", digits=2),
        ),
        {
            ("unipixel", False): (41.25, None),
            ("unipixel", True): (46.74, None),
            ("glus", False): (29.92, None),
            ("glus", True): (35.17, None),
            ("videoglamm", False): (39.66, None),
            ("videoglamm", True): (45.06, None),
        },
    ),
    PaperTable(
        "Table 3",
        "VideoGCG",
        (
            Column("videogcg", "test", "mIoU", "mIoU", digits=2),
            Column("videogcg", "test", "Recall", "Recall", 1.0, 3),
            Column("videogcg", "test", "METEOR", "METEOR", 1.0, 3),
            Column("videogcg", "test", "CIDEr", "CIDEr", 1.0, 2),
            Column("videogcg", "test", "CLAIR", "CLAIR"),
        ),
        {
            ("unipixel", False): (52.0, 0.311, 0.095, 0.55, 26.0),
            ("unipixel", True): (54.5, None, None, None, None),
            ("glus", False): (45.86, 0.245, None, None, None),
            ("glus", True): (47.91, None, None, None, None),
            ("videoglamm", False): (62.34, 0.375, 0.103, 0.59, 28.2),
            ("videoglamm", True): (65.59, None, None, None, 33.6),
        },
    ),
)

ABLATED = Column("ref-davis17", "val", "J&F", "J&F")
"""What Tables 4 and 5 measure, on VideoGLaMM."""

TABLE_4 = {
    ("none", False): 69.5,
    ("none", True): 72.5,
    ("train", False): 72.4,
    ("train", True): 76.8,
    ("train+infer", False): 75.3,
    ("train+infer", True): 77.7,
}
"""(TSF usage, [BOX] on) -> J&F."""

TABLE_5 = {
    "A": ("filter.supervision_token", {"seg": 70.6, "box": 72.5}),
    "B": ("filter.where", {"mllm": 70.4, "head": 72.5}),
    "C": ("decode.prompts", {"seg": 69.5, "box": 68.2, "box+seg": 72.5}),
}
"""Part -> the config field, and J&F of its values. With [BOX] and without TSF: 72.5 is Table 4's number there."""

TABLE_15 = {
    "videoglamm": (5.435, 38927, 5.452, 38962),
    "unipixel": (3.881, 1530, 3.898, 1565),
    "glus": (7.288, 2680, 7.305, 2715),
}
"""Billions of parameters and GFLOPs per frame: host, host + SPARROW."""

FPS = {"videoglamm": (2.40, 2.40), "unipixel": (15.38, 15.04), "glus": (6.374, 6.29)}
"""Table 15's frames per second over Ref-DAVIS17 on an A100: host, host + SPARROW."""


def beside(
    benchmark: str, split: str, host: str
) -> dict[str, tuple[Column, float | None, float | None]]:
    """Key of a summary -> (its column, the paper's number of the host, and of the host with SPARROW), as printed."""
    found = {}
    for table in MAIN:
        for i, column in enumerate(table.columns):
            if (column.benchmark, column.split) == (benchmark, split):
                found[column.key] = (
                    column,
                    table.values[host, False][i],
                    table.values[host, True][i],
                )
    return found
