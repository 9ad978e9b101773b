"""Many curation threads, one model: requests wait a moment, and go through the model together.

A batch is always padded to the same size by the models themselves: equal shapes, equal kernels. (The last digits of a
result may still depend on its place in the batch; where bytes must be equal, as in the tests, batches are of one.)
Out of memory: the batch is halved and tried again, and everyone who was in it is told (`memory_events`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trackers.runtime import own_stream

Item = TypeVar("Item")
Result = TypeVar("Result")

_EVENTS: ContextVar[list["MemoryEvent"] | None] = ContextVar("memory_events", default=None)


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """A model ran out of memory and goes on with a smaller batch."""

    model: str
    batch: int


def out_of_memory(error: BaseException) -> bool:
    """Whether a model ran out of the device's memory; gives back what torch keeps in reserve."""
    import torch

    if not isinstance(error, torch.OutOfMemoryError):
        return False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


@contextmanager
def memory_events() -> Iterator[list[MemoryEvent]]:
    """Collects what happens to the requests that this thread makes inside the block."""
    events: list[MemoryEvent] = []
    token = _EVENTS.set(events)
    try:
        yield events
    finally:
        _EVENTS.reset(token)


def report(events: list[MemoryEvent]) -> None:
    """To be called in the requesting thread with what its request went through."""
    collector = _EVENTS.get()
    if collector is not None:
        collector.extend(events)


@dataclass(slots=True)
class Request(Generic[Item, Result]):
    item: Item
    key: Hashable
    future: "Future[Result]" = field(default_factory=Future)
    events: list[MemoryEvent] = field(default_factory=list)

    def result(self) -> Result:
        """Blocks; raises what the model raised for this item."""
        try:
            return self.future.result()
        finally:
            report(self.events)


class Batcher(Generic[Item, Result]):
    """Calls `run(items) -> results` from one thread with up to `batch` items of equal key.

    wait: seconds that the first item waits for company. An exception of `run` concerns the item that causes it: the
    items of a failed batch are tried again one by one.
    """

    def __init__(
        self, run: Callable[[list[Item]], list[Result]], batch: int, name: str, wait: float = 0.005
    ):
        self.run, self.batch, self.name, self.wait = run, batch, name, wait
        self._queue: deque[Request[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._broken: Exception | None = None

    def __call__(self, item: Item, key: Hashable = None) -> Result:
        """The result for one item; blocks the calling thread."""
        return self.map([item], key)[0]

    def map(self, items: list[Item], key: Hashable = None) -> list[Result]:
        """The results for several items of one key, in order."""
        requests: list[Request[Item, Result]] = [Request(item, key) for item in items]
        with self._changed:
            if self._broken is not None:
                raise RuntimeError(f"the {self.name} thread has ended") from self._broken
            self._queue.extend(requests)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"batch-{self.name}", daemon=True
                )
                self._thread.start()
            self._changed.notify()
        return [request.result() for request in requests]

    def _work(self) -> None:
        try:
            with own_stream(priority=-1):  # short work: not behind the tracker's long queue
                while True:
                    self._try(self._gather())
        except Exception as error:  # noqa: BLE001  the thread ends: nobody may wait for it
            with self._changed:
                self._broken = error
                for request in self._queue:
                    request.future.set_exception(error)

    def _gather(self) -> list[Request[Item, Result]]:
        with self._changed:
            while not self._queue:
                self._changed.wait()
            key, deadline = self._queue[0].key, time.monotonic() + self.wait
            while (
                sum(r.key == key for r in self._queue) < self.batch
                and (left := deadline - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            taken = [r for r in self._queue if r.key == key][: self.batch]
            chosen = set(map(id, taken))
            self._queue = deque(r for r in self._queue if id(r) not in chosen)
            return taken

    def _try(self, requests: list[Request[Item, Result]]) -> None:
        while requests:
            now, later = requests[: self.batch], requests[self.batch :]
            try:
                results = self.run([r.item for r in now])
                if len(results) != len(now):
                    raise RuntimeError(
                        f"{self.name} answered {len(results)} of {len(now)} requests"
                    )
            except Exception as error:  # noqa: BLE001  goes to the thread that asked
                if out_of_memory(error) and self.batch > 1:
                    self.batch //= 2
                    for request in now:
                        request.events.append(MemoryEvent(self.name, self.batch))
                    continue
                if len(now) == 1:
                    now[0].future.set_exception(error)
                else:
                    for request in now:
                        self._try([request])
            else:
                for request, result in zip(now, results, strict=True):
                    request.future.set_result(result)
            requests = later
