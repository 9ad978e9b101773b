"""Features kept between questions: the same numbers, each frame encoded once, in a bounded number of bytes."""

import numpy as np
import pytest
import torch

from model.evaluate.features import Kept
from model.evaluate.protocols import Asking
from model.evaluate.run import predict
from model.evaluate.task import Query
from tests.model.made import clip, tiny


@pytest.fixture(scope="module")
def sparrow():
    return tiny("videoglamm")


@pytest.fixture
def passes(sparrow):
    seen = []
    hook = sparrow.host.sam.image_encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0]))
    )
    yield seen
    hook.remove()


def ask(sparrow, frames, kept):
    way = Asking(name="x", answer="force", prompt_every=4)
    with torch.inference_mode():
        return predict(sparrow, frames, Query("0", "v", "the square"), way, kept=kept)


def test_kept_features_change_nothing_and_save_the_second_pass(sparrow, passes):
    frames, _ = clip(6)
    alone = ask(sparrow, frames, None)
    assert len(alone.masks_nthw) == 1
    assert sum(passes) == 6
    passes.clear()
    kept = Kept(sparrow.host, frames, {0, 4})
    for _ in range(2):
        np.testing.assert_array_equal(ask(sparrow, frames, kept).masks_nthw, alone.masks_nthw)
    assert sum(passes) == 6


def test_a_small_budget_keeps_a_part_and_loses_nothing(sparrow, passes):
    frames, _ = clip(6)
    whole = Kept(sparrow.host, frames, {0, 4}, budget=1 << 30)
    alone = ask(sparrow, frames, whole)
    used = (1 << 30) - whole.left
    kept = Kept(sparrow.host, frames, {0, 4}, budget=used // 2)
    passes.clear()
    for _ in range(2):
        np.testing.assert_array_equal(ask(sparrow, frames, kept).masks_nthw, alone.masks_nthw)
    assert 6 < sum(passes) < 12
    assert kept.left >= 0
