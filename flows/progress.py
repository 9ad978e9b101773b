"""Progress of long work, wherever it is watched: a terminal, a Prefect run page, or nowhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from flows.text import visible


class Tick(Protocol):
    """Call it with the number of units just done, and a note on what is going on; `to` sets the count instead."""

    def __call__(self, n: int, note: str = "") -> None: ...

    def to(self, n: int) -> None: ...


class Progress(Protocol):
    """`with progress.stage("curate", unit="clips", total=40) as tick: tick(1)`."""

    def stage(self, name: str, *, unit: str, total: int | None = None) -> Any: ...


class Quiet:
    """Counts, and shows nothing. `on_change` is called at most every `every` seconds, and at the end of each stage."""

    every = 5.0

    def __init__(self) -> None:
        self.stages: dict[str, dict] = {}
        self._shown = 0.0

    @contextmanager
    def stage(self, name: str, *, unit: str, total: int | None = None) -> Iterator[Tick]:
        state = self.stages[name] = {
            "unit": unit,
            "total": total,
            "done": 0,
            "note": "",
            "start": time.monotonic(),
        }
        progress = self

        class _Tick:
            def __call__(self, n: int, note: str = "") -> None:
                state["done"] += n
                state["note"] = note
                progress._changed()

            def to(self, n: int) -> None:
                state["done"] = n
                progress._changed()

        try:
            yield _Tick()
        finally:
            state["seconds"] = time.monotonic() - state["start"]
            self._changed(force=True)

    def _changed(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._shown >= self.every:
            self._shown = now
            self.on_change()

    def on_change(self) -> None:
        pass


class Bars:
    """Rich progress bars with rate and ETA on stderr; plain lines where stderr is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self.console = Console(stderr=True)
        self.bars = RichProgress(
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self.console,
            transient=False,
        )
        self._depth = 0

    @contextmanager
    def stage(self, name: str, *, unit: str, total: int | None = None) -> Iterator[Tick]:
        if self._depth == 0 and self.console.is_terminal:
            self.bars.start()
        self._depth += 1
        bars, task = self.bars, self.bars.add_task(name, total=total, unit=unit, note="")
        start = time.monotonic()

        class _Tick:
            def __call__(self, n: int, note: str = "") -> None:
                bars.update(task, advance=n, note=visible(note)[:48])

            def to(self, n: int) -> None:
                bars.update(task, completed=n)

        try:
            yield _Tick()
            state = next(t for t in bars.tasks if t.id == task)
            bars.update(
                task, total=state.total if state.total is not None else state.completed, note=""
            )
            if not self.console.is_terminal:
                done, seconds = int(state.completed), time.monotonic() - start
                self.console.print(
                    f"{name}: {done} {unit} in {seconds:.1f} s", highlight=False, markup=False
                )
        finally:
            self._depth -= 1
            if self._depth == 0 and self.console.is_terminal:
                self.bars.stop()


class StepBar:
    """A bar with the loss beside it, on the first process."""

    def __init__(self, what: str, steps: int, shown: bool):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> "StepBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def show(self, row: dict[str, Any]) -> None:
        self._bar.update(self._task, advance=1, description=f"loss {row['loss']:.4f}")
