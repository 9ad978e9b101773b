"""`results.json` of a run of any config, as far as the tables need it."""

from typing import Any

from model.config import configure
from model.make import TINY
from tests.eval_results import eval_results


def run_of(preset: str = "paper", size: str = "tiny", **fields: Any) -> dict[str, Any]:
    """A run of VideoGLaMM on Ref-DAVIS17; fields replace its own. changes: of the preset."""
    changes = fields.get("changes", {})
    small = TINY if size == "tiny" else {}
    model = configure(preset, **(small | changes)).model_dump(mode="json")
    named = {
        "benchmark": "ref-davis17",
        "split": "val",
        "host": "videoglamm",
        "size": size,
        "preset": preset,
        "model": model,
    }
    return eval_results(**(named | fields))
