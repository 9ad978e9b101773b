"""When a state is saved, and which states stay.

A state is saved after a finite step only: what a step that was skipped found wrong may be in the weights already. One
that is due waits for the next finite step.
"""

import time
from collections.abc import Collection
from pathlib import Path

from model.train.config import TrainConfig
from model.train.state import states, step_of
from schemas.folders import remove_folder


def first_skipped(step: int, within: int, skipped: Collection[int]) -> int | None:
    """The first step, of so many after the state of `step`, that was not finite."""
    return min((one for one in skipped if step <= one < step + within), default=None)


class StateKeeper:
    """Says when a state is due, and removes old ones. skipped: steps of earlier parts of the run that were not finite.

    On processes but the first it knows of no time.
    """

    def __init__(self, run: Path, config: TrainConfig, *, first: bool, skipped: Collection[int]):
        self.run, self.config = run, config
        self.skipped = set(skipped)
        self._first = first
        self._saved_at = time.monotonic()

    @property
    def is_late(self) -> bool:
        """Whether `save_minutes` have passed since the last state."""
        minutes = self.config.save_minutes
        passed = time.monotonic() - self._saved_at
        return self._first and minutes > 0 and passed >= 60 * minutes

    def saved(self, step: int) -> None:
        """A state of `step` is there: remove all but the newest `keep`, the newest that is trusted, and the oldest of
        those after it that may become so: where states are closer together than `trusted_after`, none would else."""
        self._saved_at = time.monotonic()
        if not self._first:
            return
        found = states(self.run)
        within = self.config.trusted_after
        sound = [p for p in found if first_skipped(step_of(p), within, self.skipped) is None]
        trusted = [place for place in sound if step - step_of(place) >= within]
        waiting = sound[: len(sound) - len(trusted)]
        stays = {*found[: self.config.keep], *trusted[:1], *waiting[-1:]}
        for place in found:
            if place not in stays:
                remove_folder(place)
