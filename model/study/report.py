"""From the scores of every model to tables, pictures and a written reading."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.study.config import StudyConfig
from model.study.grid import QUESTIONS, Row, rows_of
from model.study.world import KINDS

Runs = dict[str, list[dict[str, Any]]]
"""Training -> what `model.study.run.run_cell` wrote for it, one entry per base and seed, in the same order."""


@dataclass(frozen=True)
class Claim:
    """A difference between two rows that the paper reports, in points of J&F; or one of ours, if a row has no number."""

    table: str
    better: str
    than: str
    text: str


CLAIMS = (
    Claim("Table 4", "BOX only", "neither", "[BOX] helps without TSF"),
    Claim(
        "Table 4",
        "TSF in training",
        "neither",
        "training with TSF helps, though inference has none",
    ),
    Claim(
        "Table 4", "TSF in training + BOX", "BOX only", "training with TSF helps on top of [BOX]"
    ),
    Claim("Table 4", "TSF in training + BOX", "TSF in training", "[BOX] helps on top of TSF"),
    Claim("Table 4", "TSF in both", "TSF in training", "TSF at inference helps more"),
    Claim("Table 4", "TSF in both + BOX", "TSF in training + BOX", "and with [BOX] too"),
    Claim("Table 5C", "box+seg", "seg", "both prompts beat [SEG] alone"),
    Claim("Table 5C", "seg", "box", "[SEG] alone beats [BOX] alone"),
    Claim("Table 9", "spatial", "none", "the spatial projector's tokens help"),
    Claim("Table 9", "spatial", "temporal", "more than the temporal projector's"),
    Claim("Table 9", "spatial", "concat", "and more than both kinds beside each other"),
    Claim("Table 9", "spatial", "sum", "and more than their sum"),
    Claim("Table 10", "clean", "jitter 0.2", "jitter of the trajectory costs something"),
    Claim("Table 10", "clean", "id_switch 0.2", "identity switches cost something"),
    Claim("Table 10", "clean", "dropout 0.5", "missing boxes cost something"),
    Claim("Table 10", "id_switch 0.2", "no TSF", "even a bad trajectory is better than none"),
    Claim(
        "Questions",
        "share 1",
        "share 0",
        "all samples with TSF are asked about the region, or none",
    ),
    Claim("Questions", "share 0.5", "share 0", "half of them, or none"),
)


@dataclass(frozen=True)
class Line:
    """A row's scores. values: J&F of each run (base and seed), in points; by_kind: its means over clips of a kind."""

    row: Row
    values: list[float]
    right: list[float]
    by_kind: dict[str, float]
    answers: list[dict[str, float]] = field(default_factory=list)
    """Of each run: `model.study.measure.region_answers`."""


def lines(config: StudyConfig, runs: Runs) -> list[Line]:
    """Every row of the grid that has been run."""
    found = []
    for row in rows_of(config):
        scores = [
            one["clips"]
            for run in runs.get(row.training, [])
            for one in run["scores"]
            if one["asked"] == row.asked
        ]
        if scores:
            kinds = {
                k: [_jf([c for c in clips if c["kind"] == k]) for clips in scores] for k in KINDS
            }
            means: dict[str, float] = {
                kind: float(np.mean(values)) for kind, values in kinds.items()
            }
            found.append(
                Line(
                    row,
                    [_jf(clips) for clips in scores],
                    [_right(clips) for clips in scores],
                    means,
                    [run["answers"] for run in runs[row.training] if run.get("answers")],
                )
            )
    return found


def _jf(clips: list[dict[str, Any]]) -> float:
    return 50 * float(np.mean([clip["J"] + clip["F"] for clip in clips]))


def _right(clips: list[dict[str, Any]]) -> float:
    return 100 * float(np.mean([clip["right"] for clip in clips if clip["kind"] != "appearance"]))


def verdict(better: list[float], than: list[float]) -> tuple[str, float, float]:
    """Of paired runs: what the difference says, its mean and its standard error.

    "reproduced" or "the opposite" where the mean is beyond two standard errors, else "no difference seen"."""
    difference = np.subtract(better, than)
    mean = float(difference.mean())
    if len(difference) < 2:
        return "one run only", mean, float("nan")
    error = float(difference.std(ddof=1) / len(difference) ** 0.5)
    if abs(mean) <= 2 * error or mean == 0:
        return "no difference seen", mean, error
    return ("reproduced" if mean > 0 else "the opposite"), mean, error


def write_report(
    out: Path, config: StudyConfig, runs: Runs, bases: list[dict[str, Any]], minutes: float
) -> list[Path]:
    """`rows.csv`, a picture per table, `report.md`; returns what was written."""
    table = lines(config, runs)
    by_name = {(line.row.table, line.row.name): line for line in table}
    with (out / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["table", "row", "paper", "mean", "sd", "runs", "identity_right", *KINDS, "values"]
        )
        for line in table:
            writer.writerow(
                [
                    line.row.table,
                    line.row.name,
                    _paper(line.row),
                    *_numbers(line.values),
                    len(line.values),
                    *_numbers(line.right)[:1],
                    *(f"{line.by_kind[k]:.2f}" for k in KINDS),
                    " ".join(f"{v:.2f}" for v in line.values),
                ]
            )
    pictures = [
        _plot(out, name, [line for line in table if line.row.table == name])
        for name in _tables(table)
    ]
    text = [_head(config, bases, minutes), _examples(out), _reading(by_name)]
    for name, picture in zip(_tables(table), pictures, strict=True):
        text += [
            f"## {name}\n",
            _markdown(line for line in table if line.row.table == name),
            f"![{name}]({picture.name})\n",
        ]
    text.append(_answers(line for line in table if line.answers))
    (out / "report.md").write_text("\n".join(text))
    return [out / "report.md", out / "rows.csv", *pictures]


def _head(config: StudyConfig, bases: list[dict[str, Any]], minutes: float) -> str:
    start = [_jf(base["scores"][0]["clips"]) for base in bases]
    recall = [base["recall"]["0.5"] for base in bases]
    runs = config.bases * config.seeds
    return f"""# Study: does SPARROW help where words need identity over time?

Host: {config.host}, the real class made small and trained from nothing, {config.bases} times; on each, SPARROW's two
stages {config.seeds} times for every row. Made-up clips of {config.frames} frames at {config.side} px, {config.tested}
of them for the scores, none seen in training. J&F in points, mean and standard deviation over {runs} runs.
It took {minutes:.0f} minutes.

Before stage 1 the hosts score {_plain(start)} ({", ".join(f"{v:.1f}" for v in start)}); their proposers reach
{100 * float(np.mean(recall)):.0f} % of the objects at IoU 0.5. The paper's column is J&F on Ref-DAVIS17 with a real
VideoGLaMM: its differences can be compared, its levels cannot. "neither" is the model of "BOX only" asked without
[BOX].
"""


def _examples(out: Path) -> str:
    """A copy of the first base's picture, so that the report can be carried about."""
    found = out / "base-0" / "examples.jpg"
    if not found.is_file():
        return ""
    (out / "examples.jpg").write_bytes(found.read_bytes())
    return "![a host](examples.jpg)\n\nA host before stage 1: white is what was meant, red what was found.\n"


def _reading(by_name: dict[tuple[str, str], Line]) -> str:
    rows = [
        "## What reproduced\n",
        "| claim of the paper | paper | here | reading |",
        "|---|---|---|---|",
    ]
    tally: dict[str, int] = defaultdict(int)
    for claim in CLAIMS:
        one, other = (
            by_name.get((claim.table, claim.better)),
            by_name.get((claim.table, claim.than)),
        )
        if one is None or other is None:
            continue
        word, mean, error = verdict(one.values, other.values)
        paper = _difference(one.row.paper, other.row.paper)
        if paper:
            tally[word] += 1
        else:  # ours: there is nothing to reproduce
            word = {"reproduced": "better", "the opposite": "worse"}.get(word, word)
        rows.append(
            f"| {claim.table}: {claim.text} | {paper} | {mean:+.1f} +- {error:.1f} | {word} |"
        )
    counted = ", ".join(f"{word} {count}" for word, count in tally.items())
    about = (
        f"Of {sum(tally.values())} claims: {counted}. Here: the mean of the paired differences of the runs, and its "
        'standard error; a reading other than "no difference seen" needs two of them.\n'
    )
    return "\n".join([*rows, "", about])


def _difference(better: float | None, than: float | None) -> str:
    """Of the paper's numbers; empty if a row is not the paper's."""
    return "" if better is None or than is None else f"{better - than:+.1f}"


def _markdown(table: Iterable[Line]) -> str:
    rows = [
        "| | paper | J&F | " + " | ".join(KINDS) + " | right one of two look-alikes |",
        "|---" * (4 + len(KINDS)) + "|",
    ]
    for line in table:
        kinds = " | ".join(f"{line.by_kind[k]:.1f}" for k in KINDS)
        rows.append(
            f"| {line.row.name} | {_paper(line.row)} | {_plain(line.values)} | {kinds} | {_plain(line.right)} % |"
        )
    return "\n".join([*rows, ""])


def _answers(table: Iterable[Line]) -> str:
    """How trainings with different shares of region questions answer them."""
    rows = [
        f"| {line.row.name} | {_plain([one['loss'] for one in line.answers])} "
        f"| {_plain([100 * one['exact'] for one in line.answers])} % |"
        for line in table
        if line.row.table == QUESTIONS
    ]
    if not rows:
        return ""
    head = [
        "Answers to region questions, on clips not seen in training: the loss of a word of the phrase, and the share of "
        "answers that are the phrase.\n",
        "| share of region questions | loss of a word | exact |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _paper(row: Row) -> str:
    return "" if row.paper is None else f"{row.paper}"


def _numbers(values: list[float]) -> tuple[str, str]:
    return f"{np.mean(values):.2f}", f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else ""


def _plain(values: list[float]) -> str:
    mean, spread = _numbers(values)
    return f"{mean} +- {spread}" if spread else mean


def _tables(table: list[Line]) -> list[str]:
    return list(dict.fromkeys(line.row.table for line in table))


def _plot(out: Path, name: str, table: list[Line]) -> Path:
    """Bars with every run as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.45 * len(table) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, line in enumerate(table):
        spread = float(np.std(line.values, ddof=1)) if len(line.values) > 1 else 0.0
        axes.barh(place, np.mean(line.values), xerr=spread, color="#7aa6d6", height=0.6, capsize=3)
        axes.plot(line.values, [place] * len(line.values), "o", color="#c2571a", markersize=3)
    axes.set_yticks(range(len(table)), [line.row.name for line in table])
    axes.invert_yaxis()
    axes.set_xlabel("J&F (points); bars: mean and standard deviation, dots: runs")
    axes.set_title(name)
    path = out / f"{name.lower().replace(' ', '_')}.png"
    figure.savefig(path, dpi=110)
    return path
