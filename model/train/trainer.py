"""The loop: batches in, steps out, on one process or many; what it needs of a training is a `Task` and a `Loader`."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.interrupt import SIGNALS, Interruption, interruptible
from model.train import state
from model.train.config import TrainConfig
from model.train.log import Log, read, skipped_steps
from model.train.parallel import World, last_pass, whole
from model.train.resume import Chosen, choose, last_good_advice, set_aside
from model.train.saving import StateKeeper
from model.train.task import Loader, Task

PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bfloat16 FLOP/s by the makers' data sheets, for the MFU."""


class TrainError(RuntimeError):
    """A training that cannot go on."""


@dataclass(frozen=True)
class Outcome:
    """steps: done in all; stopped: the signal that asked for an end, 0 if none did; state: what to resume from."""

    steps: int
    stopped: int
    state: Path | None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as a shell reports it; 0 after the last step."""
        return 128 + self.stopped if self.stopped else 0


@dataclass(frozen=True)
class Step:
    """What a step did, and what the processes want after it. row: of `steps.csv`; stop: a signal, or 0; is_late: a
    state is due by time; fine: loss and gradient were finite."""

    row: dict[str, Any]
    stop: int
    is_late: bool
    fine: bool


LATE = "late"
"""Beside signals, what processes tell each other at the end of a step."""


class Trainer:
    """Trains `task` on what `loader` gives, in the folder `run`, and resumes there from an earlier call's state.

    Every process makes one, with its own loader. show: called with the row of each step, on the first process;
    tell: with whatever a person should read. chosen: the state to resume from; default: the newest of `run`. about:
    further content of `state.json`.
    StateError if that is damaged, or of another task, config or number of processes.
    """

    def __init__(
        self,
        task: Task,
        loader: Loader,
        config: TrainConfig,
        run: str | Path,
        world: World | None = None,
        show: Callable[[dict[str, Any]], None] = lambda row: None,
        tell: Callable[[str], None] = print,
        chosen: Chosen | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self.task, self.loader, self.config, self.run_folder = task, loader, config, Path(run)
        self.world, self._show, self._tell = world or World(), show, tell
        self._about = dict(about or {})
        self.module: nn.Module = task.module
        """The model itself; `task.module` is what is called."""
        state.seed_everything(config.seed, self.world.rank)
        if config.gradient_checkpointing:
            task.gradient_checkpointing()
        task.module = self.world.wrap(self.module, config.parallel, task.blocks())
        groups = [{**group, "params": list(group["params"])} for group in task.parameters()]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=False
        )
        self.step, self.skipped, self._flops = 0, 0, 0.0
        self._interruption = Interruption()
        chosen = chosen or choose(self.run_folder, world=self.world)
        self._from = chosen.place
        if self._from is not None:
            stored = state.check(
                self._from, task.name, self.module, config, self.world, chosen.may_change
            )
        set_aside(self.run_folder, chosen, self.world, tell)  # once nothing is refused any more
        if self._from is not None:
            loader.load_state_dict(state.load(self._from, self.module, self.optimizer, self.world))
            self.step, self.skipped = stored["step"], stored["skipped"]
        self.started_at = self.step

    def run(self) -> Outcome:
        """Train until the end, or until a signal; then everything is saved. TrainError past the NaN budget."""
        place = self._from
        log = Log(self.run_folder, self.step) if self.world.first else None
        self.module.train()
        feed = self._feed()
        if self._from is not None:
            state.restore_random(self._from, self.world)
        try:
            with interruptible(self.world.first) as self._interruption:
                place, stop = self._loop(feed, log)
        finally:
            feed.close()  # a loader may be reading ahead
            if log is not None:
                log.close()
        return Outcome(self.step, stop, place)

    def _loop(self, feed: Generator[Any], log: Log | None) -> tuple[Path | None, int]:
        """The newest state, and the signal that asked for an end."""
        config, place, stop, due = self.config, self._from, 0, False
        skipped = skipped_steps(self.run_folder) if self.world.first else ()
        keeper = StateKeeper(self.run_folder, config, first=self.world.first, skipped=skipped)
        self._validate_if_missing(log)
        while self.step < config.steps:
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[]):  # what loaders draw is not the model's business
                batches = [next(feed) for _ in range(config.accumulation)]
            step = self._step(batches, keeper.is_late)
            row = step.row | self._speed(batches, time.perf_counter() - start)
            if log is not None:
                log.write(row)
                self._show(row)
            if not step.fine:
                keeper.skipped.add(self.step)
            self.step += 1
            is_last = self.step == config.steps
            stop = stop or step.stop
            due = due or bool(stop) or step.is_late or self.step % config.save_every == 0
            if is_last or (due and step.fine):
                if log is not None:
                    log.sync()  # before the state, which continues these rows
                place, due = self._save(), False
                self.world.agree(lambda: keeper.saved(self.step))
                if stop:
                    return place, stop
            self._validate_if_due(log)
        return place, max(self.world.gather(self._interruption.number))

    def _step(self, batches: list[Any], is_late: bool = False) -> Step:
        """One update from all batches of all processes as if they were one: each term is its sum over everything that
        counts, divided by how much that is."""
        task, config, world = self.task, self.config, self.world
        counts = [task.counts(batch) for batch in batches]
        totals = world.sum({name: sum(count[name] for count in counts) for name in task.weights})
        lr = config.lr * config.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        sums = {name: torch.zeros((), device=world.device) for name in task.weights}
        finite: list[Tensor] = []
        measure = (
            FlopCounterMode(display=False)
            if world.device.type == "cuda" and not self._flops
            else None
        )
        with measure or nullcontext():
            for k, (batch, count) in enumerate(zip(batches, counts, strict=True)):
                with last_pass(task.module, k == len(batches) - 1):
                    with self._precision():
                        losses = task.losses(batch)
                    shares = {
                        n: losses[n].float() * (count[n] / max(totals[n], 1.0))
                        for n in task.weights
                    }
                    loss = torch.stack(
                        [weight * shares[n] for n, weight in task.weights.items()]
                    ).sum()
                    (loss * world.size).backward()  # DDP and FSDP divide by it
                for name, share in shares.items():
                    sums[name] += share.detach()
                finite.append(loss.detach().isfinite())
        if measure is not None:
            self._flops = float(measure.get_total_flops())
        bad = self._not_finite(batches, finite)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(whole(torch.nn.utils.clip_grad_norm_(trained, config.clip)))
        found, stop, is_late = self._agree(sums, is_late)
        tallies = self._tallies(batches)
        total = sum(task.weights[name] * value for name, value in found.items())
        fine = math.isfinite(norm) and math.isfinite(total)
        if fine:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not fine:
            self._skip(bad, [key for batch in batches for key in task.keys(batch)])
        row = {
            "step": self.step,
            "loss": total,
            # Empty: a figure of nothing.
            **{name: value if totals[name] else "" for name, value in found.items()},
            **tallies,
            "lr": lr,
            "grad_norm": norm,
            "skipped": self.skipped,
        }
        return Step(row, stop, is_late, fine)

    def _agree(self, sums: dict[str, Tensor], is_late: bool) -> tuple[dict[str, float], int, bool]:
        """The losses of all processes, the signal that any of them got, and whether a state is due by time."""
        losses = {name: float(value) for name, value in sums.items()}
        asked = {str(number): float(self._interruption.number == number) for number in SIGNALS}
        found = self.world.sum(losses | asked | {LATE: float(is_late)})
        stop = max(number if found.pop(str(number)) else 0 for number in SIGNALS)
        is_late = found.pop(LATE) > 0
        return found, stop, is_late

    def _not_finite(self, batches: list[Any], finite: list[Tensor]) -> list[str]:
        """Keys of the batches whose loss is not finite. One look for all: each look waits for the device."""
        passes = zip(batches, torch.stack(finite).tolist(), strict=True)
        return [key for batch, fine in passes if not fine for key in self.task.keys(batch)]

    def _tallies(self, batches: list[Any]) -> dict[str, float]:
        """The task's further columns, of all batches of all processes."""
        sums: dict[str, float] = {}
        for batch in batches:
            for name, value in self.task.tallies(batch).items():
                sums[name] = sums.get(name, 0.0) + value
        return self.world.sum(sums) if sums else {}

    def _skip(self, bad: list[str], every: list[str]) -> None:
        """No update from numbers that are none; who is to blame is said, and too often is an error."""
        blamed = [key for keys in self.world.gather(bad) for key in keys]
        what = "a loss that is not finite" if blamed else "a gradient that is not finite"
        blamed = blamed or [key for keys in self.world.gather(every) for key in keys]
        self.skipped += 1
        text = f"step {self.step}: {what}, from {', '.join(blamed)}"
        if self.skipped > self.config.nan_budget:
            raise TrainError(
                f"{text}; that is {self.skipped} steps, and nan_budget is {self.config.nan_budget}. Look at these "
                f"samples, or train in float32. {last_good_advice(self.run_folder)}"
            )
        if self.world.first:
            self._tell(f"{text}; the step is skipped")

    def _save(self) -> Path:
        return state.save(
            self.run_folder,
            self.step,
            self.task.name,
            self.module,
            self.optimizer,
            self.config,
            self.world,
            self.loader.state_dict(),
            {"skipped": self.skipped, **self._about},
        )

    def _validate_if_due(self, log: Log | None) -> None:
        every = self.config.validate_every
        if every and self.step and self.step % every == 0:
            self._validate(log)

    def _validate_if_missing(self, log: Log | None) -> None:
        """A run that was stopped has saved its state, and left the validation that was due to the one that resumes."""
        if not self.step:
            return
        measured = read(self.run_folder / "validation.csv") if log is not None else []
        is_there = any(row["step"] == self.step for row in measured)
        if not any(self.world.gather(is_there)):
            self._validate_if_due(log)

    def _validate(self, log: Log | None) -> None:
        self.module.eval()
        with torch.random.fork_rng(), torch.no_grad(), self._precision():
            found = self.task.validate()
        self.module.train()
        if log is not None and found:
            log.write({"step": self.step, **found}, "validation")

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def _feed(self) -> Generator[Any]:
        """Epoch after epoch. A loader that stopped at the end of one may begin with an empty pass."""
        empty = 0
        while empty < 2:
            empty += 1
            for batch in self.loader:
                empty = 0
                yield batch
        raise TrainError("the loader gives no batch: are there fewer samples than ranks * batch?")

    def _speed(self, batches: list[Any], seconds: float) -> dict[str, float | str]:
        """Of all processes. MFU: operations of this process's first step as PyTorch counts them (recomputation
        included), over time and the bfloat16 peak; empty where the device or its peak is unknown."""
        sizes = [self.task.size(batch) for batch in batches]
        row: dict[str, float | str] = {
            "seconds": seconds,
            "samples_per_s": sum(n for n, _ in sizes) * self.world.size / seconds,
            "tokens_per_s": sum(n for _, n in sizes) * self.world.size / seconds,
            "memory_gb": "",
            "mfu": "",
        }
        if self.world.device.type == "cuda":
            row["memory_gb"] = torch.cuda.max_memory_allocated(self.world.device) / 1e9
            name = torch.cuda.get_device_name(self.world.device)
            peak = next(
                (
                    flops
                    for word, flops in PEAK.items()
                    if word in name.split() or f" {word}-" in name
                ),
                None,
            )
            if peak is not None and self.step > self.started_at:
                row["mfu"] = self._flops / seconds / peak
        return row
