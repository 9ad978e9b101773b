"""`sparrow eval cost`: what curation and training cost, from the runs' own timings, beside Tables 13 and 14.

A training's time is the sum of its steps (steps.csv): reading of data is in it, building the model, validation and
saving are not. A curation's is its curating phase (runs/<id>/summary.json). Hours count as GPU-hours only if the run
recorded a GPU.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.evaluate.table import PAPER, Cell, PrintedTable, TableLine
from model.tables.costs import TABLE_13, TABLE_14, CostRow

CPU = "CPU"
_HOUR = 3600.0
_BASELINE = {("box", "enabled"): False, ("tsf", "path"): "none"}
"""What the model of a baseline's training has: the host without SPARROW."""


@dataclass(frozen=True)
class StageCost:
    """What a run cost. stage: of `model.tables.costs`, or "proposer". seconds: wall-clock of its work.

    device: the name of a GPU, or "CPU". processes: that worked at once, each on a device of its own.
    clips: that a curation finished.
    """

    name: str
    stage: str
    device: str
    processes: int
    seconds: float
    clips: int = 0

    @property
    def hours(self) -> float:
        """Wall-clock."""
        return self.seconds / _HOUR

    @property
    def gpu_hours(self) -> float | None:
        """None on a CPU."""
        return None if self.device == CPU else self.hours * self.processes

    @property
    def source(self) -> str:
        """What it ran on, in words."""
        return f"{self.name}: {self.processes} x {self.device}"


def read_costs(places: Sequence[Path]) -> list[StageCost]:
    """Each place is the run of a training, a curated output, or a folder with some in it. ValueError where none is."""
    found: list[StageCost] = []
    for place in places:
        costs = list(_costs(place, place.parent))
        if not costs:
            below = [path for path in sorted(place.glob("*")) if path.is_dir()]
            costs = [cost for path in below for cost in _costs(path, place)]
        if not costs:
            raise ValueError(
                f"{place}: no run of `sparrow train` is there (config.json and steps.csv), and no curated output "
                "with logs (runs/*/summary.json)"
            )
        found += costs
    return found


def _costs(place: Path, base: Path) -> Iterator[StageCost]:
    name = str(place.relative_to(base)) if place != base else place.name
    request = _read(place / "config.json")
    if "what" in request and (place / "steps.csv").is_file():
        yield _of_training(place, name, request)
    for file in sorted(place.glob("runs/*/summary.json")):
        if cost := _of_curation(file, f"{name}/{file.parent.name}"):
            yield cost


def _of_training(run: Path, name: str, request: dict[str, Any]) -> StageCost:
    with (run / "steps.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("seconds")]
    where = request.get("ran_on") or _traces(run, rows)
    model = request.get("settled", {}).get("model", {})
    baseline = all(
        model.get(part, {}).get(key) == value for (part, key), value in _BASELINE.items()
    )
    return StageCost(
        name=name,
        stage="baseline" if baseline else request["what"],
        device=where["device"],
        processes=where["processes"],
        seconds=sum(float(row["seconds"]) for row in rows),
    )


def _traces(run: Path, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Where a run of an earlier version trained: its states know the processes, its steps whether they used a GPU."""
    states = sorted(run.glob("states/step-*/state.json"))
    ranks = _read(states[-1]).get("ranks", 1) if states else 1
    used_gpu = any(row.get("memory_gb") for row in rows)
    return {"device": "GPU of unknown name" if used_gpu else CPU, "processes": ranks}


def _of_curation(summary: Path, name: str) -> StageCost | None:
    """None for a run that curated nothing, such as one that found all done."""
    about, facts = _read(summary), _read(summary.with_name("run.json"))
    seconds = about.get("phases", {}).get("curating", 0.0)
    clips = sum(job["clips_done"] for job in about.get("jobs", {}).values())
    if not seconds or not clips:
        return None
    hosts = about.get("hosts", {}).values()
    gpus = facts.get("host", {}).get("gpus", []) if any(one["peak_gpu"] for one in hosts) else []
    return StageCost(
        name=name,
        stage="curation",
        device=gpus[0]["name"] if gpus else CPU,
        processes=facts.get("workers", 1),
        seconds=seconds,
        clips=clips,
    )


def _read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if it is missing or cannot be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# --- tables ---------------------------------------------------------------------------------------------------------


def tables_of_cost(costs: Sequence[StageCost]) -> list[PrintedTable]:
    """Tables 13 and 14, with the runs below the paper's rows."""
    return [_table_13(costs), _table_14(costs)]


def _table_13(costs: Sequence[StageCost]) -> PrintedTable:
    table = PrintedTable(
        "Table 13",
        "Cost by stage: paper on A100 GPUs; ours on the machine of the run",
        ["wall-clock (h)", "devices", "GPU-hours", "GPU-days"],
    )
    for row in TABLE_13:
        paper = _cells(row.hours, row.gpus, row.gpu_hours, row.gpu_days)
        table.rows.append(TableLine(row.name, PAPER, paper))
        table.rows += _lines(row, costs)
    table.rows += [
        TableLine("Proposer pretraining (not in the paper's table)", cost.source, _of(cost))
        for cost in costs
        if cost.stage == "proposer"
    ]
    return table


def _lines(row: CostRow, costs: Sequence[StageCost]) -> list[TableLine]:
    if row.stage not in ("training", "increment"):
        return [TableLine(row.name, c.source, _of(c)) for c in costs if c.stage == row.stage]
    stages = [_only(costs, "stage1"), _only(costs, "stage2")]
    if row.stage == "increment":
        stages.append(_only(costs, "baseline"))
    runs = [cost for cost in stages if cost is not None]
    hours = [cost.gpu_hours for cost in runs if cost.gpu_hours is not None]
    if len(hours) < len(stages):
        return []
    more = row.stage == "increment"
    gpu_hours = hours[0] + hours[1] - (hours[2] if more else 0.0)
    wall = None if more else runs[0].hours + runs[1].hours
    source = ", ".join(cost.name for cost in runs)
    return [TableLine(row.name, source, _cells(wall, None, gpu_hours, gpu_hours / 24))]


def _only(costs: Sequence[StageCost], stage: str) -> StageCost | None:
    """The run of a stage; None if there are several, for a sum would not say of which."""
    found = [cost for cost in costs if cost.stage == stage]
    return found[0] if len(found) == 1 else None


def _of(cost: StageCost) -> list[Cell]:
    gpu_hours = cost.gpu_hours
    cells = _cells(cost.hours, cost.processes, gpu_hours, gpu_hours and gpu_hours / 24)
    if gpu_hours is None:
        cells[2:] = [Cell(text=CPU), Cell(text=CPU)]
    return cells


def _cells(
    hours: float | None, devices: int | None, gpu_hours: float | None, days: float | None
) -> list[Cell]:
    return [
        Cell(hours, digits=2),
        Cell(devices, digits=0),
        Cell(gpu_hours, digits=2),
        Cell(days, digits=2),
    ]


def _table_14(costs: Sequence[StageCost]) -> PrintedTable:
    table = PrintedTable(
        "Table 14",
        "When each component runs, and what it costs",
        ["stage", "when", "runtime cost"],
    )
    for row in TABLE_14:
        words = [row.phase, row.when, row.cost]
        table.rows.append(TableLine(row.name, PAPER, [Cell(text=word) for word in words]))
        for cost in costs:
            if cost.stage == row.stage:
                words = [row.phase, row.when, _runtime(cost)]
                cells = [Cell(text=word) for word in words]
                table.rows.append(TableLine(row.name, cost.source, cells))
    return table


def _runtime(cost: StageCost) -> str:
    if cost.stage == "curation":
        return f"{cost.seconds * cost.processes / cost.clips:.2f} s / clip"
    if cost.gpu_hours is None:
        return f"{cost.hours:.2f} h of {CPU}"
    return f"{cost.gpu_hours / 24:.2f} GPU-days"
