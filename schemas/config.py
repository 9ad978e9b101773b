"""The base of every config: frozen, typed, refuses unknown keys, and hashes to the same text everywhere."""

import hashlib
import json

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
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
