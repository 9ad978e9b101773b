"""One small output for all exports, and what its manifests say."""

from pathlib import Path

import numpy as np
import pytest

from manifests.catalog import query
from schemas.geometry import rle_decode
from tests.manifests.made import make_whole


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="session")
def truth(whole: Path) -> dict[str, dict]:
    """By referent: row of `referents`, boxes [T, 4] of kept frames and NaN, masks by frame, absent frames."""
    found = {
        r["referent_id"]: r | {"masks": {}, "absent": set()}
        for r in query(whole, "SELECT * FROM referents")
    }
    for row in found.values():
        row["boxes"] = np.full((row["n_frames"], 4), np.nan, np.float32)
    for row in query(whole, "SELECT * FROM tracks"):
        one = found[row["referent_id"]]
        if row["kept"]:
            one["boxes"][row["frame"]] = [row[c] for c in ("x1", "y1", "x2", "y2")]
        elif row["known"] and row["ann_x1"] is None:
            one["absent"].add(row["frame"])
    for row in query(whole, "SELECT * FROM masks"):
        rle = {"size": [row["height"], row["width"]], "counts": row["counts"]}
        found[row["referent_id"]]["masks"][row["frame"]] = rle_decode(rle)
    return found
