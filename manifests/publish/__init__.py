"""Publish: committed shards go to an object store, each exactly once, however many publish and whoever is killed.

A store has neither rename nor locks. What it has is a write that happens only if the object is as it was seen (compare
and swap). All of the protocol hangs on one object per shard, `manifests/shards/<shard>.parquet`:

    absent      nobody has begun
    claim       a part without rows, whose metadata hold the digest of what is being published. Readers see no shard
    commit      the part as it is on disk: the shard is there

1. The claim is written over what was seen: nothing, or (`replace`) another content. Who has the same content joins it.
2. Tar and parts are written. For each: look at it, then at the claim, then write over what was seen. So a publisher
   whose claim was taken over can spoil nothing: what its successor has written since is not what it has seen.
3. The commit is written over the claim, and over no other: of two contents one wins.

Nothing is ever deleted, and a run that goes on finds by size and sha256 what is there already.

The limit: an ETag tells content, not time. Where a claim is taken over from one who lives, its last write may be under
way; it was meant to go over what it had seen, and if that is just what the successor has there, it does. So `replace`
looks at everything twice, `deep` mends what comes later still, and to take over from the living is not the way to work.
"""

from collections.abc import Callable, Collection
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from manifests.publish.protocol import Publisher
from manifests.publish.rest import publish_rest, strangers
from manifests.publish.s3 import S3
from manifests.publish.shard import Claim, Outcome, Shard
from manifests.publish.store import Plain, Store

__all__ = ["Claim", "Outcome", "Store", "forecast", "open_store", "publish", "publish_rest"]

Tick = Callable[[int, str], None]
T = TypeVar("T")


def open_store(
    url: str, *, endpoint: str = "", unconditional: bool = False, workers: int = 4
) -> Store:
    """The store at an address like `s3://bucket/prefix`. endpoint: of an S3-compatible store that is not Amazon's.

    ValueError for what is no object store, or has no conditions and was not opened as `unconditional`; RuntimeError
    where its package is not installed.
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme in ("file", "local"):
        raise ValueError(
            f"{url} is a folder: copy an output there with `rsync -a`, or curate into it; an object store is written "
            "as s3://bucket/prefix"
        )
    if scheme in ("s3", "s3a"):
        return S3(rest, endpoint=endpoint, conditional=not unconditional, workers=workers)
    try:
        import fsspec
    except ImportError as error:
        raise RuntimeError(
            f"{scheme}:// needs fsspec, which is not installed: pip install fsspec"
        ) from error
    if scheme not in fsspec.available_protocols() or scheme in ("http", "https"):
        raise ValueError(
            f"{scheme}:// is no store that fsspec can write to: use s3://bucket/prefix"
        )
    if not unconditional:
        raise ValueError(
            f"{scheme}:// has no conditional writes here, so two publishers could spoil each other's shards: use "
            "s3://, or --unconditional where you are sure to be the only one"
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise RuntimeError(f"{scheme}:// needs a package that is not installed: {error}") from error
    return Plain(url)


def publish(
    out: Path,
    store: Store,
    names: Collection[str],
    *,
    replace: bool = False,
    deep: bool = False,
    workers: int = 4,
    tick: Tick | None = None,
) -> list[Outcome]:
    """Publish these committed shards of an output, `workers` at a time; what came of each, in the order of `names`.

    replace: write over another content, also over an unfinished one. deep: read back every object, also of shards that
    are there, and mend what differs. tick: called with 1 and the name of each shard that is done. ValueError, with
    nothing written, where the store holds shards that the output's plan does not have; OSError, from the store, stops
    all: the same call goes on from there.
    """
    _no_strangers(out, store, names)
    publisher = Publisher(out, store, replace, deep)
    if replace:  # all at once: never is a sample in an old shard and in a new one
        _each(store, names, publisher.withdraw, workers)
    return _each(store, names, publisher.publish, workers, tick)


def forecast(
    out: Path, store: Store, names: Collection[str], *, replace: bool = False, workers: int = 4
) -> list[Outcome]:
    """What `publish` would do, from the commits alone. Writes nothing."""
    _no_strangers(out, store, names)
    publisher = Publisher(out, store, replace, False)
    return _each(store, names, publisher.forecast, workers)


def _no_strangers(out: Path, store: Store, names: Collection[str]) -> None:
    if others := strangers(out, store, {Shard.split_of(name) for name in names}):
        raise ValueError(
            f"{store.url} holds {len(others)} shards that the plan of {out} does not have ({others[0]}): it was cut or "
            "planned anew since, and samples would be there twice. Publish to another prefix"
        )


def _each(
    store: Store,
    names: Collection[str],
    work: Callable[[str], T],
    workers: int,
    tick: Tick | None = None,
) -> list[T]:
    """`work` of each name. The first exception stops the others at their next request, and is raised."""
    done: dict[str, T] = {}

    def one(name: str) -> None:
        done[name] = work(name)
        if tick:
            tick(1, name)

    pool = ThreadPoolExecutor(workers)
    try:
        todo = [pool.submit(one, name) for name in names]
        for future in wait(todo, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        if len(done) < len(names):
            store.stop.set()
        pool.shutdown(cancel_futures=True)
    return [done[name] for name in names]
