"""Configs that earlier versions wrote, of runs and checkpoints: fields that did not exist then. Without torch."""

from collections.abc import Mapping
from typing import Any

QUESTIONS = {
    "with_tsf": {"region": 0.0, "region_mask": 0.0, "segment": 0.0, "host": 1.0},
    "without_tsf": {"segment": 0.0, "host": 1.0},
}


def completed(sparrow: Mapping[str, Any]) -> dict[str, Any]:
    """A stored `SparrowConfig` with what its version did where it names no field for it.

    filter.descriptor: the filtration head had one form before Eq. 8 and 9 were reported, which is "fused" now.
    questions: every sample was asked the host's own request.
    """
    whole = {"questions": QUESTIONS, **sparrow}
    head = whole.get("filter")
    if isinstance(head, Mapping) and head.get("kind") == "paper":
        whole["filter"] = {"descriptor": "fused", **head}
    return whole
