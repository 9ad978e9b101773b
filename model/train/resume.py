"""Which state a run resumes from: the newest, once it was checked, or the last good one.

Nothing is loaded from a state before all of its files were compared with their checksums. A good state is one that is
not damaged, and that no step without a finite loss has followed soon (`trusted_after`), as far as `steps.csv` tells.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from model.train.config import FREE, RECOVERY, TrainConfig
from model.train.log import skipped_steps
from model.train.parallel import World
from model.train.saving import first_skipped
from model.train.state import STATE, StateError, rank_files, states, step_of
from schemas.files import sync
from schemas.folders import remove_leftovers
from schemas.json_checksum import FILES, DamagedError, damages, load_checked

Resume = Literal["newest", "last-good"]
"""What to resume from: the newest state, and stop if it is damaged; or the newest good one."""


@dataclass(frozen=True)
class PassedOver:
    """A state newer than the chosen one. reason: a clause about it; suffix: what it is renamed with."""

    place: Path
    reason: str
    suffix: Literal["damaged", "diverged"]

    def __str__(self) -> str:
        return f"{self.place} {self.reason}"


@dataclass(frozen=True)
class Chosen:
    """place: the state to resume from; None: the run begins. passed_over: newer states, newest first. has_checksums:
    whether damage of `place` would have been noticed. may_change: fields of the config that may differ from it."""

    place: Path | None = None
    passed_over: tuple[PassedOver, ...] = ()
    has_checksums: bool = True
    may_change: tuple[str, ...] = FREE


def choose(run: Path, resume: Resume = "newest", world: World | None = None) -> Chosen:
    """The state to resume from, the same on every process: the first one reads. Nothing is changed on disk.

    StateError, in one line: the newest state is damaged and `resume` is "newest", or no state is good.
    """
    world = world or World()
    return world.agree(lambda: _choose(run, resume) if world.first else Chosen())[0]


def set_aside(run: Path, chosen: Chosen, world: World, tell: Callable[[str], None]) -> None:
    """Before training: rename the states that were passed over, so that no later save meets their names, and remove
    what killed processes have left. tell: hears of it, on the first process."""
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


def last_good_advice(run: Path) -> str:
    """What to do about a training that diverged, in a sentence."""
    diverged = _diverged(run)
    good = next((p for p in states(run) if p not in diverged and not state_damage(p)), None)
    if good is None:
        return f"No state in {run / 'states'} is from before: start anew with another --out and a lower lr"
    step = step_of(good)
    return (
        f"`--resume last-good` resumes from step {step}, and takes another --set train.lr or "
        "--set train.clip then"
    )


def _choose(run: Path, resume: Resume) -> Chosen:
    diverged = _diverged(run) if resume == "last-good" else {}
    passed: list[PassedOver] = []
    good: Path | None = None
    for place in states(run):
        damage = state_damage(place)
        if damage:
            passed.append(PassedOver(place, f"is damaged: {damage}", "damaged"))
        elif place in diverged:
            passed.append(PassedOver(place, diverged[place], "diverged"))
        else:
            good = place
            break
    if passed and (good is None or resume == "newest"):
        raise StateError(f"{passed[0]}. {_advice(run, good)}")
    has_checksums = good is None or FILES in load_checked(good / STATE)
    free = (*FREE, *RECOVERY) if resume == "last-good" else FREE
    return Chosen(good, tuple(passed), has_checksums, free)


def _diverged(run: Path) -> dict[Path, str]:
    """The states that a step without a finite loss has followed too soon, and which one, in words."""
    skipped = skipped_steps(run)
    found: dict[Path, str] = {}
    for place in states(run):
        try:
            config = load_checked(place / STATE).get("config", {})
        except DamagedError:
            continue  # which is said elsewhere
        within = int(config.get("trusted_after", TrainConfig().trusted_after))
        step = first_skipped(step_of(place), within, skipped)
        if step is not None:
            found[place] = f"was followed by step {step}, which was not finite"
    return found


def _advice(run: Path, good: Path | None) -> str:
    if good is None:
        return f"There is no good state. To start anew, use another --out, or move {run / 'states'} away"
    step = step_of(good)
    return f"The last good state is that of step {step}: `--resume last-good` continues from step {step}"


def _set_aside(run: Path, chosen: Chosen) -> list[str]:
    lines = []
    for one in chosen.passed_over:
        aside = _free_name(one)
        one.place.rename(aside)
        sync(one.place.parent)
        lines.append(f"{one}. It was set aside as {aside.name}")
    if not chosen.has_checksums:
        lines.append(
            f"{chosen.place} holds no checksums, as an earlier version saved it: damage may go unnoticed"
        )
    remove_leftovers(run / "states", "step-*")
    remove_leftovers(run, "export*")
    return lines


def _free_name(one: PassedOver) -> Path:
    aside = one.place.with_name(f"{one.place.name}.{one.suffix}")
    number = 1
    while aside.exists():
        number += 1
        aside = one.place.with_name(f"{one.place.name}.{one.suffix}-{number}")
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
