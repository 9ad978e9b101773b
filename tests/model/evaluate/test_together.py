"""Queries of a video are asked together, with the predictions of each alone; one that cannot be asked costs no other."""

from collections import Counter

import numpy as np
import pytest

from model.evaluate.features import Kept
from model.evaluate.protocols import Asking
from model.evaluate.run import predict
from model.evaluate.task import Query
from model.evaluate.together import AskedTogether
from tests.model.made import HOSTS, clip, tiny

TEXTS = ["the left square", "the square that moves", "a dog", "a dog"]
QUERIES = [Query(str(k), "v", text) for k, text in enumerate(TEXTS)]


def masks_of(sparrow, frames, asking, queries, together):
    kept = Kept(sparrow.host, frames, range(len(frames)))
    found = {q.id: predict(sparrow, frames, q, asking, 0, kept, None, together) for q in queries}
    return found


@pytest.mark.parametrize("name", HOSTS)
def test_predictions_are_those_of_each_query_alone(name):
    sparrow, frames = tiny(name), clip(6)[0]
    asking = Asking(name="x", answer="force", chunk=4, prompt_every=2, merge="all")
    alone = masks_of(sparrow, frames, asking, QUERIES, None)
    calls: Counter[str] = Counter()
    tower = sparrow.host.visual if name == "unipixel" else sparrow.host.image_encoder
    tower.register_forward_hook(lambda *_: calls.update(["tower"]))
    together = AskedTogether(sparrow, frames, QUERIES, asking, None)
    found = masks_of(sparrow, frames, asking, QUERIES, together)
    for key, one in alone.items():
        assert (found[key].text, found[key].error) == (one.text, "")
        assert found[key].masks_nthw.shape == one.masks_nthw.shape
        assert (found[key].masks_nthw != one.masks_nthw).mean() < 1e-3
    one_query = sum(calls.values())
    masks_of(sparrow, frames, asking, QUERIES[:1], None)
    assert calls["tower"] == 2 * one_query  # as often for four queries as for one


def test_a_query_that_is_too_long_fails_alone_and_in_the_same_words():
    sparrow, frames = tiny("videoglamm"), clip(4)[0]
    asking = Asking(name="x", answer="force")
    queries = [*QUERIES[:2], Query("long", "v", "very " * 4096)]
    alone = masks_of(sparrow, frames, asking, queries, None)
    together = AskedTogether(sparrow, frames, queries, asking, None)
    found = masks_of(sparrow, frames, asking, queries, together)
    assert "does not fit videoglamm's" in found["long"].error
    assert found["long"].error == alone["long"].error
    for key in ("0", "1"):
        assert not found[key].error
        assert np.array_equal(found[key].masks_nthw, alone[key].masks_nthw)


def test_if_they_cannot_be_asked_together_each_is_asked_alone(monkeypatch):
    sparrow, frames = tiny("videoglamm"), clip(4)[0]
    asking = Asking(name="x", answer="force")
    alone = masks_of(sparrow, frames, asking, QUERIES, None)
    real = sparrow.host.lm

    def lm(packed, cache=None):
        if len(packed.ids_bl) > 1:
            raise RuntimeError("CUDA error: an illegal thing")
        return real(packed, cache)

    monkeypatch.setattr(sparrow.host, "lm", lm)
    together = AskedTogether(sparrow, frames, QUERIES, asking, None)
    found = masks_of(sparrow, frames, asking, QUERIES, together)
    for key, one in alone.items():
        assert not found[key].error
        assert np.array_equal(found[key].masks_nthw, one.masks_nthw)
