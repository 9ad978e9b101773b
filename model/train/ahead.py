"""One item ahead: the next one is made while the caller works on this one."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def one_ahead(items: Iterable[T]) -> Generator[T]:
    """The same items in the same order. An error of theirs is raised where its item would have come.

    The first one is made in the caller's thread: a loader starts its processes then, and those that a thread starts do
    not end well. Close it when it is left early: it waits for the item that is being made.
    """
    source = iter(items)
    item = next(source, _END)
    with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
        while item is not _END:
            coming = thread.submit(next, source, _END)
            yield item
            item = coming.result()
