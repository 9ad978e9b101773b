"""Which state a run resumes from: the newest, once it was checked, or the last good one.

Nothing is loaded from a state before all of its files were compared with their checksums.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from model.train.parallel import World
from model.train.state import STATE, StateError, rank_files, states, step_of
from schemas.files import sync
from schemas.folders import remove_leftovers
from schemas.json_checksum import FILES, DamagedError, damages, load_checked

Resume = Literal["newest", "last-good"]
"""What to do if the newest state is damaged: stop, or resume from the newest one that is not."""


@dataclass(frozen=True)
class Chosen:
    """place: the state to resume from; None: the run begins. damaged: newer states, newest first, and what is wrong
    with each. has_checksums: whether damage of `place` would have been noticed."""

    place: Path | None = None
    damaged: tuple[tuple[Path, str], ...] = ()
    has_checksums: bool = True


def choose(run: Path, resume: Resume = "newest", world: World | None = None) -> Chosen:
    """The state to resume from, the same on every process: the first one reads. Nothing is changed on disk.

    StateError, in one line: the newest state is damaged and `resume` is "newest", or no state is good.
    """
    world = world or World()
    return world.agree(lambda: _choose(run, resume) if world.first else Chosen())[0]


def set_aside(run: Path, chosen: Chosen, world: World, tell: Callable[[str], None]) -> None:
    """Before training: rename the damaged states, so that no later save meets their names, and remove what killed
    processes have left. tell: hears of it, on the first process."""
    lines = world.agree(lambda: _set_aside(run, chosen) if world.first else [])[0]
    if world.first:
        for line in lines:
            tell(line)


def state_damage(place: Path) -> str:
    """What is wrong with a state; empty if it is whole. OSError if a file is there and may not be read."""
    try:
        about = load_checked(place / STATE)
    except DamagedError as error:
        return str(error)
    if FILES not in about:
        return "; ".join(_unreadable(place, about))
    return "; ".join(damages(place, about[FILES]))


def _choose(run: Path, resume: Resume) -> Chosen:
    damaged: list[tuple[Path, str]] = []
    good: Path | None = None
    for place in states(run):
        reason = state_damage(place)
        if not reason:
            good = place
            break
        damaged.append((place, reason))
    if damaged and (good is None or resume == "newest"):
        newest, reason = damaged[0]
        raise StateError(f"{newest} is damaged: {reason}. {_advice(run, good)}")
    has_checksums = good is None or FILES in load_checked(good / STATE)
    return Chosen(good, tuple(damaged), has_checksums)


def _advice(run: Path, good: Path | None) -> str:
    if good is None:
        return f"There is no good state. To start anew, use another --out, or move {run / 'states'} away"
    step = step_of(good)
    return f"The last good state is that of step {step}: `--resume last-good` continues from step {step}"


def _set_aside(run: Path, chosen: Chosen) -> list[str]:
    lines = []
    for place, reason in chosen.damaged:
        aside = _free_name(place)
        place.rename(aside)
        sync(place.parent)
        lines.append(f"{place} is damaged: {reason}. It was set aside as {aside.name}")
    if not chosen.has_checksums:
        lines.append(
            f"{chosen.place} holds no checksums, as an earlier version saved it: damage may go unnoticed"
        )
    remove_leftovers(run / "states", "step-*")
    remove_leftovers(run, "export*")
    return lines


def _free_name(place: Path) -> Path:
    aside = place.with_name(f"{place.name}.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = place.with_name(f"{place.name}.damaged-{number}")
    return aside


def _unreadable(place: Path, about: dict[str, Any]) -> list[str]:
    """For a state without checksums: files that are missing, or that end too early."""
    lines = []
    for name in rank_files(int(about.get("ranks", 1))):
        path = place / name
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            else:
                with safe_open(path, framework="pt"):
                    pass
        except FileNotFoundError:
            lines.append(f"{name} is missing")
        except (SafetensorError, ValueError) as error:
            lines.append(f"{name} cannot be read ({error})")
    return lines
