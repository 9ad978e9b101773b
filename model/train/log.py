"""What a run writes about itself: a CSV with every step, TensorBoard, and a picture of the losses."""

import csv
import threading
from pathlib import Path
from typing import Any

from schemas.files import replacing, sync

FIGURES = ("seconds", "samples_per_s", "tokens_per_s", "memory_gb", "mfu")
"""Columns that are about speed, not learning."""
TALLY = "n_"
"""What columns begin with that count things: samples of a family of questions."""
TABLES = ("steps.csv", "validation.csv")


class Log:
    """<run>/steps.csv, validation.csv, losses.png, tensorboard/. `step`: rows from there on are of a part that is
    being trained again, and go."""

    def __init__(self, run: Path, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        run.mkdir(parents=True, exist_ok=True)
        self.run = run
        _cut(run / "steps.csv", step)
        _cut(run / "validation.csv", step + 1)  # that of the state itself is not measured again
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        try:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)
        except OSError:
            threading.excepthook = self._hook
            raise

    def write(self, row: dict[str, Any], name: str = "steps") -> None:
        """One row, "step" among its columns; numbers are written so that reading gives the same ones."""
        path = self.run / f"{name}.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        for key, value in row.items():
            if key != "step" and value != "":
                group = name if name != "steps" else "speed" if key in FIGURES else "train"
                self._board.add_scalar(f"{group}/{key}", value, row["step"])

    def sync(self) -> None:
        """Bring the tables onto the disk. Before a state is saved: who resumes from it does not write its rows again."""
        for name in TABLES:
            if (self.run / name).exists():
                sync(self.run / name)
        sync(self.run)

    def close(self) -> None:
        """The picture, and the last of TensorBoard."""
        try:
            self._board.close()
            plot(self.run / "steps.csv", self.run / "losses.png")
        finally:
            threading.excepthook = self._hook

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """A full disk ends TensorBoard's thread. No traceback of it: its next call here raises the same error."""
        of_tensorboard = type(args.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and isinstance(args.exc_value, OSError)):
            self._hook(args)


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of `Log`; what is empty is left out."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if v not in ("", None)}
            for row in csv.DictReader(file)
        ]


def skipped_steps(run: Path) -> set[int]:
    """The steps of `steps.csv` that were not finite: there the count of skipped steps goes up."""
    path = run / "steps.csv"
    if not path.is_file():
        return set()
    found: set[int] = set()
    count = 0.0
    with path.open(newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            if not _is_whole(row):
                continue
            now = float(row.get("skipped") or 0)
            if now > count:
                found.add(int(row["step"]))
            count = now
    return found


def losses_of(rows: list[dict[str, float]]) -> dict[str, list[str]]:
    """The losses that rows of `steps.csv` hold, each with its parts: "ce" -> ["ce_region", "ce_host"]."""
    apart = ("step", "lr", "grad_norm", "skipped", *FIGURES)
    columns = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in columns if name not in apart and not name.startswith(TALLY)]
    parts = {name: [one for one in names if one.startswith(f"{name}_")] for name in names}
    inner = {one for found in parts.values() for one in found}
    return {name: found for name, found in parts.items() if name not in inner}


def plot(table: Path, picture: Path) -> None:
    """Every loss over the steps, raw and smoothed; beside it, dashed, the loss of each family of questions."""
    rows = read(table)
    losses = losses_of(rows)
    if not losses:
        return
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(losses), 3), layout="constrained")
    FigureCanvasAgg(figure)
    window = max(1, len(rows) // 20)
    panels = np.atleast_1d(figure.subplots(1, len(losses)))
    for axes, (name, parts) in zip(panels, losses.items(), strict=True):
        for line in (name, *parts):
            there = [row for row in rows if line in row]
            steps = np.array([row["step"] for row in there])
            values = np.array([row[line] for row in there])
            style = "-" if line == name else "--"
            if line == name:
                axes.plot(steps, values, linewidth=0.6, alpha=0.4)
            if 1 < window <= len(there):
                smooth = np.convolve(values, np.full(window, 1 / window), "valid")
                axes.plot(steps[window - 1 :], smooth, style, linewidth=1.5, label=line)
        axes.set(title=name, xlabel="step")
        if parts and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small")
    with replacing(picture) as fresh:
        figure.savefig(fresh, dpi=110, format="png")


def _cut(path: Path, step: int) -> None:
    """Drop the rows from `step` on, and any that a crash has left in part. A file with none left goes too."""
    if not path.is_file():
        return
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = [row for row in reader if _is_whole(row) and int(row["step"]) < step]
    if not rows:
        path.unlink()
        return
    with replacing(path) as fresh, fresh.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)


def _is_whole(row: dict[Any, Any]) -> bool:
    """Whether a row has a number as its step, and as many columns as the table."""
    return str(row.get("step")).isdecimal() and None not in row and None not in row.values()
