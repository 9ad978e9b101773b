"""Answers about regions: the loss is that of the phrase, and an exact answer is the phrase."""

import pytest
import torch

from model.config import configure
from model.sparrow import Sparrow
from model.study import measure
from model.study.base import PROPOSER, make_host
from model.study.config import StudyConfig
from model.study.world import make_clip

CONFIG = StudyConfig(frames=4, shown=2)


def made(**changes) -> Sparrow:
    host = make_host(CONFIG, 0, torch.device("cpu"))
    return Sparrow(host, configure("paper", **(PROPOSER | changes)))


def test_a_region_is_asked_about_with_its_crops(monkeypatch):
    sparrow, clips = made(), [make_clip(0, i, CONFIG.frames) for i in range(2)]
    asked = []

    def answer(model, frames, question, crops, length):
        asked.append((question, len(crops), len(frames)))
        return clips[0].phrase

    monkeypatch.setattr(measure, "answer_about_region", answer)
    found = measure.region_answers(sparrow, clips, CONFIG.shown)
    assert asked == [("What is the <region> doing during this video?", 4, 4)] * 2
    assert found["exact"] == 0.5
    assert found["loss"] > 0
    assert measure.region_answers(sparrow, clips, CONFIG.shown)["loss"] == pytest.approx(
        found["loss"]
    )


def test_a_model_without_tsf_is_not_asked():
    assert measure.region_answers(made(**{"tsf.path": "none"}), [], CONFIG.shown) == {}
