"""`model/tables/presets.json`: the presets that rows start from, for code that must not import torch.

    python -m tests.model.tables.presets

writes it again, after a field or a default of `model.config` has changed.
"""

import json
from pathlib import Path

from model.config import PRESETS
from model.tables.registry import TABLES

PATH = Path(__file__).resolve().parents[3] / "model/tables/presets.json"


def text() -> str:
    """What the file has to hold."""
    names = sorted({preset for table in TABLES for row in table.rows for preset in row.presets})
    presets = {name: PRESETS[name]().model_dump(mode="json") for name in names}
    return json.dumps(presets, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
    print(PATH)
