"""Rows of a committed shard as the pipeline made them: to be committed again, alone or with others."""

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq


def read_rows(out: Path, table: str, name: str) -> list[dict]:
    """The rows of a part, in order, without `shard`; features as lists of float (float16 loses nothing in it)."""
    rows = pq.read_table(
        out / "manifests" / table / f"{name}.parquet", partitioning=None
    ).to_pylist()
    for row in rows:
        del row["shard"]
        if "feature" in row:
            row["feature"] = [float(x) for x in row["feature"]]
    return rows


def grouped(rows: list[dict], column: str) -> dict[str, list[dict]]:
    """Rows by the value of a column, each group in order."""
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return groups
