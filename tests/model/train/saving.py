"""A training of one small layer, a step and a save per call, for faults in a process of its own (tests.chaos.faults)."""

from pathlib import Path

import torch
import torch._dynamo  # an optimiser's first step loads it: once here, not in every fork
from torch import nn

from model.train import state
from model.train.config import TrainConfig
from model.train.parallel import World
from model.train.resume import choose, set_aside
from model.train.saving import StateKeeper
from schemas.folders import replacing_folder

CONFIG = TrainConfig(steps=10, warmup=0, keep=2, trusted_after=1)


def save_next(run: Path) -> None:
    """Resume from the newest state of `run`, train a step and save."""
    torch.manual_seed(0)
    module = nn.Linear(40, 40)
    optimizer = torch.optim.AdamW(module.parameters())
    world, step = World(), 0
    chosen = choose(run)
    set_aside(run, chosen, world, print)
    if chosen.place is not None:
        state.load(chosen.place, module, optimizer, world)
        state.restore_random(chosen.place, world)
        step = state.step_of(chosen.place)
    module(torch.randn(4, 40)).square().sum().backward()
    optimizer.step()
    state.save(run, step + 1, "test", module, optimizer, CONFIG, world, {"position": step}, {})
    StateKeeper(run, CONFIG, first=True, skipped=()).saved(step + 1)


def replace(folder: Path) -> None:
    """Write a folder of two files in the place of an older one."""
    with replacing_folder(folder) as fresh:
        for name in ("one", "two"):
            (fresh / name).write_text("new " * 2000)
