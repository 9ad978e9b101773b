"""A model of the grid: its second stage on what was computed before is the second stage."""

import pytest
import torch

from model.config import configure
from model.sparrow import Sparrow
from model.study.base import PROPOSER, make_host
from model.study.config import StudyConfig
from model.study.feed import training_batches
from model.study.run import FilterTask
from model.study.world import make_clip
from model.train.task import Batch, StageTask


def test_stage_2_has_the_same_losses_on_what_was_computed_before():
    config = StudyConfig(frames=4, shown=2)
    sparrow = Sparrow(make_host(config, 0, torch.device("cpu")), configure("paper", **PROPOSER))
    task = FilterTask(sparrow)
    clips = [make_clip(0, i, config.frames) for i in range(4)]
    batch: Batch = next(iter(training_batches(sparrow, clips, config.shown, 4, 0, tsf=False)))
    seen = Batch([task.read(sample) for sample in batch.samples], batch.keys)  # type: ignore[misc]
    sparrow.train()
    usual, quick = StageTask(sparrow, "stage2").losses(batch), task.losses(seen)
    for name in ("proposals", "reachable"):
        assert float(quick[name].detach()) == pytest.approx(
            float(usual[name].detach()), rel=1e-5
        ), name
    quick["proposals"].backward()
    assert {n.split(".")[0] for n, p in sparrow.named_parameters() if p.grad is not None} == {
        "filter",
        "box_adapter",
    }
