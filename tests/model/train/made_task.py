"""Loaders in memory, and a run of a tiny model, also as a program of its own for tests with several processes."""

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from model.train import state
from model.train.config import TrainConfig
from model.train.export import save_export
from model.train.parallel import World
from model.train.resume import Resume, choose
from model.train.task import Batch, StageTask
from model.train.trainer import Outcome, Trainer
from tests.model.made import sample, tiny

SMALL = {"steps": 6, "warmup": 2, "save_every": 3, "keep": 10, "lr": 1e-3}


class ListLoader:
    """Every world-th batch of a list, each epoch in an order of its own."""

    def __init__(
        self, samples: list[Any], batch: int = 1, rank: int = 0, world: int = 1, seed: int = 0
    ):
        self.samples, self.batch, self.rank, self.world, self.seed = (
            samples,
            batch,
            rank,
            world,
            seed,
        )
        self.epoch = self.position = 0

    def __iter__(self):
        order = list(range(len(self.samples)))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        whole = self.batch * self.world
        while (self.position + 1) * whole <= len(order):
            start = self.position * whole + self.rank * self.batch
            chosen = order[start : start + self.batch]
            self.position += 1
            yield Batch([self.samples[i] for i in chosen], [f"sample-{i}" for i in chosen])
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def corpus(sparrow, count: int = 4) -> list[Any]:
    """Samples of different lengths and places, half of them without TSF."""
    found = []
    for k in range(count):
        config = sparrow.config.with_(**({"tsf.path": "none"} if k % 2 else {}))
        one = sample(sparrow, objects=1 + k // 2 % 2, frames=2, config=config)
        one.sam_frames_f3ss = one.sam_frames_f3ss.roll(7 * k, -1)
        one.masks_nfhw = one.masks_nfhw.roll(3 * k, -1)
        found.append(one)
    return found


def train(
    run: Path,
    host: str,
    stage: str,
    world: World | None = None,
    count: int = 4,
    resume: Resume = "newest",
    tell: Callable[[str], None] = lambda text: None,
    **changes: Any,
) -> Outcome:
    """Build everything from seeds and train; a second call with the same folder goes on."""
    world = world or World()
    config = TrainConfig(**(SMALL | changes))
    chosen = choose(run, resume, world)
    sparrow = tiny(host)
    task = StageTask(sparrow, stage)  # type: ignore[arg-type]
    loader = ListLoader(corpus(sparrow, count), config.batch, world.rank, world.size)
    outcome = Trainer(task, loader, config, run, world, tell=tell, chosen=chosen).run()
    save_export(sparrow, run / "export", stage, outcome.steps, world)
    return outcome


def main() -> None:
    """Two processes, forked after the imports: these take longer than the trainings."""
    torch.set_num_threads(1)
    child = os.fork()
    os.environ |= {
        "RANK": "1" if child == 0 else "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    run, host, stage, changes = sys.argv[1:5]
    world = World.join(torch.device("cpu"))
    for one in json.loads(changes):  # one training after the other
        folder = Path(run) / one.pop("run")
        prepare(Path(run), folder, one, world)
        if one.pop("fails", False):
            fails(folder, host, stage, world, **one)
        else:
            train(folder, host, stage, world, **one)
    torch.distributed.destroy_process_group()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def prepare(base: Path, folder: Path, one: dict[str, Any], world: World) -> None:
    """What a training of `main` finds: a state that is moved there, without a file of its newest state, or a disk that
    is full for one rank."""
    moved, missing, full = (one.pop(name, None) for name in ("state", "missing", "full"))
    if world.first and moved is not None:
        (folder / "states").mkdir(parents=True)
        (base / moved).rename(folder / "states" / Path(moved).name)
    if world.first and missing is not None:
        (state.states(folder)[0] / missing).unlink()
    if full == world.rank:
        state.save_file = full_disk
    world.wait()


def full_disk(*_: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")


def fails(folder: Path, host: str, stage: str, world: World, **changes: Any) -> None:
    """Train, and write the error that ends it to <folder>/error-<rank>.txt."""
    try:
        train(folder, host, stage, world, **changes)
    except (OSError, ValueError) as error:
        (folder / f"error-{world.rank}.txt").write_text(f"{type(error).__name__}: {error}")
    world.wait()


if __name__ == "__main__":
    main()
