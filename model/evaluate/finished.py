"""Runs that are finished, as the tables read them: evaluations, and recall of proposers.

<run>/results.json   what `sparrow eval` found
<run>/recall.json    what `sparrow train proposer --recall` found
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.evaluate.results import caveats
from model.tables.ablations import RECALL
from model.tables.definitions import Column


@dataclass(frozen=True)
class RunCost:
    """Of the model in a run; None where nothing was timed."""

    parameters: int | None = None
    fps: float | None = None
    """Frames asked about (once per query) over the seconds of reading and asking."""

    @classmethod
    def read(cls, timings: Path) -> "RunCost":
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


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its name in the tables, results.json, and what timings.csv records of its cost."""

    name: str
    results: dict[str, Any]
    cost: RunCost = field(default_factory=RunCost)

    def number(self, column: Column) -> tuple[float | None, float | None, float | None]:
        """The run's number in a column, in the units of print, and the bounds of its 95 % interval."""
        if (self.results["benchmark"], self.results["split"]) != (column.benchmark, column.split):
            return None, None, None
        costs = {"parameters": self.cost.parameters, "fps": self.cost.fps}
        value = self.results["summary"].get(column.key, costs.get(column.key))
        low, high = self.results["intervals"].get(column.key, (None, None))
        scaled = [None if x is None else x * column.scale for x in (value, low, high)]
        return scaled[0], scaled[1], scaled[2]

    @property
    def kind(self) -> str:
        """What runs that belong on one line have in common: model, weights, and how it was asked."""
        fields = ("host", "size", "preset", "model", "weights", "seed", "protocol")
        return json.dumps([self.results[name] for name in fields], sort_keys=True)

    @property
    def asked(self) -> str:
        """The protocol and what was changed, in words."""
        words = [
            f"protocol {self.results['protocol']}",
            *(f"{name}={value}" for name, value in self.results["changes"].items()),
        ]
        return ", ".join(words + (["tiny"] if self.results["size"] == "tiny" else []))

    @property
    def words(self) -> str:
        """What was run, and what must be known beside its numbers."""
        results = self.results
        parts = [
            f"{results['benchmark']} {results['split']}",
            f"{results['host']}, preset {results['preset']}",
            self.asked,
        ]
        parts += [f"{key} {value}" for key, value in results["scoring"].items()]
        return "; ".join([*parts, *caveats(results)])


def finished_runs(places: Sequence[Path]) -> list[FinishedRun]:
    """Each place is a run, or a folder with some in it. ValueError where there are none."""
    found: list[FinishedRun] = []
    for place in places:
        runs = [
            run
            for file in _files(place)
            if (run := _read(file, place.parent if file.parent == place else place)) is not None
        ]
        if not runs:
            raise ValueError(
                f"{place}: no finished run of `sparrow eval` is there (a folder with results.json), and no "
                "recall.json of `sparrow train proposer --recall`"
            )
        found += runs
    return found


def _files(place: Path) -> list[Path]:
    """Of the place itself if it is a run, else of what is below it."""
    own = [place / name for name in _READERS if (place / name).is_file()]
    if own:
        return own
    return sorted(
        file
        for depth in ("*", "*/*", "*/*/*")
        for name in _READERS
        for file in place.glob(f"{depth}/{name}")
    )


def _read(file: Path, base: Path) -> FinishedRun | None:
    """None for a file of that name that others wrote."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file}: not JSON ({error}); run the command that wrote it again"
        ) from error
    results = _READERS[file.name](content) if isinstance(content, dict) else None
    if results is None:
        return None
    name = str(file.parent.relative_to(base))
    return FinishedRun(name, results, RunCost.read(file.parent / "timings.csv"))


def _evaluation(content: dict[str, Any]) -> dict[str, Any] | None:
    return content if "benchmark" in content and "summary" in content else None


def _recall(content: dict[str, Any]) -> dict[str, Any] | None:
    """`recall.json` in the form of `results.json`."""
    if "recall" not in content or "proposals" not in content:
        return None
    benchmark, split = RECALL
    taken = ("host", "size", "preset", "changes", "model", "weights")
    summary: Mapping[str, float] = {f"recall@{iou}": x for iou, x in content["recall"].items()}
    return {
        **{name: content[name] for name in taken},
        "benchmark": benchmark,
        "split": split,
        "scoring": {},
        "protocol": f"recall (top {content['top']}, {content['boxes']} boxes on {content['images']} images)",
        "answer": "",
        "seed": 0,
        "note": content["note"],
        "videos": content["images"],
        "of_videos": content["images"],
        "queries": content["images"],
        "failed": 0,
        "without_mask": 0,
        "summary": {**summary, "proposals": content["proposals"]},
        "intervals": {},
    }


_READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "results.json": _evaluation,
    "recall.json": _recall,
}
