"""A local S3 server (moto) in this process, publishers that can be stopped before any request, and what the store holds.

moto compares If-None-Match and If-Match of a PUT as S3 does, but not in one step with the write, and does not know
If-Match where a multipart upload is completed. So publishers take turns here, request by request.
"""

import copy
import functools
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from manifests.publish import open_store
from manifests.publish.s3 import S3
from schemas.tables import TABLES

SECRET = "wJalrXUtnFEMI-never-to-be-seen"
WRITES = ("put_object", "complete_multipart_upload")
BUCKET = "tsf"
_COUNT = itertools.count()


class Server:
    """`url()` is a new empty prefix each time."""

    def __init__(self, endpoint: str, backend):
        self.endpoint, self._backend = endpoint, backend

    def url(self) -> str:
        return f"s3://{BUCKET}/out{next(_COUNT)}"

    def open(self, url: str, **options) -> S3:
        """A store of its own; without options on a client that all share, which takes long to make."""
        store = open_store(url, **options) if options else copy.copy(self._first)
        assert isinstance(store, S3)
        store.url, store.prefix, store.stop = (
            url,
            f"{url.removeprefix(f's3://{BUCKET}/')}/",
            threading.Event(),
        )
        return store

    @functools.cached_property
    def _first(self):
        return open_store(f"s3://{BUCKET}")

    def objects(self, url: str) -> dict[str, bytes]:
        """Everything under an address, straight from the server's memory."""
        prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
        keys = self._backend.buckets[BUCKET].keys
        return {k.removeprefix(prefix): keys[k].value for k in list(keys) if k.startswith(prefix)}


@contextmanager
def serving() -> Iterator[Server]:
    """A server, and an environment that leads there. Skips where moto is not installed."""
    moto = pytest.importorskip(
        "moto.moto_server.threaded_moto_server", reason="moto is not installed: make setup"
    )
    pytest.importorskip("s3fs", reason="s3fs is not installed: make setup")
    from moto.backends import get_backend
    from moto.core import DEFAULT_ACCOUNT_ID
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        S3FileSystem.clear_instance_cache()  # they keep the address they were made with
        backend = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"]
        if BUCKET not in backend.buckets:  # the memory of another module's server in this process
            backend.create_bucket(BUCKET, "us-east-1")
        yield Server(environment["AWS_ENDPOINT_URL"], backend)
        S3FileSystem.clear_instance_cache()
    running.stop()


def before(store: S3, act: Callable[[int, str], None], actions: tuple[str, ...] = WRITES) -> S3:
    """The store, with `act(n, key)` called before its n-th request of these kinds."""
    call, count = store.call, itertools.count()

    def counted(action: str, key: str = "", **more):
        if action in actions:
            act(next(count), key)
        return call(action, key, **more)

    store.call = counted  # type: ignore[method-assign]
    return store


class Turns:
    """Threads of which one runs at a time, from one request to its next; `choose` says whose turn it is."""

    def __init__(self, choose: Callable[[list[int]], int], between: Callable[[], None]):
        self._choose, self._between = choose, between
        self._change, self._waiting, self._live, self._turn = (
            threading.Condition(),
            set[int](),
            set[int](),
            -1,
        )

    def run(self, works: list[Callable[[], None]]) -> None:
        self._live = set(range(len(works)))
        threads = [
            threading.Thread(target=self._one, args=(i, work)) for i, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def wait(self, me: int) -> None:
        """Until it is this thread's turn."""
        with self._change:
            self._waiting.add(me)
            self._pass_on()
            assert self._change.wait_for(lambda: self._turn == me, 60)
            self._turn = -1

    def _pass_on(self) -> None:
        if self._live and self._waiting >= self._live:
            self._between()
            self._turn = self._choose(sorted(self._waiting))
            self._waiting.discard(self._turn)
            self._change.notify_all()

    def _one(self, me: int, work: Callable[[], None]) -> None:
        self.wait(me)
        try:
            work()
        finally:
            with self._change:
                self._live.discard(me)
                self._pass_on()


def tree(out: Path, name: str, tables: tuple[str, ...] = TABLES) -> dict[str, bytes]:
    """What a store has to hold of a shard: key -> bytes."""
    source, split, _ = name.split("-")
    keys = [f"{source}/{split}/shards/{name}.tar"]
    keys += [f"manifests/{table}/{name}.parquet" for table in tables if table != "runs"]
    return {key: (out / key).read_bytes() for key in keys}
