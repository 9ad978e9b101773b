"""The files of an output's manifests: their names, and how to hand them to DuckDB, which reads a path as a pattern.

A file that is named otherwise (`._x.parquet`, `x (copy).parquet`) is no part: it is left out everywhere, and `sparrow
verify` names it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_SPLIT = r"(?P<split>[a-z0-9_]+-[a-z0-9_-]+)"
_SHARD = re.compile(rf"{_SPLIT}-[0-9]{{6,}}")
_RUN = re.compile(r"[A-Za-z0-9_-]+")
_RUN_OF = re.compile(rf"{_SPLIT}-[0-9]{{8}}T[0-9]{{6}}Z-[0-9a-f]{{6}}")
_PLAN = re.compile(_SPLIT)
SHARD_GLOB = "-" + "[0-9]" * 6
RUN_GLOB = "-" + "[0-9]" * 8 + "T" + "[0-9]" * 6 + "Z-" + "[0-9a-f]" * 6
"""What follows `<source>-<split>` in the names of parts, as DuckDB's patterns have it."""


def part_path(out: Path, table: str, name: str) -> Path:
    """The part of a shard (or run) in a table."""
    return out / "manifests" / table / f"{name}.parquet"


def is_part(file: str) -> bool:
    """Whether a file name is that of a shard's part."""
    return file.endswith(".parquet") and bool(_SHARD.fullmatch(file.removesuffix(".parquet")))


def plan_paths(out: Path) -> list[Path]:
    """The plans of an output, in order."""
    return [out / "plan" / f"{name}.parquet" for name in _names(out / "plan", _PLAN)]


def part_names(out: Path, table: str = "shards", split: str = "") -> list[str]:
    """Names of the parts of a table, in order. split: `<source>-<split>`, only its parts."""
    found = _names(out / "manifests" / table, _RUN if table == "runs" else _SHARD)
    return [name for name in found if not split or split_of(name, table) == split]


def part_paths(out: Path, table: str = "shards", split: str = "") -> list[Path]:
    """As `part_names`: where they are."""
    return [part_path(out, table, name) for name in part_names(out, table, split)]


def strays(out: Path) -> Iterator[Path]:
    """Parquet files beside the parts and plans that are neither, in order."""
    tables = out / "manifests"
    for folder in [out / "plan", *sorted(tables.iterdir() if tables.is_dir() else ())]:
        if not folder.is_dir():
            continue
        pattern = {"plan": _PLAN, "runs": _RUN}.get(folder.name, _SHARD)
        known = {f"{name}.parquet" for name in _names(folder, pattern)}
        files = sorted(name for name in os.listdir(folder) if name.endswith(".parquet"))
        yield from (folder / name for name in files if name not in known)


def read_parquet(paths: Iterable[Path | str]) -> str:
    """DuckDB's table function over just these files: no name is a pattern, and no folder a partition."""
    return read_patterns(map(escaped, map(str, paths)))


def read_patterns(patterns: Iterable[str]) -> str:
    """DuckDB's table function over patterns, for files that will come later; fixed parts are `escaped`."""
    quoted = ", ".join("'" + pattern.replace("'", "''") + "'" for pattern in patterns)
    return f"read_parquet([{quoted}], hive_partitioning=false)"


def escaped(path: str) -> str:
    """A path as a pattern of DuckDB that fits nothing else."""
    return re.sub(r"[\[*?]", r"[\g<0>]", path)


def check_output_path(out: Path | str) -> None:
    """ValueError for an output whose path no tool can be given as it is: DuckDB takes a backslash for an escape."""
    if "\\" in str(out):
        raise ValueError(f"{str(out)!r}: an output's path cannot have a backslash in it")


def split_of(name: str, table: str = "shards") -> str:
    """`<source>-<split>` of the name of a part; empty for a run record of another form."""
    found = (_RUN_OF if table == "runs" else _SHARD).fullmatch(name)
    return found["split"] if found else ""


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        files = os.listdir(folder)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(".parquet") for name in files if name.endswith(".parquet"))
    return sorted(stem for stem in stems if pattern.fullmatch(stem))
