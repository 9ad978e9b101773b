"""A committed shard on disk, what is said of it in a store, and what came of publishing it."""

import hashlib
import io
import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.verify.fast import check_tables
from manifests.verify.files import check_ends, load_parts
from schemas.tables import TABLES, schema

PER_SHARD = tuple(t for t in TABLES if t not in ("runs", "shards"))
_NOTE = b"publishing"


class Conflict(ValueError):
    """The store holds, or is being given, another content of the shard. Nothing of it was overwritten."""


class Damaged(ValueError):
    """What is on disk is not what was committed there; it is not published."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One shard. state: published, there (already), mended (some objects were missing or other), replaced, conflict,
    damaged; of a forecast: new, unfinished, there, replace, conflict. objects, bytes: that were, or would be, written.
    """

    shard: str
    state: str
    objects: int = 0
    bytes: int = 0
    why: str = ""

    @property
    def failed(self) -> bool:
        return self.state in ("conflict", "damaged")


@dataclass(frozen=True, slots=True)
class Blob:
    """A file to be an object. sha256: what was committed, "" where nothing vouches for it (`timings`)."""

    key: str
    path: Path
    sha256: str = ""


class Shard:
    """A committed shard on disk. FileNotFoundError if it is not (any more)."""

    def __init__(self, out: Path, name: str):
        self.out, self.name = out, name
        self.key = f"manifests/shards/{name}.parquet"
        self.commit = (out / self.key).read_bytes()
        self.digest = hashlib.sha256(self.commit).hexdigest()

    @staticmethod
    def split_of(name: str) -> str:
        """`hcstvg-train-000003` -> `hcstvg-train`."""
        return name.rpartition("-")[0]

    @cached_property
    def row(self) -> dict:
        try:
            (row,) = pq.read_table(io.BytesIO(self.commit)).to_pylist()
        except (ValueError, OSError) as error:
            raise Damaged(f"{self.key} cannot be read: {error}") from error
        return row

    @cached_property
    def blobs(self) -> list[Blob]:
        """The tar, and a part of each table but `shards`. Made of names alone: no path is taken from a row."""
        source, _, split = self.split_of(self.name).partition("-")
        tar = f"{source}/{split}/shards/{self.name}.tar"
        try:
            known = dict(json.loads(self.row["parts_sha256"] or "{}"))
        except (ValueError, TypeError) as error:
            raise Damaged(f"{self.key}: parts_sha256 cannot be read: {error}") from error
        keys = {table: f"manifests/{table}/{self.name}.parquet" for table in PER_SHARD}
        parts = [Blob(key, self.out / key, known.get(table, "")) for table, key in keys.items()]
        return [Blob(tar, self.out / tar, self.row["sha256"]), *parts]

    @property
    def current(self) -> bool:
        """Whether it is committed on disk as it was when this was made."""
        try:
            return (self.out / self.key).read_bytes() == self.commit
        except FileNotFoundError:
            return False

    @property
    def bytes(self) -> int:
        return sum(blob.path.stat().st_size for blob in self.blobs) + len(self.commit)

    def check(self) -> None:
        """Damaged names the first thing that is wrong: what `sparrow verify` would find, or a byte of the tar."""
        parts, problems = load_parts(self.out, self.name, whole=False)
        if parts is not None:
            problems += check_tables(self.name, self.row, parts)
            problems += check_ends(self.name, self.blobs[0].path, self.row, parts["members"])
        if problems:
            raise Damaged(str(problems[0]).removeprefix(f"{self.name}: "))
        for blob in self.blobs:
            if blob.sha256 not in ("", self.found[blob.key][1]):
                raise Damaged(f"{blob.key} has another sha256 than was committed")

    @cached_property
    def found(self) -> dict[str, tuple[int, str]]:
        """Size and sha256 of each blob as it lies there: key -> (bytes, hex)."""
        return {blob.key: (blob.path.stat().st_size, _sha256(blob.path)) for blob in self.blobs}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim says. by, since: who has begun, and when (UTC)."""

    digest: str
    by: str
    since: str

    @classmethod
    def of(cls, data: bytes) -> "Claim | None":
        """None for a commit, or what cannot be read."""
        try:
            note = json.loads((pq.read_schema(io.BytesIO(data)).metadata or {})[_NOTE])
            return cls(str(note["digest"]), str(note["by"]), str(note["since"]))
        except (KeyError, ValueError, OSError, TypeError):
            return None

    @staticmethod
    def write(digest: str) -> bytes:
        """A part of `shards` without rows. No two are equal: a claim that was taken over never looks as it did."""
        note = {
            "digest": digest,
            "by": f"process {os.getpid()} on {socket.gethostname()}",
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": os.urandom(8).hex(),
        }
        form, sink = schema("shards"), pa.BufferOutputStream()
        pq.ParquetWriter(
            sink, form.with_metadata({**(form.metadata or {}), _NOTE: json.dumps(note).encode()})
        ).close()
        return sink.getvalue().to_pybytes()
