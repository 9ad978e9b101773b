"""What goes to a store beside the shards: records of runs, and the data card. And what must not be there."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import pyarrow.parquet as pq

from manifests.publish.protocol import TRIES
from manifests.publish.shard import Shard
from manifests.publish.store import NEW, Changed, Store
from schemas.parts import part_paths

CARD = ("README.md", "croissant.json")


def published(store: Store) -> set[str]:
    """Names of the shards that are in a store, or on their way to it."""
    names = store.names("manifests/shards")
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def strangers(out: Path, store: Store, splits: Collection[str]) -> list[str]:
    """Shards in a store of these `<source>-<split>` that the output's plan (without one: the output) does not have."""
    others = []
    for name in sorted(published(store)):
        split, _, index = name.rpartition("-")
        if split not in splits or (out / "manifests" / "shards" / f"{name}.parquet").exists():
            continue
        plan = out / "plan" / f"{split}.parquet"
        words = (pq.read_metadata(plan).metadata or {}) if plan.exists() else {}
        if not index.isdigit() or int(index) >= json.loads(words.get(b"counts", b"{}")).get(
            "shards", 0
        ):
            others.append(name)
    return others


def publish_rest(
    out: Path, store: Store, splits: Collection[str], *, card: bool = True
) -> tuple[int, str]:
    """The records of the runs of these `<source>-<split>`; and, if it tells of just what is in the store, the card.

    Returns how many objects were written, and why the card is not among them, "" if it is. They are written over what
    is there: a run's record belongs to its run, and a card is made of the shards.
    """
    files = [path for path in part_paths(out, "runs") if _split_of(path) in splits]
    why = _stale(out, store) if card else "not all shards were published"
    if not why:
        files += [out / name for name in CARD]
    return sum(_refresh(store, path.relative_to(out).as_posix(), path) for path in files), why


def _split_of(run: Path) -> str:
    (row,) = pq.read_table(run, columns=["source", "split"], partitioning=None).to_pylist()
    return f"{row['source']}-{row['split']}"


def _stale(out: Path, store: Store) -> str:
    """Why the card does not tell of what is in the store, or ""."""
    try:
        told = json.loads((out / "croissant.json").read_text(encoding="utf-8"))["distribution"]
        (out / "README.md").stat()
    except (OSError, ValueError, KeyError):
        return f"there is none: `sparrow card {out}` writes it"
    tars = {
        entry["@id"]: entry.get("sha256") for entry in told if entry.get("@type") == "cr:FileObject"
    }
    there = published(store)
    if others := sorted(there ^ tars.keys()):
        return f"it tells of {len(tars)} shards, the store has {len(there)} ({others[0]} is one that differs)"
    try:
        if any(Shard(out, name).row["sha256"] != tars[name] for name in tars):
            return f"it is older than the shards: `sparrow card {out}` writes it anew"
    except FileNotFoundError:
        return f"it tells of shards that are gone: `sparrow card {out}` writes it anew"
    return ""


def _refresh(store: Store, key: str, path: Path) -> int:
    """Write a small file over whatever is there; 1, or 0 if it is there."""
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    for _ in range(TRIES):
        seen = store.look(key)
        if seen is not None and (seen.size, seen.sha256 or store.digest(key)) == (
            len(data),
            sha256,
        ):
            return 0
        try:
            store.write(key, data, over=seen.etag if seen else NEW)
            return 1
        except Changed:
            continue
    raise OSError(
        f"{store.url}/{key} is changed by somebody else again and again: run the same command again"
    )
