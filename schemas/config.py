"""The base of every config: frozen, typed, refuses unknown keys, and hashes to the same text everywhere."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen pydantic model. A stage's config is one of these, beside the stage; the paper's values are defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def digest(self) -> str:
        """16 hex digits of the sha256 of the canonical JSON: equal configs, equal digests, on any machine."""
        return digest(self.model_dump(mode="json"))


def digest(value: object) -> str:
    """16 hex digits of the sha256 of `value` as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def canonical_json(value: object) -> str:
    """JSON with one spelling per value: sorted keys, no spaces, no NaN, UTF-8 kept."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def assignment(text: str) -> tuple[str, Any]:
    """ "a.b=value" of a command line -> ("a.b", value). ValueError if it is none."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: write it as field=value")
    return name, from_text(value)


def from_text(text: str) -> Any:
    """A value as a command line spells it: JSON where it is JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
