"""Reading ahead changes neither what comes nor where a loader says it stands."""

import gc
import threading

import pytest

from model.data.collate import Preparation
from model.data.index import Index
from model.data.loader import Loader, LoaderOptions
from model.train.ahead import one_ahead
from model.train.task import Collated
from tests.model.data.made import make_output
from tests.model.made import tiny


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """20 referents."""
    return Index.open(str(make_output(tmp_path_factory.mktemp("made"), {"a": (3, 2), "b": (2, 2)})))


def test_the_same_items_and_one_of_them_ahead():
    made = []

    def items():
        for n in range(4):
            made.append(n)
            yield n

    ahead = one_ahead(items())
    seen = []
    for n in ahead:
        seen.append(n)
        while len(made) < min(n + 2, 4):  # the next one is made in the meantime
            threading.Event().wait(0.001)
    assert seen == made == [0, 1, 2, 3]


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        raise ValueError("no more")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no more"):
        next(ahead)


def test_workers_end_well(index):
    """Those that were started by a thread end with 1, and PyTorch complains of it at any later moment."""
    loader = Loader(index, LoaderOptions(batch=4, frames=2), workers=2)
    ahead = one_ahead(loader)
    next(ahead)
    next(ahead)
    assert loader._reads is not None
    workers = loader._reads._iterator._workers  # type: ignore[union-attr]
    ahead.close()
    del ahead, loader
    gc.collect()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_is_that_of_the_batches_handed_out(index, workers):
    sparrow = tiny("videoglamm")
    preparation = Preparation.of(sparrow)

    def collated():
        options = LoaderOptions(batch=4, frames=2)
        return Collated(Loader(index, options, workers=workers, prepare=preparation), sparrow)

    whole = collated()
    keys = [batch.keys for _ in range(2) for batch in whole]
    for stop in range(1, 6):
        first = collated()
        begun = iter(first)
        for n in range(stop):
            assert next(begun).keys == keys[n]
        state = first.state_dict()
        assert state["step"] == stop
        resumed = collated()
        resumed.load_state_dict(state)
        rest = [batch.keys for _ in range(2) for batch in resumed]
        assert rest == keys[stop : stop + len(rest)]
        assert len(rest) == 10 - stop or stop == 5
        begun.close()
        again = iter(first)  # an iteration that was left goes on where it was left
        if stop < 5:
            assert next(again).keys == keys[stop]
        again.close()


def test_what_is_prepared_in_workers_is_what_the_main_process_would_make(index):
    sparrow = tiny("unipixel")
    preparation = Preparation.of(sparrow)
    options = LoaderOptions(batch=4, frames=2)
    plain = [preparation(record) for batch in Loader(index, options) for record in batch]
    loader = Loader(index, options, workers=2, prepare=preparation)
    made = [one for batch in loader for one in batch]
    for one, other in zip(plain, made, strict=True):
        assert (one.key, one.ids, one.text, one.family) == (
            other.key,
            other.ids,
            other.text,
            other.family,
        )
        for name, value in one.inputs.items():
            assert value.equal(other.inputs[name])
        assert one.frames_fhw3.equal(other.frames_fhw3)
        assert (one.crops is None) == (other.crops is None)
        assert one.crops is None or one.crops.equal(other.crops)
