"""What a run was asked and what it was made from: its folder continues that, and nothing else.

The record is in `state.json` of every state and in `stage.json` of the export. Paths are not part of it: weights, parent
export and data are known by their content, and may be moved.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from model.train.state import StateError
from schemas.config import Config

RECORD = "run"
"""Key of the record in `state.json` and `stage.json`."""
_MISSING = "nothing"


class RunRecord(Config):
    """settings: field -> value; those of the training's config begin with "train.". inputs: what was read -> a digest
    of its content."""

    settings: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> "RunRecord":
        """settings: nested, as configs are dumped; "loss": {"dice": 1} becomes "loss.dice"."""
        return cls(settings=dict(_flat(settings)), inputs=dict(inputs))

    def differences(self, stored: Mapping[str, Any], free: Collection[str]) -> list[str]:
        """A line for each field that is not as `stored` (a record as JSON) has it. free: fields that may differ."""
        then = RunRecord.model_validate(stored)
        rows = [
            f"  {name}: now {now}, then {before}"
            for name, now, before in _unequal(self.settings, then.settings)
            if name not in free
        ]
        rows += [
            f"  {name}: another content (now {now}, then {before})"
            for name, now, before in _unequal(self.inputs, then.inputs)
        ]
        return rows

    def refuse_other(
        self, place: Path, stored: Mapping[str, Any] | None, free: Collection[str]
    ) -> None:
        """StateError if `place` belongs to another training. stored: its record; None where an earlier version kept
        none."""
        if stored is None:
            return
        rows = self.differences(stored, free)
        if rows:
            text = f"{place} was made by another training: ask for the same again, or use another --out"
            raise StateError("\n".join([text, *rows]))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unequal(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*now, *then}):
        one, other = now.get(name, _MISSING), then.get(name, _MISSING)
        if one != other:
            yield name, one, other
