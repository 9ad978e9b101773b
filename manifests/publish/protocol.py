"""The protocol of one shard: claim, tar and parts, commit. The package's docstring has it in words."""

import io
import json
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq

from manifests.publish.shard import Blob, Claim, Conflict, Damaged, Outcome, Shard
from manifests.publish.store import NEW, Changed, Seen, Store

TRIES = 6


class Finished(Exception):
    """Somebody else has published the same bytes."""


def _ours(shard: Shard, there: Seen) -> bool:
    """Whether it is the shard's commit, or the claim of a publisher with the same content."""
    claim = Claim.of(there.data)
    return there.data == shard.commit or (claim is not None and claim.digest == shard.digest)


class Publisher:
    """Publishes shards of an output one by one, from any number of threads. Arguments as of `publish`."""

    def __init__(self, out: Path, store: Store, replace: bool, deep: bool):
        self.out, self.store, self.replace, self.deep = out, store, replace, deep
        self._proved, self._lock = not store.conditional, threading.Lock()
        self._claims: dict[str, tuple[str, str]] = {}

    def publish(self, name: str) -> Outcome:
        """Conflicts and damage are outcomes; OSError is the store's, or the disk's."""
        try:
            return self._publish(Shard(self.out, name))
        except Conflict as error:
            return Outcome(name, "conflict", why=str(error))
        except (Damaged, FileNotFoundError) as error:
            return self._damaged(name, error)

    def _damaged(self, name: str, error: Exception) -> Outcome:
        why = f"{name} is not whole on disk: {error}. It was not published: `sparrow repair {self.out}`, then again"
        return Outcome(name, "damaged", why=why)

    def withdraw(self, name: str) -> None:
        """Take another content's commit back, by a claim over it."""
        try:
            shard = Shard(self.out, name)
            there = self.store.read(shard.key)
            if there is not None and there.data != shard.commit:
                shard.check()
                self._claims[name] = self._claim(shard, there)
        except (Conflict, Finished, Damaged, FileNotFoundError):
            return  # `publish` says so

    def forecast(self, name: str) -> Outcome:
        try:
            return self._forecast(Shard(self.out, name))
        except (Damaged, FileNotFoundError) as error:
            return self._damaged(name, error)

    def _forecast(self, shard: Shard) -> Outcome:
        there = self.store.read(shard.key)
        if there is not None and there.data == shard.commit:
            return Outcome(shard.name, "there")
        try:
            self._refuse(shard, there)
        except Conflict as error:
            return Outcome(shard.name, "conflict", why=str(error))
        state = "new" if there is None else "unfinished" if _ours(shard, there) else "replace"
        return Outcome(shard.name, state, len(shard.blobs) + 1, shard.bytes)

    def _publish(self, shard: Shard) -> Outcome:
        there = self.store.read(shard.key)
        committed = there is not None and there.data == shard.commit
        if committed and not self.deep:
            return Outcome(shard.name, "there")
        self._refuse(shard, there)
        shard.check()
        sizes: list[int] = []
        try:
            if committed and there:
                guard, state = there.etag, "there"
            else:
                guard, state = self._claims.get(shard.name) or self._claim(shard, there)
            for _ in range(TRIES):
                fresh = [
                    size
                    for blob in shard.blobs
                    for size in self._send(shard, blob, guard, committed)
                ]
                sizes += fresh
                if (
                    not fresh or not self.replace
                ):  # who was taken over may have been in the middle of one last write
                    break
        except Finished:
            return Outcome(shard.name, "there", len(sizes), sum(sizes))
        if committed:
            return Outcome(shard.name, "mended" if sizes else "there", len(sizes), sum(sizes))
        self._commit(shard, guard)
        return Outcome(shard.name, state, len(sizes) + 1, sum(sizes) + len(shard.commit))

    # --- claim ---

    def _refuse(self, shard: Shard, there: Seen | None) -> None:
        """Conflict if another content is there, or on its way."""
        if there is not None and not self.replace and not _ours(shard, there):
            raise Conflict(self._other(shard, there))

    def _claim(self, shard: Shard, there: Seen | None) -> tuple[str, str]:
        """The ETag of the claim that this content is published under, and what that will have been."""
        for _ in range(TRIES):
            if there is not None and there.data == shard.commit:
                raise Finished
            if there is not None and _ours(shard, there):
                return there.etag, "published"
            self._refuse(shard, there)
            data = Claim.write(shard.digest)
            try:
                etag = self.store.write(shard.key, data, over=there.etag if there else NEW)
            except (
                Changed
            ):  # or it was this very write, whose answer was lost and which was sent again
                there = self.store.read(shard.key)
                continue
            self._prove(shard.key, data)
            return etag, "published" if there is None or Claim.of(there.data) else "replaced"
        raise Conflict(
            f"{shard.name}: several publishers replace each other at {self.store.url}: let one of them end"
        )

    def _prove(self, key: str, data: bytes) -> None:
        """Some stores ignore conditions. So, once, two writes whose conditions do not hold, of what is there anyway."""
        with self._lock:
            for over in () if self._proved else (NEW, f'"{"0" * 32}"'):
                try:
                    self.store.write(key, data, over=over)
                except Changed:
                    continue
                raise OSError(
                    f"{self.store.url}: this store ignores the conditions of a write, so two publishers could spoil "
                    "each other's shards: use --unconditional where you are sure to be the only one"
                )
            self._proved = True

    def _hold(self, shard: Shard, guard: str) -> None:
        """Conflict unless the claim is still there; Finished if somebody with the same content has committed."""
        if not self.store.conditional:
            return
        there = self.store.look(shard.key)
        if there is not None and there.etag == guard:
            return
        there = self.store.read(shard.key)
        if there is not None and there.data == shard.commit:
            raise Finished
        raise Conflict(
            f"{shard.name}: another publisher has taken over at {self.store.url}; this one wrote no more"
        )

    # --- tar and parts ---

    def _send(self, shard: Shard, blob: Blob, guard: str, committed: bool) -> list[int]:
        """[bytes written], or [] if the object was there. committed: the shard's commit is in the store."""
        size, sha256 = shard.found[blob.key]
        for attempt in range(TRIES):
            seen = self.store.look(blob.key)
            if seen is not None and (
                (committed and not blob.sha256) or self._same(blob, seen, size, sha256)
            ):
                return []
            self._hold(shard, guard)
            try:
                self.store.upload(blob.key, blob.path, sha256, over=seen.etag if seen else NEW)
            except Changed:
                time.sleep(0.1 * attempt)
                continue
            if self.deep and blob.sha256 and not self._reads_back(blob, sha256):
                raise OSError(
                    f"{self.store.url}/{blob.key} does not read back as it was sent: run again"
                )
            return [size]
        raise Conflict(
            f"{blob.key} is changed by somebody else at {self.store.url} again and again"
        )

    def _same(self, blob: Blob, seen: Seen, size: int, sha256: str) -> bool:
        """Whether an object has these bytes. It is read back where nobody has noted its sha256, and where asked for."""
        if seen.size != size:
            return False
        if seen.sha256 and not (self.deep and blob.sha256):
            return seen.sha256 == sha256
        return self._reads_back(blob, sha256)

    def _reads_back(self, blob: Blob, sha256: str) -> bool:
        try:
            return self.store.digest(blob.key) == sha256
        except FileNotFoundError:  # not to be taken for a file that is missing here
            return False

    # --- commit ---

    def _commit(self, shard: Shard, guard: str) -> None:
        if not shard.current:
            raise Conflict(
                f"{shard.name} was curated anew while it was being published: publish again, with --replace"
            )
        try:
            self.store.write(shard.key, shard.commit, over=guard)
        except (
            Changed
        ) as error:  # by one with the same content, by a retry of this write, or by another content
            there = self.store.read(shard.key)
            if there is None or there.data != shard.commit:
                raise Conflict(
                    f"{shard.name}: another publisher has taken over at {self.store.url}"
                ) from error

    def _other(self, shard: Shard, there: Seen) -> str:
        """One line on a shard that is another one in the store."""
        place = f"{shard.name}: {self.store.url}"
        if claim := Claim.of(there.data):
            return (
                f"{place} is being given another content, since {claim.since} by {claim.by}. Wait for it; where that "
                "one is dead, --replace takes its place"
            )
        try:
            row = pq.read_table(io.BytesIO(there.data)).to_pylist()[0]
            named = {
                "sha256": "tar",
                "plan_hash": "plan",
                "config_hash": "config",
                "code_version": "code version",
            }
            other = [word for name, word in named.items() if row.get(name) != shard.row[name]]
            theirs, mine = json.loads(row["parts_sha256"]), json.loads(shard.row["parts_sha256"])
            other += [table for table in mine if theirs.get(table) != mine[table]]
            differs = ", ".join(other) or "its bytes"
        except (ValueError, OSError, IndexError, KeyError, TypeError, AttributeError):
            differs = "it cannot be read"
        since = f" since {there.when:%Y-%m-%d %H:%M} UTC" if there.when else ""
        return (
            f"{place} holds another content{since} (other: {differs}). Nothing was overwritten: publish to another "
            "prefix, or put this one in its place with --replace"
        )
