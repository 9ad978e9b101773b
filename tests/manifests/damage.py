"""Ways to damage an output: files, bytes, rows. `reseal` makes an edit look committed, so that only its meaning is wrong."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import tables

SHARD = "hcstvg-train-000000"
"""The shard that is damaged."""
OTHER = "mevis-valid_u-000000"
KEY = "hcstvg-train-v-0"
"""A referent of it."""


@contextmanager
def restored(out: Path) -> Iterator[Path]:
    """Everything under `out` is afterwards as it was before."""
    before = {path: (path.read_bytes(), path.stat()) for path in out.rglob("*") if path.is_file()}
    yield out
    for path in sorted(out.rglob("*"), reverse=True):
        if path.is_file() and path not in before:
            path.unlink()
    for path, (data, stat) in before.items():
        if (
            not path.exists()
            or path.stat().st_mtime_ns != stat.st_mtime_ns
            or path.read_bytes() != data
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def tree(out: Path) -> dict[str, bytes]:
    """Every byte that must be the same in equal runs."""
    files = [p for p in out.rglob("*") if p.suffix in (".tar", ".parquet")]
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in files
        if p.parent.name not in (*tables.VOLATILE, "plan")
    }


def part(out: Path, table: str, name: str = SHARD) -> Path:
    return out / "manifests" / table / f"{name}.parquet"


def tar(out: Path, name: str = SHARD) -> Path:
    source, split, _ = name.split("-")
    return out / source / split / "shards" / f"{name}.tar"


def rows(out: Path, table: str, name: str = SHARD) -> list[dict]:
    return pq.read_table(part(out, table, name), partitioning=None).to_pylist()


def edit(
    out: Path, table: str, change: Callable[[pa.Table], pa.Table], *, seal: bool = True
) -> None:
    path = part(out, table)
    changed = change(pq.read_table(path, partitioning=None))
    if seal:
        tables.write_table(path, changed, table)
        reseal(out)
    else:
        pq.write_table(changed, path)


def rewrite(
    out: Path, table: str, change: Callable[[list[dict]], object], *, seal: bool = True
) -> None:
    """`change` edits the list of rows in place."""

    def changed(old: pa.Table) -> pa.Table:
        values = old.to_pylist()
        change(values)
        return pa.Table.from_pylist(values, old.schema)

    edit(out, table, changed, seal=seal)


def put(
    out: Path, table: str, column: str, value: object, row: int = 0, *, seal: bool = True
) -> None:
    """Another value in one cell."""
    rewrite(out, table, lambda values: values[row].update({column: value}), seal=seal)


def reseal(out: Path) -> None:
    """The `shards` row vouches for the parts as they are now."""
    digests = tables.digests(
        {table: part(out, table) for table in tables.TABLES if table != "runs"}
    )
    path = part(out, "shards")
    old = pq.read_table(path, partitioning=None)
    row = old.to_pylist()[0] | {"parts_sha256": digests}
    tables.write_table(path, pa.Table.from_pylist([row], old.schema), "shards")


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def offset(out: Path, name: str) -> int:
    return next(r["offset"] for r in rows(out, "members") if (r["key"], r["name"]) == (KEY, name))


def spoil(out: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Another content of a member, of the same size, with every digest made to fit."""
    place = next(
        i for i, r in enumerate(rows(out, "members")) if (r["key"], r["name"]) == (KEY, name)
    )
    row = rows(out, "members")[place]
    whole = bytearray(tar(out).read_bytes())
    data = change(bytes(whole[row["offset"] : row["offset"] + row["size"]]))
    assert len(data) == row["size"]
    whole[row["offset"] : row["offset"] + row["size"]] = data
    tar(out).write_bytes(bytes(whole))
    put(out, "members", "sha256", hashlib.sha256(data).hexdigest(), place)
    put(out, "shards", "sha256", hashlib.sha256(whole).hexdigest())


def swap(a: Path, b: Path) -> None:
    held = a.read_bytes()
    shutil.copyfile(b, a)
    b.write_bytes(held)
