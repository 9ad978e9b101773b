"""What the study trains on: in order, resumable, and cut along the corrupted trajectory."""

import numpy as np
import pytest
import torch

from model.config import configure
from model.sparrow import Sparrow
from model.study.base import PROPOSER, make_host
from model.study.config import StudyConfig
from model.study.feed import InMemory, representatives, to_record, training_batches
from model.study.world import make_clip
from model.tsf import TSFConfig
from pipeline.corrupt import Corruption


def test_an_epoch_has_every_item_once_and_a_resumed_one_goes_on():
    whole = InMemory(list(range(10)), 3, seed=1)
    first, second = [list(b) for b in whole], [list(b) for b in whole]
    assert len(first) == 3
    assert len({i for b in first for i in b}) == 9
    assert first != second
    stopped = InMemory(list(range(10)), 3, seed=1)
    iterator = iter(stopped)
    assert next(iterator) == first[0]
    other = InMemory(list(range(10)), 3, seed=1)
    other.load_state_dict(stopped.state_dict())
    assert [*other, *other] == [*first[1:], *second]


def test_too_few_items_are_an_error():
    with pytest.raises(ValueError, match="2 items make no batch of 3"):
        InMemory([1, 2], 3, 0)


def test_a_record_shows_its_target_first_and_has_its_boxes_in_shares():
    clip = make_clip(0, 2)
    record = to_record(clip, 2, 3, TSFConfig(), Corruption())
    assert record.frames_fhw3.shape == (3, 64, 64, 3)
    assert record.masks_fhw.shape == (3, 64, 64)
    assert (record.masks_fhw == clip.masks_nthw[0][record.times_f]).all()
    assert record.masks_fhw[0].any()
    assert np.allclose(record.box_4 * 64, clip.boxes_nt4[0, record.times_f[0]])
    assert record.crops is not None
    assert len(record.crops) == 4
    assert to_record(clip, 2, 3, None, Corruption()).crops is None


def test_crops_follow_the_trajectory_they_are_given():
    clip = make_clip(0, 1)
    own = representatives(clip, clip.boxes_nt4[0], 4)
    size = np.nanmax(clip.boxes_nt4[0, :, 2] - clip.boxes_nt4[0, :, 0])
    assert all(picture.shape[1] <= size + 1 for picture in own)
    dropped = np.full_like(clip.boxes_nt4[0], np.nan)
    dropped[3] = clip.boxes_nt4[0, 3]
    only = representatives(clip, dropped, 4)
    assert len(only) == 4
    assert all((picture == only[0]).all() for picture in only)


def test_questions_are_asked_anew_in_each_epoch_and_after_a_stop():
    config = StudyConfig(frames=4, shown=2)
    host = make_host(config, 0, torch.device("cpu"))
    sparrow = Sparrow(host, configure("paper", **PROPOSER, **{"tsf.dropout": 0.25}))
    clips = [make_clip(0, i, config.frames) for i in range(8)]

    def feed():
        return training_batches(sparrow, clips, config.shown, 4, 0, tsf=True)

    whole = feed()
    first, second = ([[s.text for s in batch.samples] for batch in whole] for _ in range(2))
    assert {text for batch in first for text in batch} != {
        text for batch in second for text in batch
    }
    stopped = feed()
    next(iter(stopped))
    other = feed()
    other.load_state_dict(stopped.state_dict())
    assert [[s.text for s in batch.samples] for batch in other] == first[1:]
    for batch in feed():
        assert any(sample.masked for sample in batch.samples)
        for sample in batch.samples:
            assert (sample.crops is None) == (sample.family == "host")
    plain = training_batches(sparrow, clips, config.shown, 4, 0, tsf=False)
    assert {s.family for batch in plain for s in batch.samples} == {"host"}
