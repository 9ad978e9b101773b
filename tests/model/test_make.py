"""One way to make a model: the same tiny weights everywhere, checkpoints on top."""

import pytest
import torch

from model.checkpoints import save
from model.make import make_model


def test_tiny_weights_are_the_same_every_time_and_say_so():
    (first, note), (second, _) = make_model("glus", "tiny"), make_model("glus", "tiny", fresh=True)
    assert "mean nothing" in note
    one, other = first.state_dict(), second.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(p.requires_grad for p in first.parameters())


def test_changes_and_presets_reach_the_config():
    made, _ = make_model("videoglamm", "tiny", "release", changes={"tsf.infer": True})
    assert made.config.tsf.infer
    assert made.config.proposals.input == 128
    with pytest.raises(ValueError, match="no such field"):
        make_model("glus", "tiny", changes={"tsf.inferr": True})


def test_a_checkpoint_is_put_on_top(tmp_path):
    made, _ = make_model("glus", "tiny")
    with torch.no_grad():
        made.host.seg_head[0].weight.fill_(0.5)
    save(made, tmp_path / "saved", "all")
    again, _ = make_model("glus", "tiny", checkpoints=[tmp_path / "saved"])
    assert (again.host.seg_head[0].weight == 0.5).all()


def test_official_size_needs_weights():
    with pytest.raises(ValueError, match="--checkpoint"):
        make_model("glus", "full")
