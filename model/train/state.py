"""Where a run stopped, on disk: enough to go on as if it had not.

    <run>/states/step-00000200/
        state.json              step, task, config, names of what trains; size and sha256 of every other file
        model.safetensors       what trains, whole
        optimizer.safetensors   <slot>/<parameter>
        rank-0.safetensors      random states of torch, CUDA and numpy      one pair per process
        rank-0.json             random state of python, position of the loader

A state is written beside, `state.json` last, synced and renamed: one that has its name was complete then. Whether it
still is says `model.train.resume`. Nothing in it is executed. What is frozen is not in it, nor are buffers: build the
model the same way.
"""

import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from model.train.config import FREE, TrainConfig
from model.train.parallel import World, part_of, whole
from schemas.files import sync
from schemas.folders import put_in_place, temporary_folder
from schemas.json_checksum import DamagedError, Digests, dumps_checked, file_digests, load_checked

FORMAT = 1
"""Goes up when older code could misread a new state."""
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class StateError(ValueError):
    """A state that is not there, not whole, or of another training."""


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """safetensors reports an error of the disk as one of its own. Here it is raised as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(folder)) from error


def named(module: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by name, each once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def states(run: Path) -> list[Path]:
    """The states of a run, newest first, good or damaged; not those that were set aside."""
    found = [path for path in (run / "states").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(place: Path) -> int:
    """Steps done in a state, by its name."""
    return int(place.name.removeprefix("step-"))


def rank_files(ranks: int) -> list[str]:
    """Names of the files of a state beside `state.json`."""
    of_ranks = [f"rank-{rank}.{kind}" for rank in range(ranks) for kind in ("safetensors", "json")]
    return ["model.safetensors", "optimizer.safetensors", *of_ranks]


def save(
    run: Path,
    step: int,
    task: str,
    module: nn.Module,
    optimizer: Optimizer,
    config: TrainConfig,
    world: World,
    loader: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Path:
    """Write the state after `step` steps. Every process calls it, on one disk.

    OSError on every process if one of them could not write; the older states are then as they were.
    """
    place = run / "states" / f"step-{step:08d}"
    parameters = named(module)
    model = {name: _plain(whole(p)) for name, p in parameters.items()}
    slots = {
        f"{slot}/{name}": _plain(whole(value))
        for name, p in parameters.items()
        for slot, value in optimizer.state.get(p, {}).items()
    }
    drawn, words = random_state(world.device)
    tensors = {f"rank-{world.rank}.safetensors": drawn}
    if world.first:
        tensors |= {"model.safetensors": model, "optimizer.safetensors": slots}
    texts = {f"rank-{world.rank}.json": json.dumps({"random": words, "loader": dict(loader)})}
    about = {
        "format": FORMAT,
        "step": step,
        "task": task,
        "ranks": world.size,
        "config": config.model_dump(mode="json"),
        "trained": {name: list(p.shape) for name, p in parameters.items()},
        **extra,
    }
    with ExitStack() as stack:
        fresh = world.agree(lambda: _begin(place, stack) if world.first else place)[0]
        parts = world.agree(lambda: _written(fresh, tensors, texts))
        files = {name: digest for part in parts for name, digest in part.items()}
        world.agree(lambda: _finish(fresh, place, about, files) if world.first else None)
    return place


def describe(place: Path) -> dict[str, Any]:
    """`state.json`. StateError if it is not one, or newer code wrote it."""
    try:
        about = load_checked(place / STATE)
        known = about["format"]
    except (OSError, DamagedError, LookupError) as error:
        raise StateError(f"{place}: not the state of a training: {error!r}") from error
    if known != FORMAT:
        raise StateError(
            f"{place}: format {known}, but this code (format {FORMAT}) cannot read it: update it"
        )
    return about


def check(
    place: Path,
    task: str,
    module: nn.Module,
    config: TrainConfig,
    world: World,
    free: Sequence[str] = FREE,
) -> dict[str, Any]:
    """`describe`, if the training described goes on with these; StateError says what differs and what to do.

    free: fields of the config that may differ.
    """
    about = describe(place)
    if about["task"] != task:
        raise StateError(
            f"{place} is a state of {about['task']}, which {task} cannot go on from: give {task} a run folder of its "
            "own, and start it from the other's export (--from RUN/export)"
        )
    if about["ranks"] != world.size:
        raise StateError(
            f"{place} was written by {about['ranks']} processes, now there are {world.size}: use as many again"
        )
    now, then = config.model_dump(mode="json"), about["config"]
    rows = [
        f"  {name}: now {now.get(name)}, then {then.get(name)}"
        for name in sorted({*now, *then})
        if name not in free and now.get(name) != then.get(name)
    ]
    if rows:
        raise StateError(
            "\n".join(
                [
                    f"{place} was trained with another config: keep it, or use a new run folder",
                    *rows,
                ]
            )
        )
    shapes = {name: list(p.shape) for name, p in named(module).items()}
    if wrong := sorted(
        n for n in {*shapes, *about["trained"]} if shapes.get(n) != about["trained"].get(n)
    ):
        raise StateError(
            f"{place}: {len(wrong)} tensors that train differ from the model's: {', '.join(wrong[:5])}"
        )
    return about


def load(place: Path, module: nn.Module, optimizer: Optimizer, world: World) -> dict[str, Any]:
    """Put parameters and optimiser back in place (after `check`); returns what `rank-N.json` has of the loader.

    StateError if a file cannot be read, or does not fit the others: only a state without checksums gets here so.
    """
    try:
        return _load(place, module, optimizer, world)
    except (SafetensorError, LookupError, ValueError) as error:
        raise StateError(f"{place} cannot be loaded: {error!r}") from error


def _load(place: Path, module: nn.Module, optimizer: Optimizer, world: World) -> dict[str, Any]:
    tensors = load_file(place / "model.safetensors")
    parameters = named(module)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(part_of(tensors[name], p))
    for key, value in load_file(place / "optimizer.safetensors").items():
        slot, _, name = key.partition("/")
        p = parameters[name]
        # "step" is one number, which Adam keeps on the CPU
        optimizer.state[p][slot] = value if value.ndim == 0 else part_of(value, p)
    return json.loads((place / f"rank-{world.rank}.json").read_text())["loader"]


def restore_random(place: Path, world: World) -> None:
    """The random states of this process, as they were when the state was written."""
    tensors = load_file(place / f"rank-{world.rank}.safetensors")
    words = json.loads((place / f"rank-{world.rank}.json").read_text())["random"]
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and world.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], world.device)
    kind, position, has_gauss, gauss = words["numpy"]
    np.random.set_state(
        (kind, tensors["numpy"].numpy().view(np.uint32), position, has_gauss, gauss)
    )
    version, internal, gauss_next = words["python"]
    random.setstate((version, tuple(internal), gauss_next))


def random_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of python, numpy, torch and the device: tensors, and the rest as JSON."""
    kind, keys, *rest = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, np.uint32).view(np.int32)),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"python": random.getstate(), "numpy": [kind, *rest]}


def seed_everything(seed: int, rank: int) -> None:
    """Every random number of this process from (seed, rank)."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _begin(place: Path, stack: ExitStack) -> Path:
    """The folder to write the state to, until `stack` ends. StateError if the state is there already."""
    if place.exists():
        raise StateError(
            f"{place} is there already: another process trains in this folder. Stop one of them, and run the same "
            "command again"
        )
    return stack.enter_context(temporary_folder(place))


def _written(
    folder: Path, tensors: Mapping[str, dict[str, Tensor]], texts: Mapping[str, str]
) -> Digests:
    """Write the files of this process; they are on the disk afterwards, whichever machine this is."""
    with disk_errors(folder):
        for name, values in tensors.items():
            save_file(values, folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text)
    paths = [folder / name for name in [*tensors, *texts]]
    for path in paths:
        sync(path)
    return file_digests(paths)


def _finish(fresh: Path, place: Path, about: Mapping[str, Any], files: Digests) -> None:
    """`state.json` is written when everything it vouches for is on the disk."""
    (fresh / STATE).write_text(dumps_checked(about, files))
    put_in_place(fresh, place)
