"""The batcher: company is waited for, errors reach who caused them, out of memory halves the batch and is told."""

import threading

import pytest
import torch

from trackers.batching import Batcher, MemoryEvent, memory_events


def doubled(calls):
    def run(items):
        calls.append(list(items))
        return [2 * item for item in items]

    return run


def ask_from_threads(batcher, items, key=lambda item: None):
    """item -> result or exception, every item from a thread of its own, all at once."""
    found = {}
    gate = threading.Barrier(len(items))

    def ask(item):
        gate.wait()
        try:
            found[item] = batcher(item, key(item))
        except ZeroDivisionError as error:
            found[item] = error

    threads = [threading.Thread(target=ask, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_share_batches_of_at_most_the_given_size():
    calls = []
    batcher = Batcher(doubled(calls), 4, "model", wait=0.2)
    assert ask_from_threads(batcher, list(range(10))) == {n: 2 * n for n in range(10)}
    assert sorted(map(len, calls)) == [2, 4, 4]


def test_only_equal_keys_share_a_batch():
    calls = []
    batcher = Batcher(doubled(calls), 8, "model", wait=0.1)
    ask_from_threads(batcher, list(range(8)), key=lambda n: n % 2)
    assert all(len({n % 2 for n in call}) == 1 for call in calls)


def test_map_keeps_the_order_and_a_lone_caller_does_not_wait_for_long():
    batcher = Batcher(doubled([]), 3, "model", wait=0.01)
    assert batcher.map(list(range(8))) == [2 * n for n in range(8)]
    assert batcher.map([]) == []


def test_an_error_reaches_who_caused_it_and_nobody_else():
    def run(items):
        if 3 in items:
            raise ZeroDivisionError("three")
        return items

    found = ask_from_threads(Batcher(run, 8, "model", wait=0.1), list(range(6)))
    assert isinstance(found.pop(3), ZeroDivisionError)
    assert found == {n: n for n in (0, 1, 2, 4, 5)}


def test_out_of_memory_halves_the_batch_and_those_who_were_in_it_are_told():
    def run(items):
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return items

    batcher = Batcher(run, 8, "sam2", wait=0.05)
    with memory_events() as events:
        assert batcher.map(list(range(8))) == list(range(8))
    assert batcher.batch == 2
    assert set(events) == {MemoryEvent("sam2", 4), MemoryEvent("sam2", 2)}
    with memory_events() as events:
        assert batcher.map([1, 2, 3]) == [1, 2, 3]
    assert events == []


def test_out_of_memory_for_a_single_item_is_that_items_error():
    def run(items):
        raise torch.OutOfMemoryError("no room at all")

    with pytest.raises(torch.OutOfMemoryError):
        Batcher(run, 2, "model")(1)


def test_nobody_waits_for_a_thread_that_cannot_start(monkeypatch):
    monkeypatch.setenv("SPARROW_DEVICE", "toaster")
    batcher = Batcher(doubled([]), 2, "model")
    with pytest.raises(ValueError, match="SPARROW_DEVICE='toaster' is not a device"):
        batcher(1)
    with pytest.raises(RuntimeError, match="the model thread has ended"):
        batcher(1)
